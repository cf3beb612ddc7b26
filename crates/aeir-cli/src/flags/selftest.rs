//! Flags of `aeir selftest` and `aeir doctor`.

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use super::DeviceFlag;

#[derive(Args)]
pub(crate) struct SelftestFlags {
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
    /// Types to compute in
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "TYPE,..",
        default_value = "f32,bf16",
        env = "AEIR_DTYPE"
    )]
    pub(crate) dtype: Vec<TypeFlag>,
    /// Do these checks alone: names, or parts of names; --list prints them. May be repeated
    #[arg(long, value_name = "NAME", num_args = 1.., env = "AEIR_ONLY", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Print the names of all checks, and do none
    #[arg(long, conflicts_with_all = ["only", "spoil"], value_parser = FalseyValueParser::new(), env = "AEIR_LIST")]
    pub(crate) list: bool,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    /// Spoil the values of this check, to see that it is found
    #[arg(long, value_name = "NAME", hide = true)]
    pub(crate) spoil: Option<String>,
}

/// Types that checks are done in.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TypeFlag {
    /// Single precision
    F32,
    /// bfloat16
    Bf16,
}

#[derive(Args)]
pub(crate) struct DoctorFlags {
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}
