//! `cargo xtask gpu-check`: proof on a machine with a card, in one command.
//!
//! Runs `aeir doctor` and `aeir selftest` on the device, then the benchmarks beside PyTorch, and writes one report with the card and
//! its driver. Time on a card is dear: what one part has found is kept when another fails.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::tree::workspace_root;
use crate::{binary, complain, cuda, say};

pub(crate) const HELP: &str = "\
cargo xtask gpu-check [OPTIONS]

Checks a device and times our work on it beside PyTorch's. Needs a card; without one it says what is missing and fails.

  --device NAME        cuda, cuda:N or metal [default: cuda]
  --binary FILE        An `aeir` that is built already [default: builds one; for CUDA as `cargo xtask cuda build` does, for the
                       compute capability of the card at hand]
  --output FILE        The report as JSON [default: target/gpu-check.json]
  --python FILE        A Python with PyTorch for that device [default: python3]; without one our figures stand alone
  --text-encoder DIR   A BERT such as MiniLM, to time encoding
  --image-encoder DIR  A CLIP such as ViT-B/32, to time encoding
  --batch-size N       Pairs of a SAF step [default: 128]
  --quick              Tiny sizes, to see that everything runs
";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Options {
    device: String,
    binary: Option<PathBuf>,
    output: Option<PathBuf>,
    python: PathBuf,
    text_encoder: Option<PathBuf>,
    image_encoder: Option<PathBuf>,
    batch_size: usize,
    quick: bool,
}

impl Options {
    /// None where help was asked for.
    fn parse(words: &[&str]) -> anyhow::Result<Option<Self>> {
        let mut options = Self {
            device: "cuda".into(),
            binary: None,
            output: None,
            python: "python3".into(),
            text_encoder: None,
            image_encoder: None,
            batch_size: 128,
            quick: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("`{word}` needs a value\n\n{HELP}"));
            match *word {
                "--help" | "-h" => return Ok(None),
                "--quick" => options.quick = true,
                "--device" => options.device = (*value()?).to_owned(),
                "--binary" => options.binary = Some(value()?.into()),
                "--output" => options.output = Some(value()?.into()),
                "--python" => options.python = value()?.into(),
                "--text-encoder" => options.text_encoder = Some(value()?.into()),
                "--image-encoder" => options.image_encoder = Some(value()?.into()),
                "--batch-size" => {
                    options.batch_size =
                        value()?.parse().context("`--batch-size` needs a number of pairs")?;
                }
                other => bail!("no option `{other}`\n\n{HELP}"),
            }
        }
        if options.device != "metal" && options.device != "cuda" && !options.device.starts_with("cuda:") {
            bail!("`--device` is `{}`: expected cuda, cuda:N or metal", options.device);
        }
        Ok(Some(options))
    }

    /// The Cargo feature that the device needs.
    fn feature(&self) -> &str {
        self.device.split(':').next().unwrap_or(&self.device)
    }
}

/// Runs everything and writes the report; fails at the end where the selftest or a benchmark did.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<()> {
    let Some(options) = Options::parse(words)? else { return say(HELP) };
    let root = workspace_root()?;
    let file = options.output.clone().unwrap_or_else(|| root.join("target").join("gpu-check.json"));
    let aeir = Aeir::of(&options, &root)?;
    let doctor = aeir.json(&["doctor", "--json"], Exit::Any)?;
    check_device(&options, &doctor)?;
    say("selftest\n")?;
    let selftest = or_failed(aeir.json(&["selftest", "--json", "--device", &options.device], Exit::Any));
    let mut report = json!({ "doctor": doctor, "selftest": selftest });
    // The benchmarks take long, and may not end.
    write(&file, &report)?;
    say(&card(&report))?;
    report["aeir"] = benches(&aeir)?;
    report["pytorch"] = peers(&options, &root);
    write(&file, &report)?;
    say(&table(&report))?;
    say(&format!("report  {}\n", file.display()))?;
    passed(&options, &report)
}

fn write(file: &Path, report: &Value) -> anyhow::Result<()> {
    std::fs::write(file, serde_json::to_string_pretty(report)? + "\n")
        .with_context(|| format!("could not write `{}`", file.display()))
}

/// What was found, or why nothing was.
fn or_failed(found: anyhow::Result<Value>) -> Value {
    found.unwrap_or_else(|error| json!({ "failed": format!("{error:#}").trim() }))
}

