//! The house rules, one file each. A rule is a function of the tree that gives what breaks it.

mod banned_calls;
mod crate_graph;
mod device_features;
mod documents;
mod fixture_folders;
mod fixture_manifest;
mod host_reads;
mod inherited_lints;
mod machine_paths;
mod modules;
mod quiet_libraries;

use crate::tree::Tree;
use crate::violation::Violation;

/// Every rule.
pub(crate) const ALL: [fn(&Tree) -> Vec<Violation>; 11] = [
    banned_calls::check,
    crate_graph::check,
    device_features::check,
    documents::check,
    fixture_folders::check,
    fixture_manifest::check,
    host_reads::check,
    inherited_lints::check,
    machine_paths::check,
    modules::check,
    quiet_libraries::check,
];

/// The crate with the command: the one that may print, exit and read the environment.
const DOOR: &str = "aeir-cli";
