//! `aeir train --dry-run`: what a training would be.

use std::fmt::Write;

use aeir_train::plan::{Memory, PlannedGroup};
use aeir_train::{Plan, TrainConfig, plan};

use super::train::Inputs;
use super::{pretrained, print};
use crate::flags::TrainFlags;
use crate::selftest::host_peak;
use crate::terminal::Terminal;

/// Items of each kind that are encoded to see sizes and to time a step with.
const SAMPLE: usize = 16;

/// Prints the resolved settings as TOML and the estimates as comments below them, so that the output is a settings file.
pub(super) fn dry_run(flags: &TrainFlags, config: &TrainConfig, terminal: &Terminal) -> anyhow::Result<()> {
    if flags.source.is_empty() && (flags.model.is_none() || flags.target_images.is_none()) {
        terminal.note("parameters, steps, time and memory depend on the data: add --source to see them");
        return print(&config.to_toml()?);
    }
    let device = flags.device.device.open(terminal)?;
    let inputs = Inputs::read(flags, config)?;
    let sizes = inputs.sizes();
    let backbones = inputs.backbones(flags, config, terminal, &device)?;
    let mut config = config.clone();
    pretrained::fit(&mut config, &backbones);
    let mut text = config.to_toml()?;
    let (sample, _) = inputs.sample(SAMPLE).encode(&backbones, flags.loading.limits(), None, terminal)?;
    let plan = plan(&config, &sample, sizes, &device)?;
    text.push('\n');
    for line in describe(&plan, host_peak().and_then(|peak| usize::try_from(peak).ok())).lines() {
        // Writing to a String can't fail.
        let _ = writeln!(text, "# {line}");
    }
    print(&text)
}

fn describe(plan: &Plan, peak: Option<usize>) -> String {
    let mut text = String::from("parameters\n");
    for group in &plan.groups {
        describe_group(group, &mut text);
    }
    let Plan { steps, steps_per_epoch, adapting_steps, seconds: [source, adapting], .. } = plan;
    let _ = writeln!(
        text,
        "steps   {steps}, {steps_per_epoch} an epoch; {} on the source alone, {adapting_steps} with the target",
        steps - adapting_steps
    );
    let times: Vec<String> = [(source, "on the source alone"), (adapting, "with the target")]
        .into_iter()
        .filter_map(|(seconds, what)| Some(format!("{} a step {what}", duration((*seconds)?))))
        .collect();
    let _ = writeln!(
        text,
        "time    {}; about {} in all, without encoding and validation (measured on {SAMPLE} items, repeated)",
        times.join(", "),
        duration(plan.training_seconds())
    );
    let Memory { parameters, optimizer, copies, features, step } = plan.memory;
    let _ = write!(
        text,
        "memory  parameters {}, gradients and moments {}, copies of the weights {}, features {}",
        bytes(parameters),
        bytes(optimizer),
        bytes(copies),
        bytes(features)
    );
    if let Some(step) = step {
        let _ = write!(text, ", a step's graph about {}", bytes(usize::try_from(step).unwrap_or(usize::MAX)));
    }
    if let Some(peak) = peak {
        // The sample's own features are in the peak, and too small to matter.
        let _ = write!(
            text,
            "; about {} in all, the encoders and one step's graph with it",
            bytes(peak + copies + features)
        );
    }
    text.push('\n');
    text
}

fn describe_group(group: &PlannedGroup, text: &mut String) {
    let owner = if group.critics { "critics" } else { "encoders" };
    let what =
        group.pattern.as_ref().map_or_else(|| owner.to_owned(), |pattern| format!("{owner}, `{pattern}`"));
    let how = group.learning_rate.map_or_else(
        || "frozen".to_owned(),
        |rate| format!("learning rate {rate}, weight decay {}", group.weight_decay),
    );
    let (values, count) = (group.values(), group.parameters.len());
    let plural = if count == 1 { "" } else { "s" };
    let _ = writeln!(text, "  {what}: {values} values in {count} tensor{plural}, {how}");
    for (name, shape) in &group.parameters {
        let _ = writeln!(text, "    {name} {shape:?}");
    }
}

fn bytes(count: usize) -> String {
    let mebibytes = count as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 { format!("{mebibytes:.1} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}
