//! What a cell of the paper's suite takes, before it is started.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

use super::paper::{Row, Scenario};
use super::stand_in::make_for_timing;
use crate::binary::output;

/// Operations a second that a GPU is taken to keep up in f32, products of this size and all between them. A guess: nothing was measured on one.
const GPU_OPERATIONS: f64 = 1e12;
const SENTENCE_WORDS: f64 = 14.0;
const REGIONS: f64 = 36.0;

/// Measured steps, kept by program: a measurement takes a while.
pub(super) struct Estimates<'a> {
    pub(super) root: &'a Path,
    pub(super) binary: &'a Path,
    pub(super) program: &'a str,
    pub(super) results: &'a Path,
}

/// What one cell takes on this machine's processor.
#[derive(Debug, PartialEq)]
struct Estimate {
    hours: f64,
    /// Of a step, on the source alone and with the target.
    steps: [f64; 2],
    memory: String,
    gpu_hours: f64,
}

impl Estimates<'_> {
    /// A line a cell that is to be run.
    pub(super) fn text(&self, cells: &[(&Scenario, &Row)]) -> anyhow::Result<String> {
        let mut text = String::from(
            "Estimates a seed. CPU: this machine's time for a step of the paper's shapes (`aeir train --dry-run`: 36 regions of 2,048 numbers, 16 \
             items repeated), times the steps of the whole data; encoding, validation and scoring come on top. GPU: not measured; the operations of \
             the same steps at 1 TFLOP/s in f32, a guess for products this small. Memory: the step's peak; region files are mapped, and fast only where \
             they fit into the page cache (9 GB and 37 GB).\n",
        );
        let _ = writeln!(
            text,
            "  {:<14} {:<24} {:>12} {:>12} {:>12} {:>10}  memory",
            "scenario", "row", "step, source", "with target", "CPU", "GPU"
        );
        for (scenario, row) in cells {
            let it = self.of(scenario, row)?;
            let _ = writeln!(
                text,
                "  {:<14} {:<24} {:>10.2} s {:>10.2} s {:>10.1} h {:>8.1} h  {}",
                scenario.name, row.name, it.steps[0], it.steps[1], it.hours, it.gpu_hours, it.memory
            );
        }
        Ok(text)
    }

    fn of(&self, scenario: &Scenario, row: &Row) -> anyhow::Result<Estimate> {
        let config: toml::Table = std::fs::read_to_string(scenario.config(self.root))?.parse()?;
        let printed = self.measured(scenario, row)?;
        let resolved: toml::Table = printed.parse().context("what `aeir train --dry-run` printed")?;
        estimate(&printed, &resolved, &config, scenario.source().pictures(), row.oracle_pictures(scenario))
            .with_context(|| format!("`aeir train --dry-run` printed no times:\n{printed}"))
    }

    /// The dry run's text. Rows that differ in numbers alone share one: a step of theirs does the same.
    fn measured(&self, scenario: &Scenario, row: &Row) -> anyhow::Result<String> {
        let key = row.kind_of_step(scenario);
        let file = self.results.join("steps.json");
        let known =
            std::fs::read_to_string(&file).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let mut known = known
            .filter(|known| known["program"] == self.program)
            .unwrap_or_else(|| json!({ "program": self.program }));
        if let Some(text) = known[&key].as_str() {
            return Ok(text.to_owned());
        }
        let data = self.results.join("timing");
        if !data.join("coco_precomp").join("train_ims.npy").is_file() {
            make_for_timing(self.root, self.binary, &data)?;
        }
        let mut command = Command::new(self.binary);
        let arguments = scenario.training(row, self.root, &data);
        let text = output(command.args(["train", "--dry-run", "--quiet"]).args(arguments))?;
        known[&key] = text.clone().into();
        std::fs::write(&file, known.to_string())?;
        Ok(text)
    }
}

/// Steps of the whole data times what one takes.
fn estimate(
    printed: &str,
    resolved: &toml::Table,
    config: &toml::Table,
    pictures: f64,
    more: f64,
) -> Option<Estimate> {
    let number = |table: &toml::Table, key: &str| {
        table.get(key).and_then(|it| it.as_float().or_else(|| it.as_integer().map(|it| it as f64)))
    };
    let line = |name: &str| {
        Some(printed.lines().find_map(|line| line.strip_prefix("# ")?.strip_prefix(name))?.trim())
    };
    let times = line("time")?;
    let source = times.split(" a step on the source alone").next().and_then(seconds)?;
    let target = times
        .split(" a step with the target")
        .next()
        .and_then(|text| seconds(text.rsplit(", ").next()?))
        .unwrap_or(source);
    let (epochs, batch) = (number(resolved, "epochs")?, number(resolved, "batch_size")?);
    let share = config
        .get("adaptation")
        .and_then(|it| it.as_table())
        .and_then(|it| number(it, "source_share"))
        .unwrap_or(1.0);
    let steps = epochs * ((pictures + more) / batch).ceil();
    let adapting = if times.contains("with the target") { 1.0 - share } else { 0.0 };
    let memory = line("memory")?.rsplit("about ").next()?.split(" in all").next()?.to_owned();
    let model = resolved.get("model")?.as_table()?;
    let width = number(model, "embedding_dimension")?;
    let similarity = model
        .get("head_options")
        .and_then(|it| it.as_table())
        .and_then(|it| number(it, "similarity_dimension"))
        .unwrap_or(0.0);
    // Attention both ways and the projection of what is compared, for all pairs, and twice as much backwards.
    let pair = SENTENCE_WORDS * (4.0 * REGIONS * width + 2.0 * width * similarity);
    let operations = 3.0 * batch * batch * pair * (1.0 + adapting);
    Some(Estimate {
        hours: steps * (source * (1.0 - adapting) + target * adapting) / 3600.0,
        steps: [source, target],
        memory,
        gpu_hours: steps * operations / GPU_OPERATIONS / 3600.0,
    })
}

/// `12.5 ms`, `1.5 s`, `3 min`, `2.0 h`, in seconds.
fn seconds(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace().rev();
    let (unit, value) = (words.next()?, words.next()?.parse::<f64>().ok()?);
    let factor = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Some(value * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_the_whole_data_are_counted() {
        let printed = "# steps   9, 3 an epoch; 6 on the source alone, 3 with the target\n\
                       # time    500.0 ms a step on the source alone, 1.5 s a step with the target; about 9.0 s in all, without encoding\n\
                       # memory  parameters 1.0 MiB, features 1.0 MiB; about 1.5 GiB in all, the encoders\n";
        let resolved: toml::Table =
            "epochs = 10\nbatch_size = 50\n[model]\nembedding_dimension = 1000\n".parse().unwrap();
        let config: toml::Table = "[adaptation]\nsource_share = 0.9\n".parse().unwrap();
        let found = estimate(printed, &resolved, &config, 990.0, 0.0).unwrap();
        assert_eq!((found.steps, found.memory.as_str()), ([0.5, 1.5], "1.5 GiB"));
        assert!((found.hours - 200.0 * (0.5 * 0.9 + 1.5 * 0.1) / 3600.0).abs() < 1e-9);
        assert!(estimate("# nothing\n", &resolved, &config, 1.0, 0.0).is_none());
    }

    #[test]
    fn durations_are_read_as_they_are_printed() {
        assert_eq!(
            [seconds("12.5 ms"), seconds("time 3 min"), seconds("2.0 h"), seconds("soon")],
            [Some(0.0125), Some(180.0), Some(7200.0), None]
        );
    }
}
