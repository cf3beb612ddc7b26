//! `aeir doctor`: what this program and this machine are, and whether they work together.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device};
use serde::Serialize;

use super::{print, print_json};
use crate::device::{COMMIT, DeviceFacts, Gpu, Why, computes, device_facts, open_gpu};
use crate::failure::CliError;
use crate::flags::selftest::DoctorFlags;
use crate::place::cache_folder;
use crate::selftest::{Verdict, Wanted, readable, run as run_checks};

/// Checks of the small self-test: parts of names.
const SMALL: [&str; 6] = ["linear", "layer-norm", "attention-padded", "gru", "info-nce", "source-only"];
/// Backward passes recurse once a node of the graph.
const STACK_BYTES: usize = 256 << 20;
/// With less free space a cache of features is soon full.
const LITTLE_SPACE: u64 = 1 << 30;

/// How it is with a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It works, or is a fact.
    Fine,
    /// It works, and may not for long.
    Warning,
    /// It does not work.
    Broken,
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    state: State,
    told: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    fn fine(name: &'static str, told: impl Into<String>) -> Self {
        Self { name, state: State::Fine, told: told.into(), hint: None }
    }

    fn warning(name: &'static str, told: impl Into<String>, hint: &str) -> Self {
        Self { name, state: State::Warning, told: told.into(), hint: Some(hint.to_owned()) }
    }

    fn broken(name: &'static str, told: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, state: State::Broken, told: told.into(), hint: Some(hint.into()) }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    commit: Option<&'static str>,
    features: Vec<&'static str>,
    processor: String,
    instructions: Vec<&'static str>,
    threads: usize,
    devices: Vec<DeviceFacts>,
    broken: usize,
    findings: Vec<Finding>,
}

/// Looks at everything and prints a list; fails where something does not work.
pub(crate) fn run(flags: &DoctorFlags) -> anyhow::Result<()> {
    let (devices, mut findings) = devices();
    let facts: Vec<DeviceFacts> = devices.iter().map(device_facts).collect();
    findings.insert(0, program());
    findings.insert(1, processor());
    findings.extend(memory());
    findings.extend(cache());
    for device in &devices {
        findings.push(selftest(device)?);
    }
    let broken = findings.iter().filter(|finding| finding.state == State::Broken).count();
    if flags.json {
        print_json(&Report {
            version: env!("CARGO_PKG_VERSION"),
            commit: COMMIT,
            features: features(),
            processor: device_facts(&Device::Cpu).name,
            instructions: instructions(),
            threads: rayon::current_num_threads(),
            devices: facts,
            broken,
            findings,
        })?;
    } else {
        print(&list(&findings))?;
    }
    if broken == 0 { Ok(()) } else { Err(CliError::Doctor { broken }.into()) }
}

fn list(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.state {
            State::Fine => "ok",
            State::Warning => "warning",
            State::Broken => "BROKEN",
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "{mark:8} {:12} {}", finding.name, finding.told);
        if let Some(hint) = &finding.hint {
            let _ = writeln!(text, "{:8} {:12} hint: {hint}", "", "");
        }
    }
    text
}

/// Cargo features that the program was built with.
fn features() -> Vec<&'static str> {
    [
        ("parquet", cfg!(feature = "parquet")),
        ("serve", cfg!(feature = "serve")),
        ("hub", cfg!(feature = "hub")),
        ("milvus", cfg!(feature = "milvus")),
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("metal", cfg!(feature = "metal")),
        ("mkl", cfg!(feature = "mkl")),
        ("accelerate", cfg!(feature = "accelerate")),
    ]
    .into_iter()
    .filter_map(|(name, built)| built.then_some(name))
    .collect()
}

fn program() -> Finding {
    let commit = COMMIT.map_or_else(String::new, |commit| format!(", commit {commit}"));
    let profile = if cfg!(debug_assertions) { ", built without `--release`: slow" } else { "" };
    let features = features();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    Finding::fine(
        "program",
        format!("aeir {}{commit}{profile}; features {features}", env!("CARGO_PKG_VERSION")),
    )
}

/// Instruction sets that our kernels and candle's choose from.
fn instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    let known = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&'static str, bool); 0] = [];
    known.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

fn processor() -> Finding {
    let name = device_facts(&Device::Cpu).name;
    let found = instructions();
    let told = format!(
        "{name}; {}; {} threads",
        if found.is_empty() { "no wide instructions".to_owned() } else { found.join(", ") },
        rayon::current_num_threads()
    );
    let is_slow = cfg!(target_arch = "x86_64") && !found.contains(&"avx2");
    if is_slow {
        return Finding::warning("processor", told, "without AVX2 everything is several times slower");
    }
    Finding::fine("processor", told)
}

