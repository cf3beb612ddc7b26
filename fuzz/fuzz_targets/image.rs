//! Image files of any format.
#![no_main]

use aeir_data::{DataError, decode_bytes};
use aeir_fuzz::LIMITS;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match decode_bytes(bytes, &LIMITS) {
        Ok(image) => assert!(u64::from(image.width()) * u64::from(image.height()) <= LIMITS.max_pixels),
        Err(DataError::ImageDecoderPanicked { message, .. }) => panic!("the decoder panicked: {message}"),
        Err(_) => {}
    }
});