/// The parts that failed, each with why.
fn failures(report: &Value) -> Vec<(&str, &str)> {
    let benches = report.get("aeir").and_then(Value::as_object).into_iter().flatten();
    let parts = report.get("selftest").map(|selftest| ("selftest", selftest));
    parts
        .into_iter()
        .chain(benches.map(|(name, part)| (name.as_str(), part)))
        // The selftest's own `failed` is a number.
        .filter_map(|(name, part)| Some((name, part.get("failed")?.as_str()?)))
        .collect()
}

/// Whether a search on the card has found something else than the processor.
fn differs(report: &Value) -> bool {
    let rows = report.pointer("/aeir/search/on_card").and_then(Value::as_array).into_iter().flatten();
    rows.into_iter().any(|row| row.get("same") != Some(&Value::Bool(true)))
}

/// Whether all is well, once everything is told.
fn passed(options: &Options, report: &Value) -> anyhow::Result<()> {
    if report.pointer("/selftest/passed") != Some(&Value::Bool(true)) {
        bail!("the selftest did not pass: `aeir selftest --device {}` shows what differs", options.device);
    }
    let failed: Vec<&str> = failures(report).into_iter().map(|(name, _)| name).collect();
    if differs(report) {
        bail!(
            "exact search on the card is not the processor's: `aeir bench search --device {}`",
            options.device
        );
    }
    if !failed.is_empty() {
        bail!("benchmarks failed: {}; the report says why", failed.join(", "));
    }
    Ok(())
}

/// Refuses before a long build where no card can be.
fn check_driver(options: &Options) -> anyhow::Result<()> {
    let missing = match options.feature() {
        "metal" => (!cfg!(target_os = "macos")).then(|| "Metal is there on a Mac alone".to_owned()),
        _ => match Command::new("nvidia-smi").arg("-L").output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => {
                Some(format!("`nvidia-smi -L` failed: {}", String::from_utf8_lossy(&output.stdout).trim()))
            }
            Err(error) => Some(format!("no NVIDIA driver: could not run `nvidia-smi`: {error}")),
        },
    };
    match missing {
        Some(why) => bail!(
            "no {} device can be here: {why}. On a machine with a card run this again, or give a program with --binary",
            options.feature()
        ),
        None => Ok(()),
    }
}

/// The capability to build for: that of the cards at hand, or the usual one where the driver's tool does not tell.
fn capability_here() -> String {
    let asked =
        Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output();
    let listed = asked.ok().filter(|output| output.status.success());
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    listed.and_then(|listed| oldest_capability(&listed)).unwrap_or_else(|| cuda::USUAL_CAPABILITY.to_owned())
}

/// The least of capabilities such as `9.0`, one a line, without its dot: what is built for it runs on all of these cards, whichever
/// `--device` names. None where a line is something else, such as `[N/A]`.
fn oldest_capability(listed: &str) -> Option<String> {
    let parsed = |line: &str| {
        let (major, minor) = line.trim().split_once('.')?;
        Some((major.parse::<u8>().ok()?, minor.parse::<u8>().ok().filter(|minor| *minor < 10)?))
    };
    let cards: Option<Vec<(u8, u8)>> =
        listed.lines().filter(|line| !line.trim().is_empty()).map(parsed).collect();
    let (major, minor) = cards?.into_iter().min()?;
    Some(format!("{major}{minor}"))
}

/// Whether a failure of the program is one of ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    Success,
    /// Its report says what failed.
    Any,
}

struct Aeir<'a> {
    program: PathBuf,
    /// Where its libraries lie, where they come from its build.
    libraries: Vec<PathBuf>,
    options: &'a Options,
}

impl<'a> Aeir<'a> {
    /// The program that is named, or one that is built now.
    fn of(options: &'a Options, root: &Path) -> anyhow::Result<Self> {
        if let Some(program) = &options.binary {
            return Ok(Self { program: std::path::absolute(program)?, libraries: Vec::new(), options });
        }
        check_driver(options)?;
        if options.feature() == "cuda" {
            // A plain build needs an installed toolkit: a machine with a card may have none.
            let cuda::Built { binary, libraries } = cuda::built(&capability_here())?;
            return Ok(Self { program: binary, libraries, options });
        }
        let program = binary::release_with(root, &[options.feature()])?;
        Ok(Self { program, libraries: Vec::new(), options })
    }

