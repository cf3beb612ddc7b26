//! The page of one run, or of several side by side.

use maud::{Markup, html};

use super::super::chart::{COLOURS, Chart, Series, Stroke};
use super::super::layout::{self, Cell, Column, Line, worded};
use super::{Evaluation, RunRecord, SelectionRecord, differing_settings, figure_names, series, title};

/// Figures beyond these are folded away.
const CHARTS_SHOWN: usize = 4;

pub(super) fn html(runs: &[RunRecord]) -> anyhow::Result<String> {
    let charts = charts(runs)?;
    let reliability = reliability(runs)?;
    let (shown, folded) = charts.split_at(charts.len().min(CHARTS_SHOWN));
    let heading = match runs {
        [run] => run.name.clone(),
        _ => format!("{} runs", runs.len()),
    };
    let content = html! {
        header {
            h1 { (heading) }
            @if let [run] = runs { p.lead { (lead(run)) } }
        }
        (warnings(runs))
        (overview(runs))
        (recall(runs))
        @if let Some(chart) = &reliability {
            section {
                h2 { "Confidence against being right" }
                @if runs.len() > 1 { p { (layout::legend(&reliability_series(runs))) } }
                div.charts.alone { (chart) }
                p.note {
                    "Test sentences by their confidence, which is worked out from the target's unpaired sentences (" code { "aeir eval --query-bank" } "): "
                    "how many of a step found their own image first. It should rise; the diagonal is not to be expected, as confidence is no "
                    "probability of being right."
                }
            }
        }
        @if !shown.is_empty() {
            section {
                h2 { "Curves" }
                @if runs.len() > 1 { p { (layout::legend(&series(runs, ""))) } }
                div.charts { @for chart in shown { (chart) } }
                @if !folded.is_empty() {
                    details { summary { "All other figures" } div.charts { @for chart in folded { (chart) } } }
                }
                @if runs.iter().any(|run| run.selection.is_some()) {
                    p.note { "The circle marks the epoch that became the model." }
                }
            }
        }
        (settings(runs))
        (cards(runs))
        p.note { "Written by aeir " (env!("CARGO_PKG_VERSION")) " from the folders of the runs; " code { "aeir report" } " writes it anew." }
    };
    Ok(layout::page(&format!("aeir: {heading}"), &content))
}

/// Of the evaluation of each run that has it last.
fn reliability_series(runs: &[RunRecord]) -> Vec<Series> {
    let of_run = |(index, run): (usize, &RunRecord)| {
        let evaluation =
            run.evaluations.iter().rev().find(|evaluation| !evaluation.reliability.is_empty())?;
        let steps = evaluation.reliability.iter();
        let points = steps.filter_map(|step| Some((50.0 * (step.above + step.up_to), step.r1?))).collect();
        Some(Series {
            name: run.name.clone(),
            colour: COLOURS.get(index % COLOURS.len()).copied().unwrap_or("#2a7f9e"),
            points,
            stroke: Stroke::of(index),
            marked: None,
        })
    };
    runs.iter().enumerate().filter_map(of_run).collect()
}

/// Confidence against being right, where it was measured.
fn reliability(runs: &[RunRecord]) -> anyhow::Result<Option<Markup>> {
    let series = reliability_series(runs);
    if series.is_empty() {
        return Ok(None);
    }
    let chart = Chart {
        title: "Own image first, per cent of the test sentences of a step of confidence",
        x_label: "confidence, per cent",
        y_label: "",
        range: None,
        series: &series,
    };
    layout::figure(&chart, false)
}

/// A run in a sentence.
fn lead(run: &RunRecord) -> String {
    let setting = |key: &str| run.setting(key).unwrap_or("?").to_owned();
    let mut text = format!("Method {}, seed {}. ", setting("method"), setting("seed"));
    let epochs = format!("{} of {} epochs", run.epochs.len(), setting("epochs"));
    match (&run.selection, run.finished) {
        (Some(selection), _) => {
            text.push_str(&format!(
                "The model is that of epoch {} of {}",
                selection.epoch,
                setting("epochs")
            ));
            text.push_str(&match selection.score {
                Some(score) => format!(", the best by {} ({}).", selection.criterion, figure(score)),
                None => ", the last.".to_owned(),
            });
        }
        (None, true) => text.push_str(&format!("Finished after {epochs}.")),
        (None, false) => text.push_str(&format!("Not finished: {epochs}.")),
    }
    text
}

