//! `cargo xtask fetch`: backbones and data sets, as `xtask/assets.toml` lists them.

mod archive;
mod client;
mod disk;
mod download;
pub(crate) mod manifest;
mod pip;
mod plan;
mod progress;
mod source;
mod state;
mod workers;

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Parser;
use clap::builder::FalseyValueParser;

use crate::tree::workspace_root;
use crate::{complain, say};
pub(crate) use archive::unpack;
use client::{Client, HubVariables};
pub(crate) use disk::{free_bytes, readable};
use download::Patience;
use manifest::{Asset, Kind, Manifest, Trust};
use plan::Plan;
use source::Mirror;
use workers::Workers;

/// Where things go unless told otherwise, from the root of the repository.
const DEFAULT_FOLDER: &str = "assets";
/// The list of what there is.
const MANIFEST: &str = "xtask/assets.toml";

/// Fetch backbones and data sets: resumed where it stopped, checked by SHA-256
///
/// Without a word it lists what there is. Things go to `assets/backbones/NAME` and `assets/datasets/NAME`; `aeir` is told of them by
/// these paths, as the last lines of a run say. A file whose hash nobody could vouch for is believed on first download; its hash is then
/// written into `xtask/assets.toml` and holds from then on.
///
/// HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE are honoured.
#[derive(Parser)]
#[command(name = "cargo xtask fetch", bin_name = "cargo xtask fetch", max_term_width = 100)]
struct Flags {
    /// `backbones`, `datasets` or `all`, then names; names alone will do
    #[arg(value_name = "WHAT|NAME")]
    words: Vec<String>,
    /// Folder to put things into [default: assets in the repository]
    #[arg(long, value_name = "DIR", env = "AEIR_ASSETS")]
    to: Option<PathBuf>,
    /// Take everything from here instead: a folder or server laid out as this command leaves it (with --keep-archives). Region features
    /// come from nowhere else
    #[arg(long, value_name = "DIR|URL")]
    mirror: Option<Mirror>,
    /// You accept the licences that were shown
    #[arg(long)]
    accept_licence: bool,
    /// Say what would be fetched, from where, how large, under which licence; uses no network
    #[arg(long)]
    dry_run: bool,
    /// List what is missing; uses no network, exits with 1 where something is
    #[arg(long, value_parser = FalseyValueParser::new(), env = "HF_HUB_OFFLINE")]
    offline: bool,
    /// Work out the hashes of what is there anew
    #[arg(long)]
    verify: bool,
    /// Files at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    jobs: u8,
    /// Keep archives once they are unpacked
    #[arg(long)]
    keep_archives: bool,
    /// Another list
    #[arg(long, value_name = "FILE", hide = true)]
    manifest: Option<PathBuf>,
    /// Failures in a row after which a file is given up
    #[arg(long, value_name = "N", default_value_t = 5)]
    retries: u32,
    /// Milliseconds before the first repetition; doubled each time
    #[arg(long, value_name = "MS", default_value_t = 500, hide = true)]
    backoff: u64,
}

/// Fetches, lists, or says what is missing.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<ExitCode> {
    let words = std::iter::once("cargo xtask fetch").chain(words.iter().copied());
    let flags = match Flags::try_parse_from(words) {
        Ok(flags) => flags,
        Err(error) => {
            // Help goes to stdout, a complaint to stderr.
            let _ = error.print();
            return Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)));
        }
    };
    let repository = workspace_root()?;
    let list = flags.manifest.clone().unwrap_or_else(|| repository.join(MANIFEST));
    let manifest = Manifest::read(&list)?;
    let root = flags.to.clone().unwrap_or_else(|| repository.join(DEFAULT_FOLDER));
    if flags.words.is_empty() {
        return say(&listing(&manifest)).map(|()| ExitCode::SUCCESS);
    }
    let chosen = chosen(&manifest.assets, &flags.words, flags.mirror.is_some())?;
    for note in &chosen.notes {
        complain(&format!("{note}\n"))?;
    }
    let plan = Plan::make(&root, &chosen.assets, flags.verify)?;
    if flags.dry_run {
        say(&plan.text(flags.mirror.as_ref()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if flags.offline {
        return offline(&plan);
    }
    if !plan.is_complete() {
        if !accepted(&plan, &flags)? {
            return Ok(ExitCode::from(2));
        }
        plan.check_space()?;
        let workers = Workers {
            client: Client::new(HubVariables::read()?)?,
            patience: Patience { retries: flags.retries, backoff: Duration::from_millis(flags.backoff) },
            mirror: flags.mirror.clone(),
            repository,
            list,
            keep_archives: flags.keep_archives,
        };
        let failures = workers.run(&plan, usize::from(flags.jobs))?;
        if !failures.is_empty() {
            complain(&format!(
                "\n{} of {} files failed; the rest is there, and the same command goes on with these:\n  {}\n",
                failures.len(),
                plan.missing().count(),
                failures.join("\n  ")
            ))?;
            return Ok(ExitCode::FAILURE);
        }
    }
    say(&usage(&plan)).map(|()| ExitCode::SUCCESS)
}

struct Chosen<'a> {
    assets: Vec<&'a Asset>,
    notes: Vec<String>,
}

/// The assets that the words name.
fn chosen<'a>(all: &'a [Asset], words: &[String], mirror: bool) -> anyhow::Result<Chosen<'a>> {
    let (kinds, names) = match words.split_first() {
        Some((first, names)) => match first.as_str() {
            "backbones" => (vec![Kind::Backbone], names),
            "datasets" => (vec![Kind::Dataset], names),
            "all" => (vec![Kind::Backbone, Kind::Dataset], names),
            _ => (vec![Kind::Backbone, Kind::Dataset], words),
        },
        None => (Vec::new(), words),
    };
    let of_kind: Vec<&Asset> = all.iter().filter(|asset| kinds.contains(&asset.kind)).collect();
    if let Some(unknown) = names.iter().find(|name| of_kind.iter().all(|asset| asset.name != **name)) {
        let known: Vec<&str> = of_kind.iter().map(|asset| asset.name.as_str()).collect();
        bail!("nothing is called `{unknown}`; there are {}", known.join(", "));
    }
    let mut chosen = Chosen { assets: Vec::new(), notes: Vec::new() };
    for asset in of_kind.into_iter().filter(|asset| names.is_empty() || names.contains(&asset.name)) {
        match &asset.gone {
            Some(gone) if !mirror && !names.is_empty() => {
                bail!("`{}`: {gone}\nhint: name the place with --mirror DIR or --mirror URL", asset.name)
            }
            Some(_) if !mirror => chosen.notes.push(format!(
                "left out: `{}`, which comes only from a place that you name with --mirror",
                asset.name
            )),
            _ => chosen.assets.push(asset),
        }
    }
    Ok(chosen)
}