    /// The JSON that it prints.
    fn json(&self, arguments: &[&str], exit: Exit) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.program);
        if !self.libraries.is_empty() {
            let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            command.env("LD_LIBRARY_PATH", library_path(&self.libraries, &given)?);
        }
        let output = command.args(arguments).output().with_context(|| {
            format!(
                "could not run `{}`: a program for CUDA needs libcuda.so.1 and CUDA's libraries to start (docs/cuda.md)",
                self.program.display()
            )
        })?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() && exit == Exit::Success {
            bail!("`aeir {}` failed:\n{complaint}", arguments.join(" "));
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`aeir {}` printed no report:\n{complaint}", arguments.join(" ")))
    }

    /// What a benchmark found, or why it failed.
    fn bench(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        say(&format!("aeir bench {}\n", arguments.join(" ")))?;
        let all: Vec<&str> = ["bench"]
            .iter()
            .chain(arguments)
            .chain(&["--json", "--device", &self.options.device])
            .copied()
            .collect();
        self.told(&all)
    }

    /// The JSON of a benchmark; its failure is told at once, and does not end the others.
    fn told(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let found = self.json(arguments, Exit::Success);
        if let Err(error) = &found {
            complain(&format!("{error:#}\n"))?;
        }
        Ok(or_failed(found))
    }
}

/// These folders, then what was given, without folders that hold a stand-in for the driver: it would hide the real one.
fn library_path(libraries: &[PathBuf], given: &OsString) -> anyhow::Result<OsString> {
    let given = std::env::split_paths(given)
        .filter(|folder| !folder.as_os_str().is_empty() && !folder.ends_with("stubs"));
    Ok(std::env::join_paths(libraries.iter().cloned().chain(given))?)
}

/// Refuses to go on without the device, and says what is missing.
fn check_device(options: &Options, doctor: &Value) -> anyhow::Result<()> {
    let kind = options.feature();
    let devices = doctor.pointer("/devices").and_then(Value::as_array);
    let is_there = devices.is_some_and(|devices| {
        devices.iter().any(|device| device.get("kind").and_then(Value::as_str) == Some(kind))
    });
    if is_there {
        return Ok(());
    }
    let built = doctor
        .pointer("/features")
        .and_then(Value::as_array)
        .is_some_and(|features| features.iter().any(|feature| feature.as_str() == Some(kind)));
    if !built {
        bail!("this aeir was built without {kind}: leave --binary out, or build it with `--features {kind}`");
    }
    let told = doctor.pointer("/findings").and_then(Value::as_array).into_iter().flatten();
    let reasons: Vec<String> = told
        .filter(|finding| finding.get("name").and_then(Value::as_str) == Some(kind))
        .filter_map(|finding| finding.get("told").and_then(Value::as_str).map(str::to_owned))
        .collect();
    bail!("no {kind} device works here: {}", reasons.join("; "))
}

/// Our own figures.
fn benches(aeir: &Aeir<'_>) -> anyhow::Result<Value> {
    let Options { batch_size, quick, .. } = aeir.options;
    let batch = batch_size.to_string();
    let mut train = vec!["train", "--batch-size", &batch];
    if *quick {
        train = vec!["train", "--quick"];
    }
    let mut found = json!({ "train": aeir.bench(&train)? });
    let encoders = [
        ("sentences", "--text-encoder", &aeir.options.text_encoder),
        ("images", "--image-encoder", &aeir.options.image_encoder),
    ];
    for (name, flag, folder) in encoders {
        let size = if *quick { "2" } else { "256" };
        found[name] = match folder {
            Some(folder) => {
                let folder = folder.to_string_lossy();
                aeir.bench(&["encode", flag, &folder, "--batch-size", size])?
            }
            None => json!({ "missing": format!("name an encoder with {flag}") }),
        };
    }
    let (items, queries) = if *quick { ("2000", "20") } else { ("1000000", "1000") };
    // A graph of so many items takes minutes to build, and a card does not search it.
    let search = [
        "search",
        "--items",
        items,
        "--dimension",
        "512",
        "--queries",
        queries,
        "--storage",
        "f32,f16",
        "--approximate=no",
    ];
    found["search"] = aeir.bench(&search)?;
    Ok(found)
}

/// PyTorch's figures, or what is missing for them.
fn peers(options: &Options, root: &Path) -> Value {
    let missing = |why: String| json!({ "missing": why });
    let script = root.join("benches/peers/gpu_speed.py");
    let device = if options.device == "metal" { "mps" } else { &options.device };
    let batch = options.batch_size.to_string();
    let mut command = Command::new(&options.python);
    command.arg(&script).args(["--compile", "--device", device, "--batch-size", &batch]);
    for (flag, folder) in [("--minilm", &options.text_encoder), ("--clip", &options.image_encoder)] {
        if let Some(folder) = folder {
            command.arg(flag).arg(folder);
        }
    }
    if options.quick {
        command.arg("--quick");
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return missing(format!("could not run `{}`: {error}", options.python.display())),
    };
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = complaint.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        return missing(format!("`{} gpu_speed.py`: {last}", options.python.display()));
    }
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| missing(error.to_string()))
}

