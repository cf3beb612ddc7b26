//! `aeir selftest`: whether a device computes what the CPU computes.

use std::fmt::Write;

use anyhow::Context;
use candle_core::{DType, Device};
use serde::Serialize;

use super::{print, print_json};
use crate::device::{DeviceFacts, device_facts};
use crate::failure::CliError;
use crate::flags::selftest::{SelftestFlags, TypeFlag};
use crate::selftest::{Outcome, Outcomes, Verdict, Wanted, lines, names, readable, run as run_checks};
use crate::terminal::Terminal;

/// Backward passes recurse once a node of the graph.
const STACK_BYTES: usize = 256 << 20;

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    commit: Option<&'static str>,
    device: DeviceFacts,
    /// What the device was compared with.
    reference: &'static str,
    passed: bool,
    agree: usize,
    differ: usize,
    failed: usize,
    not_taken: usize,
    /// Checks that were done twice on the device, and those that gave the same bits.
    repeated: usize,
    repeated_alike: usize,
    host_peak_bytes: Option<u64>,
    device_peak_bytes: Option<u64>,
    checks: &'a [Outcome],
}

/// Does the checks and prints a table; fails where one did not agree.
pub(crate) fn run(flags: &SelftestFlags, terminal: &Terminal) -> anyhow::Result<()> {
    if flags.list {
        return print(&(names().join("\n") + "\n"));
    }
    let wanted = wanted(flags)?;
    let device = flags.device.device.open(terminal)?;
    let facts = device_facts(&device);
    terminal.note(&format!("{} against the fused operations of the CPU in f32", against(&device, &facts)));
    let outcomes = checked(&device, &wanted, terminal)?;
    if flags.json {
        print_json(&report(facts, &outcomes))?;
    } else {
        print(&table(&outcomes))?;
    }
    if outcomes.agree() {
        return Ok(());
    }
    let (differ, failed) = (outcomes.count(Verdict::Differs), outcomes.count(Verdict::Failed));
    if differ + failed == 0 {
        return Err(CliError::NothingCompared.into());
    }
    let what = if device.is_cpu() { "the composed way".to_owned() } else { device_facts(&device).name };
    Err(CliError::Selftest { differ, failed, what }.into())
}

fn wanted(flags: &SelftestFlags) -> anyhow::Result<Wanted> {
    let names = names();
    let unknown = |part: &&String| !names.iter().any(|name| name.contains(part.as_str()));
    if let Some(part) = flags.only.iter().find(unknown) {
        return Err(no_check(format!("no check has `{part}` in its name")));
    }
    // One that is spoilt is named whole: a part of a name would spoil nothing.
    if let Some(name) = flags.spoil.as_ref().filter(|name| !names.contains(name)) {
        return Err(no_check(format!("no check is named `{name}`")));
    }
    let mut types: Vec<DType> = Vec::new();
    for flag in &flags.dtype {
        let dtype = match flag {
            TypeFlag::F32 => DType::F32,
            TypeFlag::Bf16 => DType::BF16,
        };
        if !types.contains(&dtype) {
            types.push(dtype);
        }
    }
    Ok(Wanted { only: flags.only.clone(), types, spoil: flags.spoil.clone() })
}

fn no_check(message: String) -> anyhow::Error {
    CliError::Usage { message, hint: "`aeir selftest --list` prints the names".into() }.into()
}

fn against(device: &Device, facts: &DeviceFacts) -> String {
    if device.is_cpu() {
        "the operations that other devices take, on the CPU, in layouts that GPUs take,".to_owned()
    } else {
        facts.name.clone()
    }
}

/// The checks, on a thread with a big stack.
fn checked(device: &Device, wanted: &Wanted, terminal: &Terminal) -> anyhow::Result<Outcomes> {
    let bar = terminal.bar("checking", lines(wanted));
    let outcomes = std::thread::scope(|scope| {
        let work = || {
            run_checks(device, wanted, |outcome| {
                bar.set_message(outcome.name.clone());
                bar.inc(1);
            })
        };
        let thread = std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .context("could not start a thread")?;
        anyhow::Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    bar.finish_and_clear();
    Ok(outcomes)
}

fn report(device: DeviceFacts, outcomes: &Outcomes) -> Report<'_> {
    let (repeated, repeated_alike) = outcomes.repeated();
    Report {
        version: env!("CARGO_PKG_VERSION"),
        commit: crate::device::COMMIT,
        device,
        reference: "the CPU's fused operations in f32",
        passed: outcomes.agree(),
        agree: outcomes.count(Verdict::Agrees),
        differ: outcomes.count(Verdict::Differs),
        failed: outcomes.count(Verdict::Failed),
        not_taken: outcomes.count(Verdict::NotTaken),
        repeated,
        repeated_alike,
        host_peak_bytes: outcomes.host_peak,
        device_peak_bytes: outcomes.device_peak,
        checks: &outcomes.checks,
    }
}

fn table(outcomes: &Outcomes) -> String {
    let mut text = format!(
        "{:9} {:30} {:4}  {:>9} {:>9}  {:9} {:>6} {:>9}\n",
        "kind", "check", "type", "error", "at most", "", "again", "ms"
    );
    for outcome in &outcomes.checks {
        let error = outcome.largest.as_ref().and_then(|largest| largest.error);
        let error = error.map_or_else(|| "-".to_owned(), |error| format!("{error:.1e}"));
        let verdict = match outcome.verdict {
            Verdict::Agrees => "agrees",
            Verdict::Differs => "DIFFERS",
            Verdict::Failed => "FAILED",
            Verdict::NotTaken => "not taken",
        };
        let again = match outcome.repeats {
            Some(true) => "same",
            Some(false) => "other",
            None => "-",
        };
        let milliseconds =
            outcome.seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.1}", 1e3 * seconds));
        // Writing to a String can't fail.
        let _ = write!(
            text,
            "{:9} {:30} {:4}  {error:>9} {:>9.0e}  {verdict:9} {again:>6} {milliseconds:>9}",
            outcome.kind.as_str(),
            outcome.name,
            outcome.dtype,
            outcome.tolerance
        );
        let told = match (outcome.verdict, &outcome.largest, &outcome.reason) {
            (Verdict::Differs, Some(largest), _) => Some(&largest.tensor),
            (_, _, reason) => reason.as_ref(),
        };
        if let Some(told) = told {
            let _ = write!(text, "  {told}");
        }
        text.push('\n');
    }
    text + &summary(outcomes)
}

fn summary(outcomes: &Outcomes) -> String {
    let count = |verdict| outcomes.count(verdict);
    let (repeated, alike) = outcomes.repeated();
    let mut text = format!(
        "\n{} agree, {} differ, {} failed, {} are not done in that type\n",
        count(Verdict::Agrees),
        count(Verdict::Differs),
        count(Verdict::Failed),
        count(Verdict::NotTaken)
    );
    let _ = writeln!(text, "done twice: {alike} of {repeated} gave the same bits");
    let products: usize = outcomes.checks.iter().filter_map(|outcome| outcome.products).sum();
    if products > 0 {
        let _ = writeln!(
            text,
            "{products} matrix products were looked at: GPUs take the layouts of all that agree"
        );
    }
    let memory = [("host", outcomes.host_peak), ("device", outcomes.device_peak)];
    let most: Vec<String> = memory
        .into_iter()
        .filter_map(|(what, bytes)| bytes.map(|bytes| format!("{what} {}", readable(bytes))))
        .collect();
    if !most.is_empty() {
        let _ = writeln!(text, "most memory: {}", most.join(", "));
    }
    text
}