/// Shows the licences of what is missing. Whether they are accepted.
fn accepted(plan: &Plan<'_>, flags: &Flags) -> anyhow::Result<bool> {
    let mut text = String::from("Licences:\n");
    for asset in plan.incomplete() {
        let _ = writeln!(text, "  {}: {}", asset.name, asset.licence);
    }
    if !flags.accept_licence {
        text += "error: nothing was fetched: these licences are not accepted yet\n\
                 hint: read them, then run the same command with --accept-licence\n";
    }
    complain(&text)?;
    Ok(flags.accept_licence)
}

fn offline(plan: &Plan<'_>) -> anyhow::Result<ExitCode> {
    if plan.is_complete() {
        say(&usage(plan))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&plan.missing_text())?;
    Ok(ExitCode::FAILURE)
}

/// Everything that there is.
fn listing(manifest: &Manifest) -> String {
    let mut text = String::new();
    for (kind, title) in [(Kind::Backbone, "backbones"), (Kind::Dataset, "datasets")] {
        let _ = writeln!(text, "{title}");
        for asset in manifest.assets.iter().filter(|asset| asset.kind == kind) {
            let bytes = asset.files.iter().map(|file| file.size.max(file.about_mb * 1_000_000)).sum();
            let known = asset.files.iter().all(|file| file.trust == Trust::Verified);
            let trust = if known { "" } else { "; trusted on first download" };
            let size = if asset.is_gone() { "from --mirror alone".into() } else { readable(bytes) };
            let _ = writeln!(text, "  {:<24} {size:>20}  {}{trust}", asset.name, asset.purpose);
        }
    }
    text + "\ncargo xtask fetch NAME.. fetches some, --dry-run says what it would do, --help what else there is.\n"
}

/// What to do with what is there.
fn usage(plan: &Plan<'_>) -> String {
    let mut text = String::new();
    for (asset, folder) in plan.places() {
        let folder = folder.display().to_string();
        let _ = writeln!(text, "{}: {}", asset.name, asset.usage.replace("{folder}", &folder));
        if let Some(then) = &asset.then {
            let _ = writeln!(text, "  first: {}", then.replace("{folder}", &folder));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str], mirror: bool) -> anyhow::Result<Vec<String>> {
        let manifest = Manifest::read(&workspace_root().unwrap().join(MANIFEST)).unwrap();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let chosen = chosen(&manifest.assets, &words, mirror)?;
        Ok(chosen.assets.iter().map(|asset| asset.name.clone()).collect())
    }

    #[test]
    fn words_choose_kinds_and_names() {
        let all = names(&["all"], true).unwrap().len();
        let (backbones, datasets) =
            (names(&["backbones"], true).unwrap(), names(&["datasets"], true).unwrap());
        assert_eq!(all, backbones.len() + datasets.len());
        assert_eq!(names(&["dinov2-small"], false).unwrap(), ["dinov2-small"]);
        assert_eq!(names(&["backbones", "dinov2-small"], false).unwrap(), ["dinov2-small"]);
        let error = names(&["datasets", "dinov2-small"], false).unwrap_err().to_string();
        assert!(error.contains("dinov2-small") && error.contains("flickr30k-images"), "{error}");
    }

    #[test]
    fn what_has_no_home_is_left_out_or_explained() {
        assert!(!names(&["datasets"], false).unwrap().contains(&"f30k_precomp".to_owned()));
        assert!(names(&["datasets"], true).unwrap().contains(&"f30k_precomp".to_owned()));
        let error = names(&["f30k_precomp"], false).unwrap_err().to_string();
        assert!(error.contains("train_ims.npy") && error.contains("--mirror"), "{error}");
    }
}
