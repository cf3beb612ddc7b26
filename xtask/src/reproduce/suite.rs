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
    /// In which table it stands.
    pub(super) table: Table,
    pub(super) seeds: u64,
}

/// A table of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Methods side by side.
    Methods,
    /// The recipe with one step changed.
    Steps,
    /// The recipe with another choice of the epoch, or of what is mixed in.
    Selection,
}

impl Table {
    pub(super) const ALL: [Self; 3] = [Self::Methods, Self::Steps, Self::Selection];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Methods => "Methods",
            Self::Steps => "The recipe with one step changed",
            Self::Selection => "The recipe with another choice of the epoch",
        }
    }
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
            table: Table::Methods,
            seeds: FEW_SEEDS,
        }
    }

    const fn with(name: &'static str, method: &'static str, settings: &'static str) -> Self {
        Self { settings, ..Self::of(name, method) }
    }

    const fn recipe(name: &'static str, settings: &'static str) -> Self {
        Self { table: Table::Steps, ..Self::with(name, "adapt", settings) }
    }

    const fn selected(name: &'static str, settings: &'static str) -> Self {
        Self { table: Table::Selection, ..Self::with(name, "adapt", settings) }
    }
}

/// The recipe against the baseline, the oracle and the other methods, and each of its steps and criteria alone.
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
        Row { oracle: true, ..Row::of("oracle-with-memory", "adapt") },
        Row { standardise: true, ..Row::of("standardised", "source-only") },
        Row::with("whitened", "source-only", "standardise = \"whiten\"\n"),
        Row::of("aeir", "aeir"),
        Row::with("aeir-without-adversary", "aeir", "[aeir]\nsemantic_weight = 0.0\n"),
        Row::with("aeir-without-structure", "aeir", "[aeir]\nstructure_weight = 0.0\n"),
        Row { standardise: true, ..Row::of("aeir-standardised", "aeir") },
        Row::of("dann", "dann"),
        Row::of("adda", "adda"),
        Row::of("mmd", "mmd"),
        Row::of("coral", "coral"),
        Row::of("cdan", "cdan"),
        Row::of("cca", "cca"),
        Row::of("dcca", "dcca"),
        Row::of("vsepp", "vsepp"),
        Row::recipe("without-memory", "[adapt]\nmemory_pairs = 0\n"),
        Row::recipe("without-regression", "[adapt]\nregression = 0\n"),
        Row::recipe("longer-code", "[adapt]\nmemory_code = 1024\n"),
        Row::recipe("without-pairs", "[adapt]\npair_weight = 0.0\n"),
        Row::recipe("without-standardisation", "[adapt]\nstandardise = \"none\"\n"),
        Row::recipe("whitened-recipe", "[adapt]\nstandardise = \"whiten\"\n"),
        Row::recipe("mutual-neighbours", "[adapt]\nmatching = \"mutual\"\n"),
        Row::recipe("mutual-growing", "[adapt]\nmatching = \"mutual\"\nkeep_first = 0.5\n"),
        Row::recipe("dustbin", "[adapt]\ndustbin = 0.2\n"),
        Row::recipe("noise-rejected", "[adapt]\nreject_noise = true\n"),
        Row::recipe("teacher", "[adapt]\nteacher_decay = 0.99\n"),
        Row::recipe("geometry", "[adapt]\ngeometry_weight = 0.5\n"),
        Row::recipe("paper-terms", "[adapt]\nsemantic_weight = 0.1\nstructure_weight = 0.001\n"),
        Row::recipe("interpolated-0.25", "[adapt]\ninterpolate = [0.25]\n"),
        Row::recipe("interpolated-0.5", "[adapt]\ninterpolate = [0.5]\n"),
        Row::selected("last-epoch", "selection = \"last\"\n"),
        Row::selected("by-similarity", "selection = \"target-similarity\"\n"),
        Row::selected("by-cycle", "selection = \"target-cycle\"\n"),
        Row::selected("by-entropy", "selection = \"target-entropy\"\n"),
        Row::selected("by-diversity", "selection = \"target-diversity\"\n"),
        Row::selected("by-information", "selection = \"target-information\"\n"),
        Row::selected("mixture-by-source", "[adapt]\ninterpolate = [0.0, 0.25, 0.5, 0.75]\n"),
        Row::selected(
            "mixture-by-similarity",
            "selection = \"target-similarity\"\n[adapt]\ninterpolate = [0.0, 0.25, 0.5, 0.75]\n",
        ),
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
