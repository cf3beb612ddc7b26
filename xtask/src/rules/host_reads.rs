//! A training step reads nothing back from the device that computes it: it would wait until all that was queued before is done.
//!
//! Where the crates of a step read a tensor's numbers is listed, each file with its reason.

use crate::source::{Source, mentions};
use crate::tree::Tree;
use crate::violation::Violation;

/// Where a step runs.
const FOLDERS: [&str; 4] =
    [KERNELS, "crates/aeir-encoders/src/", "crates/aeir-losses/src/", "crates/aeir-train/src/"];
/// Where the driver is called: there are more ways to wait for a card.
const KERNELS: &str = "crates/aeir-kernels/src/";
const WAITS: [&str; 5] = ["clone_dtoh", "memcpy_dtoh", "dtoh_sync_copy", "synchronize", "to_cpu_storage"];
/// How numbers are read.
const READS: [&str; 5] = ["to_scalar", "to_vec0", "to_vec1", "to_vec2", "to_vec3"];

const CPU_ALONE: &str = "an operation of the CPU alone";
const OUTSIDE: &str = "not in a step: once an epoch, or when something is made, saved or loaded";
const FIGURES: &str = "figures of the CPU, and those of a device when they are due";

/// Files that may, and why.
const MAY: [(&str, &str); 33] = [
    ("crates/aeir-encoders/src/batch_norm.rs", CPU_ALONE),
    ("crates/aeir-encoders/src/contrastive.rs", OUTSIDE),
    ("crates/aeir-encoders/src/convolution.rs", CPU_ALONE),
    ("crates/aeir-encoders/src/efficientnet.rs", CPU_ALONE),
    ("crates/aeir-encoders/src/fragments.rs", CPU_ALONE),
    ("crates/aeir-encoders/src/heads/fragment_norm.rs", CPU_ALONE),
    ("crates/aeir-encoders/src/heads/fused.rs", CPU_ALONE),
    ("crates/aeir-encoders/src/heads/fused/scan.rs", CPU_ALONE),
    ("crates/aeir-encoders/src/heads/shards.rs", OUTSIDE),
    ("crates/aeir-encoders/src/memory.rs", CPU_ALONE),
    ("crates/aeir-encoders/src/ops/attention/fused.rs", CPU_ALONE),
    ("crates/aeir-encoders/src/ops/differences.rs", "for tests"),
    ("crates/aeir-encoders/src/precision.rs", OUTSIDE),
    ("crates/aeir-encoders/src/standardise.rs", OUTSIDE),
    ("crates/aeir-encoders/src/text/batch.rs", OUTSIDE),
    ("crates/aeir-encoders/src/vision/resnet.rs", OUTSIDE),
    ("crates/aeir-losses/src/canonical_correlation.rs", "decomposed on the host, whatever the device"),
    ("crates/aeir-losses/src/domain_critic.rs", CPU_ALONE),
    ("crates/aeir-losses/src/fragment_similarity.rs", CPU_ALONE),
    ("crates/aeir-losses/src/matched_rows.rs", CPU_ALONE),
    ("crates/aeir-losses/src/sinkhorn.rs", OUTSIDE),
    ("crates/aeir-train/src/features.rs", OUTSIDE),
    ("crates/aeir-train/src/figure.rs", FIGURES),
    ("crates/aeir-train/src/method/adapt/mod.rs", OUTSIDE),
    ("crates/aeir-train/src/method/adapt/regression.rs", OUTSIDE),
    ("crates/aeir-train/src/method/canonical.rs", OUTSIDE),
    ("crates/aeir-train/src/mining.rs", OUTSIDE),
    ("crates/aeir-train/src/optimizer.rs", "norms of the CPU alone, and states that are saved"),
    ("crates/aeir-train/src/parameters.rs", OUTSIDE),
    ("crates/aeir-train/src/score.rs", OUTSIDE),
    ("crates/aeir-train/src/step.rs", "what was not finite, once a step has failed"),
    ("crates/aeir-train/src/validate.rs", OUTSIDE),
    ("crates/aeir-train/src/whitening.rs", OUTSIDE),
];

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let sources = tree.rust_files().filter(|(path, _)| {
        FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.ends_with("/tests.rs")
    });
    let mut found = Vec::new();
    for (path, text) in sources {
        let waits = WAITS.iter().filter(|_| path.starts_with(KERNELS));
        let reads =
            |(_, line): &(usize, String)| READS.iter().chain(waits.clone()).any(|read| mentions(line, read));
        let first = Source::new(text).shipped_lines(true).into_iter().find(reads);
        match (first, may(path)) {
            (Some((number, _)), false) => found.push(Violation::new(
                path,
                number,
                "reads a tensor's numbers, for which a step on a device would wait",
                "compute it on the device or hand it on as a `Figure`; where no step comes by, list the file in xtask/src/rules/host_reads.rs",
            )),
            (None, true) => found.push(Violation::new(
                path,
                0,
                "reads no tensor's numbers any more",
                "take it off the list in xtask/src/rules/host_reads.rs",
            )),
            _ => {}
        }
    }
    found
}

fn may(path: &str) -> bool {
    MAY.iter().any(|(file, _)| *file == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        check(&Tree::of([(path, text)])).len()
    }

    #[test]
    fn a_new_place_is_found_and_a_stale_entry_too() {
        let reads = "fn f(x: &Tensor) { x.to_vec1::<f32>(); }\n";
        assert_eq!(found("crates/aeir-losses/src/new.rs", reads), 1);
        assert_eq!(found("crates/aeir-losses/src/sinkhorn.rs", reads), 0);
        assert_eq!(found("crates/aeir-losses/src/sinkhorn.rs", "fn f() {}\n"), 1);
        assert_eq!(found("crates/aeir-cli/src/new.rs", reads), 0);
        assert_eq!(found("crates/aeir-kernels/src/new.rs", reads), 1);
    }

    #[test]
    fn kernels_do_not_wait_for_their_card_in_any_way() {
        for wait in WAITS {
            let text = format!("fn f(card: &CudaDevice) {{ card.{wait}(); }}\n");
            assert_eq!(found("crates/aeir-kernels/src/new.rs", &text), 1, "{wait}");
            // The trainer's second thread waits for what it has sent.
            assert_eq!(found("crates/aeir-train/src/new.rs", &text), 0, "{wait}");
        }
    }

    #[test]
    fn tests_comments_and_other_names_may() {
        let text =
            "/// `to_scalar`\nfn into_vec1() {}\n#[cfg(test)]\nmod tests { fn f() { x.to_scalar(); } }\n";
        assert_eq!(found("crates/aeir-train/src/new.rs", text), 0);
    }
}
