//! `captions.jsonl`, read as a data set.
#![no_main]

use std::sync::LazyLock;

use aeir_fuzz::Input;
use libfuzzer_sys::fuzz_target;

static INPUT: LazyLock<Input> = LazyLock::new(|| Input::new("captions.jsonl"));

fuzz_target!(|bytes: &[u8]| INPUT.read_as_dataset(bytes));
