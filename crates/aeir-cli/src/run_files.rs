//! What a run leaves beside its model when it ends: which epoch was chosen, a table and pictures of its figures.

use std::fs;
use std::path::Path;

use aeir_encoders::write_atomically;
use aeir_train::run::{EVALUATIONS_FILE, PLOT_FOLDER, SELECTION_FILE, TABLE_FILE};
use aeir_train::{TrainConfig, Trained};
use anyhow::Context;

use crate::report::runs::{Evaluation, RunRecord, SelectionRecord, figure_names};
use crate::report::runs::{series, title};
use crate::report::{Chart, slug};

/// Writes all of it from what lies in `folder`, so that a run in several parts has one table.
pub(crate) fn finish(folder: &Path, config: &TrainConfig, trained: &Trained) -> anyhow::Result<()> {
    let criterion = serde_json::to_value(config.selected_by())?;
    let selection = SelectionRecord {
        criterion: criterion.as_str().unwrap_or_default().to_owned(),
        epoch: trained.epoch,
        score: trained.score,
    };
    write(&folder.join(SELECTION_FILE), &(serde_json::to_string(&selection)? + "\n"))?;
    let runs = [RunRecord::read(folder)?];
    let names = figure_names(&runs);
    let [run] = &runs;
    write(&folder.join(TABLE_FILE), &table(run, &names)?)?;
    let plots = folder.join(PLOT_FOLDER);
    fs::create_dir_all(&plots).with_context(|| format!("could not make `{}`", plots.display()))?;
    for name in names {
        let (title, series) = (title(&name), series(&runs, &name));
        let chart = Chart { title: &title, x_label: "epoch", y_label: "", range: None, series: &series };
        if let Some(svg) = chart.standalone()? {
            write(&plots.join(format!("{}.svg", slug(&name))), &svg)?;
        }
    }
    Ok(())
}

/// Adds what was measured on test pairs to the model's folder.
pub(crate) fn add_evaluation(folder: &Path, evaluation: &Evaluation) -> std::io::Result<()> {
    use std::io::Write;
    let line = serde_json::to_string(evaluation)? + "\n";
    let file = folder.join(EVALUATIONS_FILE);
    fs::OpenOptions::new().create(true).append(true).open(file)?.write_all(line.as_bytes())
}

/// A line an epoch, a column a figure; a cell is empty where an epoch has not recorded it.
fn table(run: &RunRecord, names: &[String]) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let columns: Vec<&str> = ["epoch", "step"].into_iter().chain(names.iter().map(String::as_str)).collect();
    writer.write_record(&columns)?;
    for epoch in &run.epochs {
        let cell = |name: &&str| epoch.get(*name).map_or_else(String::new, f64::to_string);
        writer.write_record(columns.iter().map(cell))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    write_atomically(file, text.as_bytes()).with_context(|| format!("could not write `{}`", file.display()))
}