/// The devices that work, the CPU first, and a line for each that there is.
fn devices() -> (Vec<Device>, Vec<Finding>) {
    let mut working = vec![Device::Cpu];
    let mut findings = vec![match computes(&Device::Cpu) {
        Ok(true) => Finding::fine("cpu", "works"),
        Ok(false) => Finding::broken("cpu", "a small product came out wrong", REPORT),
        Err(error) => Finding::broken("cpu", error.to_string(), REPORT),
    }];
    for (gpu, name) in [(Gpu::Cuda, "cuda"), (Gpu::Metal, "metal")] {
        for number in 0..count(gpu) {
            match open_gpu(gpu, number) {
                Ok(device) => {
                    findings.push(Finding::fine(name, described(&device)));
                    working.push(device);
                }
                Err(refusal) => match &refusal.why {
                    Why::NotBuilt => {}
                    Why::Broken(reason) => {
                        let told = format!("{name}:{number}: {reason}");
                        findings.push(Finding::broken(name, told, refusal.hint(reason)));
                    }
                },
            }
        }
    }
    (working, findings)
}

const REPORT: &str = "please report it with what `aeir doctor --json` prints";

/// Cards to try: one where the driver tells no number, so that its error is told.
fn count(gpu: Gpu) -> usize {
    #[cfg(feature = "cuda")]
    if gpu == Gpu::Cuda {
        let count = candle_core::cuda_backend::cudarc::driver::CudaContext::device_count();
        return count.ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(1).max(1);
    }
    usize::from(gpu.is_built())
}

fn described(device: &Device) -> String {
    let DeviceFacts { device, name, compute_capability, driver, cublas, memory_bytes, .. } =
        device_facts(device);
    let mut told = format!("{device}: {name}, works");
    let parts = [
        ("compute capability", compute_capability),
        ("driver for CUDA", driver),
        ("cuBLAS", cublas),
        ("memory", memory_bytes.map(readable)),
    ];
    for (what, value) in parts {
        if let Some(value) = value {
            let _ = write!(told, "; {what} {value}");
        }
    }
    told
}

/// The machine's memory, where the system tells.
fn memory() -> Option<Finding> {
    let (available, total) = crate::host_memory::available()?;
    Some(Finding::fine("memory", format!("{} of {} available", readable(available), readable(total))))
}

/// Where features are kept: its place, whether it can be written, and how much fits.
fn cache() -> Vec<Finding> {
    let set = "set AEIR_CACHE_DIR to a folder that can be written";
    let folder = match cache_folder() {
        Ok(folder) => folder,
        Err(error) => return vec![Finding::broken("cache", error.to_string(), set)],
    };
    let shown = format!("`{}`", folder.display());
    if let Err(error) = write_and_remove(&folder) {
        return vec![Finding::broken("cache", format!("{shown} can't be written: {error}"), set)];
    }
    let free = free_space(&folder);
    let told = free.map_or_else(String::new, |free| format!(", {} free", readable(free)));
    let told = format!("{shown} can be written{told}");
    vec![if free.is_some_and(|free| free < LITTLE_SPACE) {
        Finding::warning(
            "cache",
            told,
            "free some space, or set AEIR_CACHE_DIR; `aeir cache prune` removes what is old",
        )
    } else {
        Finding::fine("cache", told)
    }]
}

fn write_and_remove(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let file = folder.join(format!(".doctor-{}", std::process::id()));
    std::fs::write(&file, b"aeir")?;
    std::fs::remove_file(&file)
}

/// Space that this user may still fill, in bytes.
fn free_space(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
        // SAFETY: the path ends with a zero; a struct of numbers may be all zeros, and the call writes into it alone.
        let space = unsafe {
            let mut space: libc::statvfs = std::mem::zeroed();
            (libc::statvfs(path.as_ptr(), &raw mut space) == 0).then_some(space)
        }?;
        Some((space.f_bavail as u64).saturating_mul(space.f_frsize as u64))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// A few checks of `aeir selftest`, in f32.
fn selftest(device: &Device) -> anyhow::Result<Finding> {
    let wanted = Wanted { only: SMALL.map(str::to_owned).to_vec(), types: vec![DType::F32], spoil: None };
    let outcomes = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || run_checks(device, &wanted, |_| ()))
            .context("could not start a thread")?;
        anyhow::Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let (agree, all) = (outcomes.count(Verdict::Agrees), outcomes.checks.len());
    // With its number: there may be several cards.
    let name = device_facts(device).device;
    let told = format!("{agree} of {all} small checks agree on {name}");
    if agree == all {
        return Ok(Finding::fine("selftest", told));
    }
    let first = outcomes.checks.iter().find(|outcome| outcome.verdict != Verdict::Agrees);
    let first =
        first.map_or_else(String::new, |outcome| format!("; the first that does not is `{}`", outcome.name));
    Ok(Finding::broken(
        "selftest",
        told + &first,
        format!("`aeir selftest --device {name}` shows what differs"),
    ))
}
