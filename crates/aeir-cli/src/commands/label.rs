//! `aeir label`: a little labelling, where it helps most.

#[cfg(feature = "serve")]
mod desk;
mod plan;
#[cfg(feature = "serve")]
mod serve;

use aeir_data::Split;
use serde::{Deserialize, Serialize};

use crate::flags::label::{LabelCommand, LabelFlags};
use crate::terminal::Terminal;

/// Does what the subcommand says.
pub(crate) fn run(flags: &LabelFlags, terminal: &Terminal) -> anyhow::Result<()> {
    match &flags.command {
        LabelCommand::Plan(flags) => plan::run(flags, terminal),
        #[cfg(feature = "serve")]
        LabelCommand::Serve(flags) => serve::run(flags, terminal),
    }
}

/// A line of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlannedImage {
    /// The image's absolute name.
    image: String,
    part: Part,
    /// 0 where the model is sure, 1 where all candidates are alike to it.
    uncertainty: f64,
    /// Sentences that may belong to it, the likeliest first.
    candidates: Vec<Candidate>,
}

/// What a label is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    /// Chosen to learn from.
    Learn,
    /// Drawn at random to measure with.
    Measure,
}

impl Part {
    /// As the file of pairs says it, so that no reader takes one for the other.
    #[cfg_attr(not(feature = "serve"), allow(dead_code, reason = "plans alone are written"))]
    fn split(self) -> Split {
        match self {
            Self::Learn => Split::Train,
            Self::Measure => Split::Test,
        }
    }
}

/// A sentence offered for an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Candidate {
    sentence: String,
    score: f32,
}
