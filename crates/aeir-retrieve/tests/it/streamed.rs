//! Evaluation in tiles: the score matrix is never held.

use std::process::Command;

use aeir_retrieve::{Relevance, evaluate_embeddings};

use crate::properties::scattered;

const IN_A_PROCESS_OF_ITS_OWN: &str = "AEIR_TEST_STREAMED";

/// Not a test of its own: what `a_score_matrix_is_not_held` runs in another process, whose memory is its alone.
#[test]
fn an_evaluation() {
    if std::env::var_os(IN_A_PROCESS_OF_ITS_OWN).is_none() {
        return;
    }
    let (images, sentences) = (scattered(4_000, 8, 1), scattered(20_000, 8, 2));
    let owners: Vec<usize> = (0..20_000).map(|sentence| sentence / 5).collect();
    evaluate_embeddings(&images, &sentences, &Relevance::from_owners(4_000, &owners).unwrap()).unwrap();
    println!("{}", std::fs::read_to_string("/proc/self/status").unwrap_or_default());
}

#[test]
#[cfg(target_os = "linux")]
fn a_score_matrix_is_not_held() {
    const SCORES_KILOBYTES: usize = 4_000 * 20_000 * 4 / 1_000;
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["streamed::an_evaluation", "--exact", "--nocapture"])
        .env(IN_A_PROCESS_OF_ITS_OWN, "1")
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let most = told.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: usize = most.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(
        kilobytes < SCORES_KILOBYTES / 3,
        "{kilobytes} kB of {SCORES_KILOBYTES} kB that the scores would take"
    );
}
