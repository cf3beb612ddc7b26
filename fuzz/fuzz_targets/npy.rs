//! Array files: header, shape, values.
#![no_main]

use std::sync::LazyLock;

use aeir_data::{FeatureArray, RegionFeatures};
use aeir_fuzz::Input;
use libfuzzer_sys::fuzz_target;

static INPUT: LazyLock<Input> = LazyLock::new(|| Input::new("features.npy"));

fuzz_target!(|bytes: &[u8]| {
    let path = INPUT.write(bytes);
    let _ = FeatureArray::open(path);
    if let Ok(features) = RegionFeatures::open(path) {
        let _ = features.check_finite();
    }
});
