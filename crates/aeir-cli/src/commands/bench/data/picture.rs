//! Pictures with the statistics of photographs: what a JPEG decoder's time depends on.

use image::{Rgb, RgbImage};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Longer and shorter side, about those of the published retrieval sets.
const SIDES: (u32, u32) = (500, 375);
const QUALITY: u8 = 90;

/// A JPEG of quality 90 with halved colour resolution, as cameras and web services write them. The number decides its
/// content; every fourth stands upright.
pub(super) fn jpeg(number: u64) -> anyhow::Result<Vec<u8>> {
    let picture = picture(number);
    let mut jpeg = Vec::new();
    let mut encoder = Encoder::new(&mut jpeg, QUALITY);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    let (width, height) = (u16::try_from(picture.width())?, u16::try_from(picture.height())?);
    encoder.encode(picture.as_raw(), width, height, ColorType::Rgb)?;
    Ok(jpeg)
}

/// Noise whose amplitude falls with its frequency, in brightness and less in colour, and discs with sharp edges.
fn picture(number: u64) -> RgbImage {
    let (width, height) = if number % 4 == 3 { (SIDES.1, SIDES.0) } else { SIDES };
    let mut random = ChaCha8Rng::seed_from_u64(number);
    let brightness = noise(&mut random, width, height, 0.9);
    let colours: [Vec<f32>; 3] = [(); 3].map(|()| noise(&mut random, width, height, 1.2));
    let discs: Vec<Disc> = (0..8).map(|_| Disc::draw(&mut random, width, height)).collect();
    RgbImage::from_fn(width, height, |x, y| {
        let at = (y * width + x) as usize;
        let value = |plane: &[f32]| plane.get(at).copied().unwrap_or_default();
        let mut rgb = [0.0; 3];
        for (channel, colour) in rgb.iter_mut().zip(&colours) {
            *channel = 120.0 + 50.0 * value(&brightness) + 18.0 * value(colour);
        }
        for disc in discs.iter().filter(|disc| disc.contains(x as f32, y as f32)) {
            for (channel, colour) in rgb.iter_mut().zip(disc.colour) {
                *channel = 0.35 * *channel + 0.65 * colour;
            }
        }
        Rgb(rgb.map(|channel| channel.clamp(0.0, 255.0) as u8))
    })
}

/// From 0 to 1.
fn uniform(random: &mut ChaCha8Rng) -> f32 {
    random.next_u32() as f32 / u32::MAX as f32
}

/// Octaves of interpolated random values, of unit variance in all; the finer, the weaker, by a power of their spacing.
fn noise(random: &mut ChaCha8Rng, width: u32, height: u32, power: f32) -> Vec<f32> {
    let mut sum = vec![0.0; (width * height) as usize];
    let mut squares = 0.0;
    for octave in 0..8 {
        let spacing = (1_u32 << octave) as f32;
        let amplitude = spacing.powf(power - 0.5);
        squares += amplitude * amplitude / 12.0;
        let columns = (width as f32 / spacing) as usize + 2;
        let rows = (height as f32 / spacing) as usize + 2;
        let grid: Vec<f32> = (0..columns * rows).map(|_| uniform(random) - 0.5).collect();
        let value = |row: usize, column: usize| grid.get(row * columns + column).copied().unwrap_or_default();
        for (at, sum) in sum.iter_mut().enumerate() {
            let (x, y) = ((at as u32 % width) as f32 / spacing, (at as u32 / width) as f32 / spacing);
            let (column, row) = (x as usize, y as usize);
            let (right, down) = (x.fract(), y.fract());
            let above = value(row, column) * (1.0 - right) + value(row, column + 1) * right;
            let below = value(row + 1, column) * (1.0 - right) + value(row + 1, column + 1) * right;
            *sum += amplitude * (above * (1.0 - down) + below * down);
        }
    }
    let scale = 1.0 / f32::sqrt(squares);
    sum.iter_mut().for_each(|value| *value *= scale);
    sum
}

struct Disc {
    centre: (f32, f32),
    radius: f32,
    colour: [f32; 3],
}

impl Disc {
    fn draw(random: &mut ChaCha8Rng, width: u32, height: u32) -> Self {
        Self {
            centre: (uniform(random) * width as f32, uniform(random) * height as f32),
            radius: 15.0 + 75.0 * uniform(random),
            colour: [(); 3].map(|()| 255.0 * uniform(random)),
        }
    }

    fn contains(&self, x: f32, y: f32) -> bool {
        (x - self.centre.0).hypot(y - self.centre.1) < self.radius
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_decides_the_bytes() {
        let first = jpeg(0).unwrap();
        assert!(first == jpeg(0).unwrap() && first != jpeg(1).unwrap());
        // About what a photograph of this size takes.
        assert!((40_000..110_000).contains(&first.len()), "{}", first.len());
        let upright = aeir_data::decode_bytes(&jpeg(3).unwrap(), &aeir_data::ImageLimits::default()).unwrap();
        assert_eq!((upright.width(), upright.height()), (375, 500));
    }
}