fn warnings(runs: &[RunRecord]) -> Markup {
    if runs.iter().all(|run| run.warnings.is_empty()) {
        return html! {};
    }
    html! {
        section {
            h2 { "Warnings" }
            ul.warnings { @for run in runs { @for warning in &run.warnings {
                li { b { @if runs.len() > 1 { (run.name) ", " } "step " (warning.step) } ": " (worded(&warning.message)) }
            } } }
        }
    }
}

/// What became of each run.
fn overview(runs: &[RunRecord]) -> Markup {
    let columns = [
        "method",
        "seed",
        "epochs",
        "model of epoch",
        "chosen by",
        "source rSum",
        "target similarity",
        "time",
    ]
    .map(Column::new);
    let lines: Vec<Line> = runs
        .iter()
        .map(|run| {
            let setting = |key: &str| Cell::new(run.setting(key).unwrap_or("–"));
            let chosen =
                |name: &str| Cell::new(optional(run.chosen().and_then(|epoch| epoch.get(name)).copied()));
            let selection = run.selection.as_ref();
            let state = if run.finished { "" } else { "not finished" };
            let epochs = format!("{} of {}", run.epochs.len(), run.setting("epochs").unwrap_or("?"));
            Line {
                head: html! { (run.name) @if !state.is_empty() { span { (state) } } },
                cells: vec![
                    setting("method"),
                    setting("seed"),
                    Cell::new(epochs),
                    Cell::new(selection.map_or_else(|| "–".to_owned(), |it| it.epoch.to_string())),
                    Cell::new(selection.map_or_else(|| "–".to_owned(), criterion)),
                    chosen("source_validation_rsum"),
                    chosen("target_mutual_similarity"),
                    Cell::new(
                        run.seconds
                            .filter(|_| !run.epochs.is_empty())
                            .map_or_else(|| "–".to_owned(), duration),
                    ),
                ],
                faint: false,
            }
        })
        .collect();
    html! {
        section {
            h2 { @if runs.len() == 1 { "The run" } @else { "Side by side" } }
            (layout::table("run", &columns, &lines))
            p.note {
                "Source rSum: recall at 1, 5 and 10 on the source's validation split, both ways, in per cent, added up; at most 600. "
                "Target similarity: mean CSLS similarity of mutual nearest neighbours between the unpaired target sets. Both are those "
                "of the epoch that became the model, and no target label is in either."
            }
        }
    }
}

/// What chose the epoch, and what it saw in it.
fn criterion(selection: &SelectionRecord) -> String {
    selection
        .score
        .map_or_else(|| "the last".to_owned(), |score| format!("{} {}", selection.criterion, figure(score)))
}

