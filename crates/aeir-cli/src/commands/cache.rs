//! `aeir cache`: the cached features of frozen encoders.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use aeir_data::{CacheEntry, list, prune};
use serde::Serialize;

use super::{print, print_json};
use crate::flags::{CacheCommand, CacheListFlags, CachePruneFlags};
use crate::place::feature_cache_path;
use crate::terminal::Terminal;

/// Lists or removes caches.
pub(crate) fn run(command: &CacheCommand, terminal: &Terminal) -> anyhow::Result<()> {
    match command {
        CacheCommand::List(flags) => run_list(flags),
        CacheCommand::Prune(flags) => run_prune(flags, terminal),
    }
}

/// A cache, as `--json` shows it.
#[derive(Serialize)]
struct Shown {
    encoder: String,
    precision: String,
    entries: usize,
    bytes: u64,
    /// Seconds since 1970.
    last_used: Option<u64>,
    path: String,
}

impl From<&CacheEntry> for Shown {
    fn from(entry: &CacheEntry) -> Self {
        let last_used = entry.last_used().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self {
            encoder: entry.encoder_fingerprint.clone(),
            precision: entry.precision.to_string(),
            entries: entry.records,
            bytes: entry.bytes,
            last_used: last_used.map(|since| since.as_secs()),
            path: entry.path.display().to_string(),
        }
    }
}

fn shown(entries: &[CacheEntry]) -> Vec<Shown> {
    entries.iter().map(Shown::from).collect()
}

fn run_list(flags: &CacheListFlags) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Listed {
        path: String,
        bytes: u64,
        caches: Vec<Shown>,
    }
    let root = feature_cache_path()?;
    let entries = list(&root)?;
    let bytes = entries.iter().map(|entry| entry.bytes).sum();
    if flags.json {
        return print_json(&Listed { path: root.display().to_string(), bytes, caches: shown(&entries) });
    }
    let root = root.display();
    if entries.is_empty() {
        return print(&format!("no cached features in {root}\n"));
    }
    print(&format!("{}\n{} in all, in {root}\n", table(&entries), size(bytes)))
}

fn run_prune(flags: &CachePruneFlags, terminal: &Terminal) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Removed {
        dry_run: bool,
        bytes: u64,
        removed: Vec<Shown>,
        in_use: Vec<Shown>,
    }
    let root = feature_cache_path()?;
    let now = SystemTime::now();
    let chosen = |entry: &CacheEntry| {
        let named = flags.encoder.as_ref().is_none_or(|prefix| entry.encoder_fingerprint.starts_with(prefix));
        let old = flags.older_than.is_none_or(|age| unused_for(entry, now) >= age.0);
        named && old
    };
    let (removed, in_use) = if flags.dry_run {
        (list(&root)?.into_iter().filter(chosen).collect(), Vec::new())
    } else {
        let pruned = prune(&root, |entry| !chosen(entry))?;
        (pruned.removed, pruned.in_use)
    };
    let bytes = removed.iter().map(|entry: &CacheEntry| entry.bytes).sum();
    if flags.json {
        let (removed, in_use) = (shown(&removed), shown(&in_use));
        return print_json(&Removed { dry_run: flags.dry_run, bytes, removed, in_use });
    }
    for entry in &in_use {
        terminal.warn(&format!("`{}` is in use and stays", entry.path.display()));
    }
    if removed.is_empty() {
        return print("nothing to remove\n");
    }
    let done = if flags.dry_run { "would be freed" } else { "freed" };
    print(&format!("{}\n{} {done}\n", table(&removed), size(bytes)))
}

/// A clock that was set back counts as just used.
fn unused_for(entry: &CacheEntry, now: SystemTime) -> Duration {
    entry.last_used().and_then(|time| now.duration_since(time).ok()).unwrap_or_default()
}

fn table(entries: &[CacheEntry]) -> String {
    /// Enough of a fingerprint to tell encoders apart, and to type.
    const PREFIX: usize = 16;
    let now = SystemTime::now();
    let mut text =
        "encoder           kind       precision    entries       size  last use    folder\n".to_owned();
    for entry in entries {
        let (name, kind) = match entry.encoder_fingerprint.strip_suffix("-fragments") {
            Some(name) => (name, "fragments"),
            None => (entry.encoder_fingerprint.as_str(), "pooled"),
        };
        let name: String = name.chars().take(PREFIX).collect();
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{name:16}  {kind:9}  {:9} {:>10} {:>10}  {:10}  {}",
            entry.precision.to_string(),
            entry.records,
            size(entry.bytes),
            ago(unused_for(entry, now)),
            entry.path.display()
        );
    }
    text
}

fn ago(time: Duration) -> String {
    match time.as_secs() / 3600 {
        0 => "now".to_owned(),
        hours @ 1..48 => format!("{hours} h ago"),
        hours => format!("{} d ago", hours / 24),
    }
}

/// Bytes in the largest unit of 1,024s that leaves at least one.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 40), "3.0 TiB");
        assert_eq!(size(u64::MAX), "16777216.0 TiB");
    }
}