/// The card and its selftest, for people.
fn card(report: &Value) -> String {
    let text = |pointer: &str| report.pointer(pointer).and_then(Value::as_str).unwrap_or("-");
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
    format!(
        "card    {}, compute capability {}, driver for CUDA {}\nselftest  {} agree, {} differ, {} failed\n",
        text("/selftest/device/name"),
        text("/selftest/device/compute_capability"),
        text("/selftest/device/driver"),
        number("/selftest/agree"),
        number("/selftest/differ"),
        number("/selftest/failed"),
    )
}

/// All of it, for people.
fn table(report: &Value) -> String {
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
    let mut table =
        format!("\n{}\n{:34} {:>12} {:>12} {:>14}\n", card(report), "", "aeir", "PyTorch", "torch.compile");
    let milliseconds = |pointer: &str| number(pointer).map(|seconds| 1e3 * seconds);
    let rows = [
        (
            "SAF step, ms",
            milliseconds("/aeir/train/step_seconds"),
            milliseconds("/pytorch/runs/0/saf_step_seconds"),
            milliseconds("/pytorch/runs/1/saf_step_seconds"),
        ),
        (
            "sentences encoded a second",
            number("/aeir/sentences/text/network_sentences_per_second")
                .or_else(|| number("/aeir/sentences/text/sentences_per_second")),
            number("/pytorch/runs/0/sentences_per_second"),
            number("/pytorch/runs/1/sentences_per_second"),
        ),
        (
            "images encoded a second",
            number("/aeir/images/image/network_images_per_second"),
            number("/pytorch/runs/0/images_per_second"),
            number("/pytorch/runs/1/images_per_second"),
        ),
        (
            "exact search, queries a second",
            number("/aeir/search/on_card/0/queries_per_second"),
            number("/pytorch/runs/0/queries_per_second"),
            None,
        ),
        ("  with a first pass in 16 bits", number("/aeir/search/on_card/1/queries_per_second"), None, None),
        ("  of 16-bit vectors", number("/aeir/search/on_card/2/queries_per_second"), None, None),
        ("  on the processor", number("/aeir/search/exact/0/queries_per_second"), None, None),
    ];
    for (name, ours, eager, compiled) in rows {
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        // Writing to a String can't fail.
        let _ = writeln!(table, "{name:34} {:>12} {:>12} {:>14}", shown(ours), shown(eager), shown(compiled));
    }
    if differs(report) {
        table.push_str("DIFFERS: exact search on the card is not the processor's to the bit\n");
    }
    for pointer in ["/pytorch/missing", "/aeir/sentences/missing", "/aeir/images/missing"] {
        if let Some(why) = report.pointer(pointer).and_then(Value::as_str) {
            let _ = writeln!(table, "missing: {why}");
        }
    }
    for (name, why) in failures(report) {
        let _ = writeln!(table, "FAILED: {name}: {why}");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_parse_and_wrong_ones_are_told() {
        let options =
            Options::parse(&["--device", "cuda:1", "--quick", "--batch-size", "8"]).unwrap().unwrap();
        assert_eq!((options.feature(), options.batch_size, options.quick), ("cuda", 8, true));
        assert!(Options::parse(&["--help"]).unwrap().is_none());
        for wrong in [&["--device", "cpu"][..], &["--device"], &["--batch-size", "x"], &["--fast"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn no_build_is_begun_where_no_card_can_be() {
        if cfg!(target_os = "macos") {
            return;
        }
        let options = Options::parse(&["--device", "metal"]).unwrap().unwrap();
        assert!(check_driver(&options).unwrap_err().to_string().contains("on a Mac"));
    }

    #[test]
    fn capabilities_of_cards_are_read_and_the_oldest_is_built_for() {
        for (listed, oldest) in [
            ("9.0\n", Some("90")),
            ("8.9\r\n\n", Some("89")),
            ("12.0\n9.0\n", Some("90")),
            ("7.5\n 7.0 \n", Some("70")),
            ("", None),
            ("[N/A]\n", None),
            ("9.0\n[Unknown Error]\n", None),
            ("Field \"compute_cap\" is not a valid field to query.\n", None),
            ("9\n", None),
            ("9.x\n", None),
            ("9.10\n", None),
        ] {
            assert_eq!(oldest_capability(listed).as_deref(), oldest, "{listed:?}");
        }
    }

    #[test]
    fn without_the_device_it_says_what_is_missing() {
        let options = Options::parse(&[]).unwrap().unwrap();
        let told = |doctor: Value| check_device(&options, &doctor).unwrap_err().to_string();
        let plain = json!({ "features": ["serve"], "devices": [{ "kind": "cpu" }], "findings": [] });
        assert!(told(plain).contains("built without cuda"));
        let no_card = json!({
            "features": ["cuda"],
            "devices": [{ "kind": "cpu" }],
            "findings": [{ "name": "cuda", "told": "cuda:0: CUDA_ERROR_NO_DEVICE" }],
        });
        assert!(told(no_card).contains("CUDA_ERROR_NO_DEVICE"));
        let there = json!({ "features": ["cuda"], "devices": [{ "kind": "cuda" }] });
        assert!(check_device(&options, &there).is_ok());
    }

    #[test]
    fn the_table_holds_what_there_is_and_names_what_is_missing() {
        let report = json!({
            "selftest": { "agree": 3, "differ": 0, "failed": 0, "device": { "name": "A card" } },
            "aeir": {
                "train": { "step_seconds": 0.0125 },
                "images": { "missing": "name an encoder" },
                "search": {
                    "exact": [{ "queries_per_second": 77.0 }],
                    "on_card": [{ "queries_per_second": 40_000.0, "same": true }],
                },
            },
            "pytorch": { "runs": [{ "saf_step_seconds": 0.025 }] },
        });
        let table = table(&report);
        assert!(table.contains("40000.0") && table.contains("77.0") && !table.contains("DIFFERS"), "{table}");
        assert!(table.contains("A card") && table.contains("12.5") && table.contains("25.0"), "{table}");
        assert!(table.contains("missing: name an encoder"), "{table}");
        let mut other = report;
        other["aeir"]["search"]["on_card"][0]["same"] = json!(false);
        assert!(super::table(&other).contains("DIFFERS: exact search"));
        other["selftest"]["passed"] = json!(true);
        let options = Options::parse(&[]).unwrap().unwrap();
        assert!(passed(&options, &other).unwrap_err().to_string().contains("is not the processor's"));
    }

    #[test]
    fn the_stand_in_for_the_driver_is_not_where_libraries_are_looked_for() {
        let given = std::env::join_paths(["kit/lib64/stubs", "", "usual"]).unwrap();
        let path = library_path(&["kit/lib64".into()], &given).unwrap();
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        assert_eq!(folders, [PathBuf::from("kit/lib64"), PathBuf::from("usual")]);
    }

    /// What comes of a program that answers so, in words of the shell, and of all the rest as `aeir` does.
    #[cfg(unix)]
    fn checked(selftest: &str, train: &str) -> (anyhow::Result<()>, Value) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (program, file) = (folder.path().join("aeir"), folder.path().join("report.json"));
        let script = format!(
            "#!/bin/sh\ncase \"$1 $2\" in\n'doctor --json') echo '{{\"devices\":[{{\"kind\":\"cuda\"}}]}}' ;;\n\
             'selftest --json') {selftest} ;;\n'bench train') {train} ;;\n*) echo '{{\"seconds\":1}}' ;;\nesac\n"
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (program, output) = (program.to_str().unwrap(), file.to_str().unwrap());
        let outcome =
            run(&["--quick", "--binary", program, "--output", output, "--python", "no-such-python"]);
        (outcome, serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap())
    }

    #[cfg(unix)]
    #[test]
    fn a_failed_benchmark_takes_nothing_along_and_fails_at_the_end() {
        let (outcome, report) = checked("echo '{\"passed\":true}'", "echo no memory left >&2; exit 1");
        assert!(outcome.unwrap_err().to_string().contains("benchmarks failed: train"));
        assert_eq!(report["selftest"]["passed"], true);
        assert!(report["aeir"]["train"]["failed"].as_str().unwrap().contains("no memory left"), "{report}");
        assert_eq!(report["aeir"]["search"]["seconds"], 1);
        assert!(table(&report).contains("FAILED: train"));
    }

    #[cfg(unix)]
    #[test]
    fn a_selftest_that_ends_early_leaves_the_benchmarks() {
        let (outcome, report) = checked("echo a crash >&2; exit 134", "echo '{\"step_seconds\":1}'");
        assert!(outcome.unwrap_err().to_string().contains("the selftest did not pass"));
        assert!(report["selftest"]["failed"].as_str().unwrap().contains("a crash"), "{report}");
        assert_eq!(report["aeir"]["train"]["step_seconds"], 1);
        let (outcome, _) = checked("echo '{\"passed\":true}'", "echo '{\"step_seconds\":1}'");
        assert!(outcome.is_ok());
    }
}
