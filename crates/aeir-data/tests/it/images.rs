//! Decoding, with every odd kind of image.

use aeir_data::{DataError, ImageLimits, decode_bytes, decode_file, hash_bytes, hash_file};
use image::{ColorType, DynamicImage, Rgba};
use proptest::prelude::*;
use tempfile::tempdir;

use crate::{image, images, write};

const LEFT: [u8; 3] = [200, 30, 20];
const RIGHT: [u8; 3] = [20, 40, 180];

fn decode(name: &str) -> DynamicImage {
    decode_file(&image(name), &ImageLimits::default())
        .unwrap_or_else(|error| panic!("{}", error.with_causes()))
        .image
}

fn close(name: &str, found: Rgba<u8>, expected: [u8; 3], tolerance: u8) {
    let far = found.0.iter().zip(expected).any(|(found, expected)| found.abs_diff(expected) > tolerance);
    assert!(!far, "{name}: {found:?}, expected {expected:?}");
}

#[test]
fn every_kind_shows_the_same_picture() {
    let lossless = [
        "animated.gif",
        "animated.png",
        "animated.webp",
        "still.gif",
        "still.bmp",
        "palette.png",
        "palette.bmp",
    ];
    // CMYK is the conversion of another library and back, without colour profiles.
    let lossy =
        ["baseline.jpg", "progressive.jpg", "cmyk.jpg", "lossy.webp", "animated_lossy.webp", "preview.jpg"];
    for (name, tolerance) in lossless.map(|name| (name, 0)).into_iter().chain(lossy.map(|name| (name, 8))) {
        let pixels = decode(name).to_rgba8();
        assert_eq!(pixels.dimensions(), (16, 12), "{name}");
        close(name, *pixels.get_pixel(2, 3), LEFT, tolerance);
        close(name, *pixels.get_pixel(13, 9), RIGHT, tolerance);
    }
    assert_eq!(decode("restart.jpg").width(), 64);
    assert_eq!(decode("one.png").width(), 1);
    close("one.jpg", decode("one.jpg").to_rgba8()[(0, 0)], [9, 8, 7], 2);
}

#[test]
fn orientation_is_applied() {
    for (name, tolerance) in [("exif6.jpg", 8), ("exif6.png", 0), ("exif6.webp", 0)] {
        let pixels = decode(name).to_rgba8();
        assert_eq!(pixels.dimensions(), (12, 16), "{name}");
        close(name, pixels[(5, 2)], LEFT, tolerance);
        close(name, pixels[(5, 13)], RIGHT, tolerance);
    }
}

#[test]
fn depth_and_alpha_are_kept() {
    let grey = decode("grey16.png");
    assert_eq!(
        (grey.color(), grey.as_luma16().unwrap().as_raw().as_slice()),
        (ColorType::L16, &[0, 1000, 2000, 65535, 1, 2, 3, 4][..])
    );
    let colour = decode("rgb16.png");
    assert_eq!(&colour.as_rgb16().unwrap().as_raw()[..3], [40_000, 1, 65_535]);
    assert_eq!(decode("grey_alpha.png").to_luma_alpha8()[(1, 1)].0, [120, 7]);
    assert_eq!(decode("grey.jpg").color(), ColorType::L8);
    for name in ["alpha.png", "alpha.webp", "palette_transparent.png"] {
        let pixels = decode(name).to_rgba8();
        assert_eq!((pixels[(2, 3)].0[3], pixels[(13, 9)].0[3]), (0, 255), "{name}");
    }
    let bilevel = decode("bilevel.png").to_luma8();
    assert!(bilevel.pixels().all(|pixel| matches!(pixel.0, [0] | [255])));
}

#[test]
fn headers_are_held_against_the_limits() {
    let small = ImageLimits { max_pixels: 191, ..ImageLimits::default() };
    let narrow = ImageLimits { max_side: 15, ..ImageLimits::default() };
    let exact = ImageLimits { max_pixels: 192, max_side: 16, ..ImageLimits::default() };
    for name in ["baseline.jpg", "still.gif", "still.bmp", "palette.png", "lossy.webp", "animated.webp"] {
        for limits in [&small, &narrow] {
            let error = decode_file(&image(name), limits).unwrap_err();
            assert!(matches!(error, DataError::ImageTooLarge { width: 16, height: 12, .. }), "{error:?}");
            assert_eq!(error.path(), Some(image(name).as_path()));
        }
        decode_file(&image(name), &exact).unwrap();
    }
    let few = ImageLimits { max_bytes: 83, ..ImageLimits::default() };
    assert!(matches!(
        decode_file(&image("still.gif"), &few),
        Err(DataError::ImageTooManyBytes { limit: 83, got: 84, path: Some(_) })
    ));
    assert!(matches!(decode_bytes(&[0; 84], &few), Err(DataError::ImageTooManyBytes { path: None, .. })));
}

