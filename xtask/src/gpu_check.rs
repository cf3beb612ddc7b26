//! `cargo xtask gpu-check`: proof on a machine with a card, in one command.
//!
//! Runs `aeir doctor` and `aeir selftest` on the device, then the benchmarks beside PyTorch, and writes one report with the card and
//! its driver.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::tree::workspace_root;
use crate::{binary, say};

pub(crate) const HELP: &str = "\
cargo xtask gpu-check [OPTIONS]

Checks a device and times our work on it beside PyTorch's. Needs a card; without one it says what is missing and fails.

  --device NAME        cuda, cuda:N or metal [default: cuda]
  --binary FILE        An `aeir` that is built already [default: builds target/release/aeir with the device's feature]
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

/// Runs everything and writes the report; fails where the selftest did.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<()> {
    let Some(options) = Options::parse(words)? else { return say(HELP) };
    let root = workspace_root()?;
    let program = match &options.binary {
        Some(program) => std::path::absolute(program)?,
        None => {
            check_driver(&options)?;
            binary::release_with(&root, &[options.feature()])?
        }
    };
    let aeir = Aeir { program, options: &options };
    let doctor = aeir.json(&["doctor", "--json"], Exit::Any)?;
    check_device(&options, &doctor)?;
    say("selftest\n")?;
    let selftest = aeir.json(&["selftest", "--json", "--device", &options.device], Exit::Any)?;
    let benches = benches(&aeir)?;
    let peers = peers(&options, &root);
    let report = json!({ "doctor": doctor, "selftest": selftest, "aeir": benches, "pytorch": peers });
    let file = options.output.clone().unwrap_or_else(|| root.join("target").join("gpu-check.json"));
    std::fs::write(&file, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("could not write `{}`", file.display()))?;
    say(&table(&report))?;
    say(&format!("report  {}\n", file.display()))?;
    if report.pointer("/selftest/passed") != Some(&Value::Bool(true)) {
        bail!("the selftest did not pass: `aeir selftest --device {}` shows what differs", options.device);
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

/// Whether a failure of the program is one of ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    Success,
    /// Its report says what failed.
    Any,
}

struct Aeir<'a> {
    program: PathBuf,
    options: &'a Options,
}

impl Aeir<'_> {
    /// The JSON that it prints.
    fn json(&self, arguments: &[&str], exit: Exit) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.program);
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

    fn bench(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        say(&format!("aeir bench {}\n", arguments.join(" ")))?;
        let all: Vec<&str> = ["bench"]
            .iter()
            .chain(arguments)
            .chain(&["--json", "--device", &self.options.device])
            .copied()
            .collect();
        self.json(&all, Exit::Success)
    }
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

/// Our own figures. Search computes on the processor: there is none for a GPU.
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
    let search = [
        "bench",
        "search",
        "--json",
        "--items",
        items,
        "--dimension",
        "512",
        "--queries",
        queries,
        "--storage",
        "f32",
    ];
    say("aeir bench search, on the processor\n")?;
    found["search_on_the_processor"] = aeir.json(&search, Exit::Success)?;
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

/// For people.
fn table(report: &Value) -> String {
    let text = |pointer: &str| report.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
    let mut table = format!(
        "\ncard    {}, compute capability {}, driver for CUDA {}\nselftest  {} agree, {} differ, {} failed\n\n{:34} {:>12} {:>12} {:>14}\n",
        text("/selftest/device/name"),
        text("/selftest/device/compute_capability"),
        text("/selftest/device/driver"),
        number("/selftest/agree").unwrap_or(0.0),
        number("/selftest/differ").unwrap_or(0.0),
        number("/selftest/failed").unwrap_or(0.0),
        "",
        "aeir",
        "PyTorch",
        "torch.compile",
    );
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
            number("/aeir/search_on_the_processor/exact/0/queries_per_second"),
            number("/pytorch/runs/0/queries_per_second"),
            None,
        ),
    ];
    for (name, ours, eager, compiled) in rows {
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        // Writing to a String can't fail.
        let _ = writeln!(table, "{name:34} {:>12} {:>12} {:>14}", shown(ours), shown(eager), shown(compiled));
    }
    table.push_str("aeir searches on the processor, PyTorch on the card\n");
    for pointer in ["/pytorch/missing", "/aeir/sentences/missing", "/aeir/images/missing"] {
        if let Some(why) = report.pointer(pointer).and_then(Value::as_str) {
            let _ = writeln!(table, "missing: {why}");
        }
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
            "aeir": { "train": { "step_seconds": 0.0125 }, "images": { "missing": "name an encoder" } },
            "pytorch": { "runs": [{ "saf_step_seconds": 0.025 }] },
        });
        let table = table(&report);
        assert!(table.contains("A card") && table.contains("12.5") && table.contains("25.0"), "{table}");
        assert!(table.contains("missing: name an encoder"), "{table}");
    }
}
