//! A training that is killed with no warning, at ten steps drawn at random, in a process of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers")]
#![cfg(unix)]

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use aeir_encoders::bundle::tensor_bytes;
use aeir_train::config::Selection;
use aeir_train::data::LABELLED;
use aeir_train::run::{Existing, METRICS_FILE, Opened, RunFolder};
use aeir_train::{
    EvaluationPairs, FeatureTable, ItemTable, Observer, SourceData, TargetData, TrainConfig, TrainingData,
    train,
};
use candle_core::Device;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Tells the child where to train and at which step to die.
const FOLDER: &str = "AEIR_TEST_KILLED_FOLDER";
const STEP: &str = "AEIR_TEST_KILLED_STEP";
/// Its own name: the child is this test again.
const TEST: &str = "killed::a_kill_at_any_step_changes_no_byte";

fn table(count: usize, columns: usize, seed: u64) -> ItemTable {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..count * columns).map(|_| random.next_u32() as f32 / u32::MAX as f32).collect();
    ItemTable::Pooled(FeatureTable::new(values, columns).unwrap())
}

fn data() -> TrainingData {
    let pairs = |count: usize, seed: u64| (table(count, 8, seed), table(count, 6, seed + 1));
    let (images, sentences) = pairs(44, 1);
    let (held_images, held_sentences) = pairs(9, 3);
    let (target_images, target_sentences) = (table(23, 8, 5), table(31, 6, 6));
    let (labelled_images, labelled_sentences) = (table(4, 8, 7), table(5, 6, 8));
    TrainingData {
        sources: vec![SourceData {
            name: "toy".into(),
            images,
            sentences,
            sentences_of: (0..44).map(|row| vec![row]).collect(),
            validation: Some(EvaluationPairs {
                images: held_images,
                sentences: held_sentences,
                owners: (0..9).collect(),
            }),
        }],
        target: Some(TargetData { images: target_images, sentences: target_sentences }),
        labelled: Some(SourceData {
            name: LABELLED.into(),
            images: labelled_images,
            sentences: labelled_sentences,
            sentences_of: vec![vec![0, 1], vec![2], vec![3], vec![4]],
            validation: None,
        }),
    }
}

fn config() -> TrainConfig {
    let mut config = TrainConfig {
        epochs: 8,
        batch_size: 8,
        target_batch_size: 8,
        selection: Some(Selection::TargetInformation),
        target_held_out: 0.2,
        checkpoint_every: 2,
        checkpoint_steps: 4,
        ..TrainConfig::default()
    };
    config.model.embedding_dimension = 8;
    config.adaptation.source_share = 0.5;
    config.optimizer.ema_decay = 0.9;
    config.optimizer.clip_norm = 1.0;
    config.resolved().unwrap()
}

/// Kills this process after a step, as `kill -9` does.
struct KillAfter(usize);

impl Observer for KillAfter {
    fn stepped(&mut self, step: usize) {
        if step == self.0 {
            let _ = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
            panic!("still alive");
        }
    }
}

/// Trains in `folder` to the end, or to its own. The weights are what it gives.
fn run(folder: &Path, step: usize) -> Vec<u8> {
    let Opened::Ready(run) = RunFolder::open(folder, Existing::Resume).unwrap() else { panic!("finished") };
    let trained = train(&config(), &data(), Some(&run), &Device::Cpu, &mut KillAfter(step)).unwrap();
    tensor_bytes(&trained.parameters).unwrap()
}

#[test]
fn a_kill_at_any_step_changes_no_byte() {
    if let (Some(folder), Ok(step)) = (env::var_os(FOLDER), env::var(STEP)) {
        run(Path::new(&folder), step.parse().unwrap());
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (whole, killed) = (place.path().join("whole"), place.path().join("killed"));
    let undisturbed = run(&whole, usize::MAX);
    let metrics = fs::read(whole.join(METRICS_FILE)).unwrap();
    let steps = 8 * 6;
    let mut random = ChaCha8Rng::seed_from_u64(20);
    for turn in 0..10 {
        let step = 1 + random.next_u32() as usize % steps;
        let _ = fs::remove_dir_all(&killed);
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
            .env(FOLDER, &killed)
            .env(STEP, step.to_string())
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(9), "step {step}: {}", String::from_utf8_lossy(&child.stderr));
        assert!(run(&killed, usize::MAX) == undisturbed, "turn {turn}, killed at step {step}");
        assert!(
            fs::read(killed.join(METRICS_FILE)).unwrap() == metrics,
            "turn {turn}, killed at step {step}"
        );
    }
}
