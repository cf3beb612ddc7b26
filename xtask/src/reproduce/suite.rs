//! What is compared on what: the rows and transfers of each suite.

use anyhow::bail;

use super::transfer::{Kind, Transfer};

/// A table to reproduce.
pub(super) struct Suite {
    pub(super) name: &'static str,
    pub(super) transfers: &'static [Transfer],
    pub(super) rows: &'static [Row],
}

/// One way to train.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) method: &'static str,
    pub(super) standardise: bool,
    /// Settings beside the defaults, in TOML.
    pub(super) settings: &'static str,
    /// Trained on the target's true pairs as well: what labels would buy.
    pub(super) oracle: bool,
    /// Whether it is the recipe with one step changed.
    pub(super) ablation: bool,
    pub(super) seeds: u64,
}

const MAIN_SEEDS: u64 = 5;
const FEW_SEEDS: u64 = 2;

impl Row {
    const fn of(name: &'static str, method: &'static str) -> Self {
        Self {
            name,
            method,
            standardise: false,
            settings: "",
            oracle: false,
            ablation: false,
            seeds: FEW_SEEDS,
        }
    }

    const fn recipe(name: &'static str, settings: &'static str) -> Self {
        Self { settings, ablation: true, ..Self::of(name, "adapt") }
    }
}

/// The recipe against the baseline, the oracle and the other methods, and each of its steps alone.
const ADAPT: Suite = Suite {
    name: "adapt",
    transfers: &[
        Transfer { name: "noto-to-openclipart", kind: Kind::NotoToOpenclipart },
        Transfer { name: "openclipart-to-noto", kind: Kind::OpenclipartToNoto },
        Transfer { name: "noto-to-its-block-1f900", kind: Kind::NotoBlock(0x1F900, 0x1FFFF) },
        Transfer { name: "noto-to-its-block-1f400", kind: Kind::NotoBlock(0x1F400, 0x1F4FE) },
    ],
    rows: &[
        Row { seeds: MAIN_SEEDS, ..Row::of("source-only", "source-only") },
        Row { seeds: MAIN_SEEDS, ..Row::of("adapt", "adapt") },
        Row { seeds: MAIN_SEEDS, standardise: true, oracle: true, ..Row::of("oracle", "source-only") },
        Row { standardise: true, ..Row::of("standardised", "source-only") },
        Row::of("aeir", "aeir"),
        Row::of("dann", "dann"),
        Row::of("adda", "adda"),
        Row::of("mmd", "mmd"),
        Row::of("coral", "coral"),
        Row::of("cdan", "cdan"),
        Row::recipe("without-memory", "[adapt]\nmemory_pairs = 0\n"),
        Row::recipe("without-pairs", "[adapt]\npair_weight = 0.0\n"),
        Row::recipe("without-standardisation", "[adapt]\nstandardise = false\n"),
        Row::recipe("mutual-neighbours", "[adapt]\nmatching = \"mutual\"\n"),
        Row::recipe("mutual-growing", "[adapt]\nmatching = \"mutual\"\nkeep_first = 0.5\n"),
        Row::recipe("dustbin", "[adapt]\ndustbin = 0.2\n"),
        Row::recipe("noise-rejected", "[adapt]\nreject_noise = true\n"),
        Row::recipe("teacher", "[adapt]\nteacher_decay = 0.99\n"),
        Row::recipe("geometry", "[adapt]\ngeometry_weight = 0.5\n"),
        Row::recipe("paper-terms", "[adapt]\nsemantic_weight = 0.1\nstructure_weight = 0.001\n"),
    ],
};

impl Suite {
    pub(super) fn named(name: &str) -> anyhow::Result<&'static Self> {
        match name {
            "adapt" => Ok(&ADAPT),
            other => bail!("no suite `{other}`; there are adapt, paper and zero-shot"),
        }
    }
}