#[test]
fn bombs_are_refused() {
    for name in ["bomb.png", "bomb.jpg", "bomb.gif", "bomb.bmp", "bomb.webp"] {
        let error = decode_file(&image(name), &ImageLimits::default()).unwrap_err();
        assert!(matches!(error, DataError::ImageTooLarge { .. }), "{name}: {error:?}");
    }
    // A lossy frame of 16,383 a side behind a header of 16x12.
    let mut bytes = std::fs::read(image("alpha_lossy.webp")).unwrap();
    let frame = bytes.windows(4).position(|name| name == b"VP8 ").unwrap();
    decode_bytes(&bytes, &ImageLimits::default()).unwrap();
    bytes[frame + 14..frame + 18].fill(0xff);
    let error = decode_bytes(&bytes, &ImageLimits::default()).unwrap_err();
    assert!(matches!(error, DataError::ImageTooLarge { width: 16_383, .. }), "{error:?}");
    // Behind a small header a huge frame: what it asks for is refused by the allocation limit.
    let error = decode_file(&image("bomb_frame.gif"), &ImageLimits::default()).unwrap_err();
    assert!(matches!(error, DataError::ImageDecode { .. } | DataError::ImageTruncated { .. }), "{error:?}");
}

#[test]
fn files_that_are_no_images() {
    let folder = tempdir().unwrap();
    let limits = ImageLimits::default();
    let decode = |path: &std::path::Path| decode_file(path, &limits).unwrap_err();
    let empty = write(folder.path(), "empty.jpg", "");
    assert!(matches!(decode(&empty), DataError::ImageEmpty { path: Some(path) } if path == empty));
    let text = write(folder.path(), "text.png", "a page about a missing image");
    assert!(matches!(decode(&text), DataError::ImageFormatUnknown { path: Some(path) } if path == text));
    let tiff = write(folder.path(), "t.tif", b"II*\0\x08\0\0\0");
    assert!(matches!(decode(&tiff), DataError::ImageFormatUnknown { .. }));
    assert!(matches!(decode(folder.path()), DataError::NotAFile { got: "folder", .. }));
    assert!(matches!(decode(&folder.path().join("none.png")), DataError::Io { .. }));
    assert!(matches!(hash_file(folder.path()), Err(DataError::NotAFile { .. })));
    // The suffix says nothing.
    let disguised = write(folder.path(), "really.png.txt", std::fs::read(image("baseline.jpg")).unwrap());
    let decoded = decode_file(&disguised, &limits).unwrap();
    assert_eq!(decoded.hash, hash_file(&disguised).unwrap());
    assert_eq!(decoded.hash, hash_bytes(&std::fs::read(disguised).unwrap()));
}

#[cfg(unix)]
#[test]
fn a_named_pipe_does_not_block() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("pipe.png");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    // Nothing to test where there is no such program.
    if made.is_ok_and(|status| status.success()) {
        let error = decode_file(&path, &ImageLimits::default()).unwrap_err();
        assert!(matches!(error, DataError::NotAFile { got: "special file", .. }));
    }
}

/// Cut short anywhere, an image is an error and never a picture with a grey or black rest.
#[test]
fn images_cut_short() {
    let limits = ImageLimits::default();
    for path in images() {
        let bytes = std::fs::read(&path).unwrap();
        let Ok(whole) = decode_bytes(&bytes, &limits) else { continue };
        for length in 0..bytes.len() {
            match decode_bytes(&bytes[..length], &limits) {
                Err(DataError::ImageDecoderPanicked { message, .. }) => {
                    panic!("{} cut to {length}: {message}", path.display())
                }
                Err(_) => {}
                // Formats with something behind the last pixel: the picture is whole.
                Ok(image) => {
                    let jpeg = path.extension().unwrap() == "jpg";
                    assert!(!jpeg && image == whole, "{} cut to {length} of {}", path.display(), bytes.len());
                }
            }
        }
    }
}

#[test]
fn a_jpeg_may_have_bytes_behind_its_end() {
    let mut bytes = std::fs::read(image("progressive.jpg")).unwrap();
    bytes.extend(b"appended by a camera");
    decode_bytes(&bytes, &ImageLimits::default()).unwrap();
    // The rest of a file that was reserved but never written.
    let mut bytes = std::fs::read(image("preview.jpg")).unwrap();
    let middle = bytes.len() - 40;
    bytes[middle..].fill(0);
    assert!(matches!(decode_bytes(&bytes, &ImageLimits::default()), Err(DataError::ImageTruncated { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn mutated_images_decode_or_are_refused(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        end in prop::option::weighted(0.3, any::<prop::sample::Index>()),
    ) {
        let paths = images();
        let mut bytes = std::fs::read(which.get(&paths)).unwrap();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len()) + 1);
        }
        // Small, so that a header that grew by a mutation costs no time.
        let limits = ImageLimits { max_pixels: 100_000, ..ImageLimits::default() };
        if let Ok(image) = decode_bytes(&bytes, &limits) {
            prop_assert!(u64::from(image.width()) * u64::from(image.height()) <= limits.max_pixels);
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_bytes(&bytes, &ImageLimits::default());
    }
}
