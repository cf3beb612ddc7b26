//! Flags of the commands that look after runs.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;

const REPORT_EXAMPLES: &str = "\
Examples:
  aeir report runs/one
  aeir report runs/one runs/two runs/three --output compared.html";

const SWEEP_EXAMPLE: &str = "\
A sweep's file:
  version = 1
  seeds = [1, 2, 3]
  config = \"configs/demo.toml\"       # what is not varied; may be left out

  [values]                           # every combination is trained
  method = [\"source-only\", \"aeir\"]
  optimizer.learning_rate = [0.001, 0.002]

  [train]                            # flags of `aeir train`
  source = \"pairs.jsonl\"
  target-images = \"photos\"
  target-sentences = \"lines.txt\"

  [eval]                             # flags of `aeir eval`; without test pairs leave it out
  data = \"test.jsonl\"";

/// Flags of `aeir sweep`.
#[derive(Args)]
#[command(after_help = SWEEP_EXAMPLE)]
pub(crate) struct SweepFlags {
    /// What to train, in TOML
    #[arg(value_name = "SWEEP.toml")]
    pub(crate) sweep: PathBuf,
    /// Folder for all runs and the table; finished runs in it are kept, an interrupted one goes on [default: `output` of the
    /// file, else runs/ and the file's name]
    #[arg(long, short, value_name = "DIR", env = "AEIR_OUTPUT")]
    pub(crate) output: Option<PathBuf>,
    /// Check everything, list the runs and train nothing
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_DRY_RUN")]
    pub(crate) dry_run: bool,
    /// Print the results as one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}

/// Flags of `aeir report`.
#[derive(Args)]
#[command(after_help = REPORT_EXAMPLES)]
pub(crate) struct ReportFlags {
    /// Folders of runs, finished or not; several are set side by side
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// The page to write [default: report.html in the run; of several runs in the working folder]
    #[arg(long, short, value_name = "FILE", env = "AEIR_OUTPUT")]
    pub(crate) output: Option<PathBuf>,
    /// Print one JSON object with all figures; a page is then written with --output alone
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}

const PUSH_EXAMPLES: &str = "\
Examples:
  aeir push runs/one my-name/my-model --dry-run
  HF_TOKEN=hf_... aeir push runs/one my-name/my-model --private";

/// Flags of `aeir push`.
#[derive(Args)]
#[command(after_help = PUSH_EXAMPLES)]
pub(crate) struct PushFlags {
    /// Folder of a trained model
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Where to put it: `owner/name` on the hub, made where it is missing; HF_ENDPOINT names another hub. The token is that of
    /// HF_TOKEN, or the one that Hugging Face's own tools have stored
    #[arg(value_name = "OWNER/NAME")]
    pub(crate) repository: String,
    /// Branch to commit to, made where it is missing [default: main]
    #[arg(long, value_name = "BRANCH", env = "AEIR_REVISION")]
    pub(crate) revision: Option<String>,
    /// Make the repository private where it is made; one that is public already is refused
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_PRIVATE")]
    pub(crate) private: bool,
    /// First line of the commit
    #[arg(long, value_name = "TEXT", env = "AEIR_MESSAGE")]
    pub(crate) message: Option<String>,
    /// List the files and send nothing
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_DRY_RUN")]
    pub(crate) dry_run: bool,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}