/// What `aeir eval` left.
fn recall(runs: &[RunRecord]) -> Markup {
    let results: Vec<(&RunRecord, &Evaluation)> =
        runs.iter().flat_map(|run| run.evaluations.iter().map(move |it| (run, it))).collect();
    let most = results.iter().map(|(_, it)| it.metrics.rsum).fold(1.0, f64::max);
    let mut columns: Vec<Column> = ["image to text", "text to image"]
        .into_iter()
        .flat_map(|direction| ["R@1", "R@5", "R@10"].map(|label| Column::grouped(direction, label)))
        .collect();
    columns.extend(["rSum", ""].map(Column::new));
    let lines: Vec<Line> = results
        .iter()
        .map(|(run, evaluation)| {
            let (i2t, t2i) = (&evaluation.metrics.i2t, &evaluation.metrics.t2i);
            let recalls = [i2t.r1, i2t.r5, i2t.r10, t2i.r1, t2i.r5, t2i.r10];
            let mut cells: Vec<Cell> =
                recalls.iter().map(|recall| Cell::new(format!("{recall:.1}"))).collect();
            cells.push(Cell::new(format!("{:.1}", evaluation.metrics.rsum)).with_class("sum"));
            cells.push(Cell::new(layout::bar(evaluation.metrics.rsum, most, "#2a7f9e")).with_class("wide"));
            Line { head: html! { (run.name) span { (what(evaluation)) } }, cells, faint: false }
        })
        .collect();
    html! {
        section {
            h2 { "Recall on test pairs" }
            @if lines.is_empty() {
                p { "Not measured: " code { "aeir eval --model RUN --data TEST" } " does, and leaves its result in the run." }
            } @else {
                (layout::table("run", &columns, &lines))
                p.note { "Measured by " code { "aeir eval" } "; it took no part in training or in the choice of an epoch." }
            }
        }
    }
}

/// The data of an evaluation, and how it was scored.
fn what(evaluation: &Evaluation) -> String {
    let Evaluation { data, split, rerank, metrics, .. } = evaluation;
    let split = split.as_ref().map_or_else(String::new, |split| format!(", split {split}"));
    let rerank = rerank.as_ref().map_or_else(String::new, |rerank| format!(", re-ranked: {rerank}"));
    let name = data
        .file_name()
        .map_or_else(|| data.display().to_string(), |name| name.to_string_lossy().into_owned());
    format!("{name}{split}{rerank}: {} images, {} sentences", metrics.n_images, metrics.n_sentences)
}

fn charts(runs: &[RunRecord]) -> anyhow::Result<Vec<Markup>> {
    let mut charts = Vec::new();
    for name in figure_names(runs) {
        let (title, series) = (title(&name), series(runs, &name));
        let chart = Chart { title: &title, x_label: "epoch", y_label: "", range: None, series: &series };
        charts.extend(layout::figure(&chart, false)?);
    }
    Ok(charts)
}

fn settings(runs: &[RunRecord]) -> Markup {
    let differing = differing_settings(runs);
    let columns: Vec<Column> = runs.iter().map(|run| Column::new(run.name.as_str())).collect();
    let lines: Vec<Line> = differing
        .iter()
        .map(|key| Line {
            head: html! { (key) },
            cells: runs
                .iter()
                .map(|run| Cell::new(run.settings.get(key).map_or("not set", String::as_str)))
                .collect(),
            faint: false,
        })
        .collect();
    html! {
        section {
            h2 { "Settings" }
            @if runs.len() > 1 {
                h3 { "Settings that differ" }
                @if lines.is_empty() { p { "None: the runs have the same settings." } }
                @else { (layout::table("setting", &columns, &lines)) }
            }
            @for run in runs {
                details {
                    summary { "All settings" @if runs.len() > 1 { " of " (run.name) } }
                    pre { (run.config) }
                }
            }
        }
    }
}

fn cards(runs: &[RunRecord]) -> Markup {
    let cards: Vec<(&RunRecord, &str)> =
        runs.iter().filter_map(|run| Some((run, without_head(run.card.as_deref()?)))).collect();
    html! {
        @if !cards.is_empty() {
            section {
                h2 { @if runs.len() == 1 { "Model card" } @else { "Model cards" } }
                @for (run, card) in cards {
                    @if runs.len() == 1 { pre.wrap { (card) } }
                    @else { details { summary { (run.name) } pre.wrap { (card) } } }
                }
            }
        }
    }
}

/// A card without the part that only the hub reads.
fn without_head(card: &str) -> &str {
    card.strip_prefix("---\n")
        .and_then(|rest| rest.split_once("\n---\n"))
        .map_or(card, |(_, body)| body)
        .trim()
}

/// A figure of unknown size.
fn figure(value: f64) -> String {
    if value.abs() >= 10.0 { format!("{value:.1}") } else { format!("{value:.4}") }
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), figure)
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
