//! The report as HTML: no scripts, no network, pictures inside.

use std::path::Path;

use aeir_train::EpochRecord;
use anyhow::Context;
use base64::Engine;
use maud::{Markup, html};

use super::super::chart::{Chart, Series, Stroke};
use super::super::layout::{self, Cell, Column, Line, worded};
use super::{Example, Found, Gallery, Query, RECALLS, Report, Row};

/// One colour a row, told apart also without colour vision.
const COLOURS: [&str; 5] = ["#7b8794", "#9b72b0", "#d1495b", "#2a7f9e", "#e0a030"];

pub(super) fn html(report: &Report) -> anyhow::Result<String> {
    let charts = charts(report)?;
    let searches = report.searches.iter().map(example).collect::<anyhow::Result<Vec<_>>>()?;
    let galleries = report.galleries.iter().map(gallery).collect::<anyhow::Result<Vec<_>>>()?;
    let content = html! {
        (introduction(report))
        (table(report))
        section {
            h2 { "Search" }
            p { "An index of all target images, asked with three sentences and an image. \
                 The model is that of “" (report.shown) "”, seed 1." }
            @for search in &searches { (search) }
        }
        section {
            h2 { "Right and wrong" }
            p { "Test queries to the same model, each group spread evenly over the test set, nothing picked by hand." }
            @for gallery in &galleries { (gallery) }
        }
        section {
            h2 { "Training" }
            p { (layout::legend(&row_series(report, |_| None))) }
            div.charts { @for chart in &charts { (chart) } }
        }
        (reproduction(report))
    };
    Ok(layout::page("aeir demo", &content))
}

fn introduction(report: &Report) -> Markup {
    let ((source_images, source_sentences), (target_images, target_sentences)) =
        (report.source, report.target);
    html! {
        header {
            h1 { "Image search without a single target pair" }
            p.lead {
                "Trained on " (source_images) " emoji with " (source_sentences) " captions. Adapted to clip art: "
                (target_images) " images and " (target_sentences) " sentences, nobody says which belongs to which. Scored on "
                (report.test.0) " other clip-art images with their sentences."
            }
            ul.verdicts { @for verdict in report.verdicts() { li { (worded(&verdict)) } } }
        }
    }
}

fn table(report: &Report) -> Markup {
    let seeds = report.rows.first().map_or(0, |row| row.runs.len());
    let most = report.rows.iter().map(|row| row.rsum().mean).fold(report.chance.rsum, f64::max).max(1.0);
    let mut columns: Vec<Column> = ["image to text", "text to image"]
        .into_iter()
        .flat_map(|direction| ["R@1", "R@5", "R@10"].map(|label| Column::grouped(direction, label)))
        .collect();
    columns.extend(["rSum", "", "gap closed"].map(Column::new));
    let one_decimal = |value: f64| format!("{value:.1}");
    let mut chance: Vec<Cell> =
        RECALLS.iter().map(|recall| Cell::new(one_decimal(recall(&report.chance)))).collect();
    chance.extend([
        Cell::new(one_decimal(report.chance.rsum)).with_class("sum"),
        Cell::new(layout::bar(report.chance.rsum, most, "#c3c8cf")).with_class("wide"),
        Cell::new("–"),
    ]);
    let head = html! { "Chance" span { "a random order, expected" } };
    let mut lines = vec![Line { head, cells: chance, faint: true }];
    for (row, colour) in report.rows.iter().zip(COLOURS) {
        let recall = |recall: &fn(&_) -> f64| {
            let summary = row.summary(recall);
            Cell::new(html! { span title=(summary.text()) { (one_decimal(summary.mean)) } })
        };
        let mut cells: Vec<Cell> = RECALLS.iter().map(recall).collect();
        let gap = report.gap_closed(row).map_or_else(|| "–".to_owned(), |gap| format!("{gap:.0} %"));
        cells.extend([
            Cell::new(row.rsum().text()).with_class("sum"),
            Cell::new(layout::bar(row.rsum().mean, most, colour)).with_class("wide"),
            Cell::new(gap),
        ]);
        lines.push(Line { head: html! { (row.title) span { (row.what) } }, cells, faint: false });
    }
    html! {
        section {
            h2 { "Retrieval in the target domain" }
            (layout::table("", &columns, &lines))
            p.note {
                @if seeds > 1 { "Mean of " (seeds) " seeds, ± sample standard deviation. " } @else { "One seed. " }
                "R@K: per cent of queries with at least one right item "
                "in the first K; of items with equal scores the wrong ones count first. rSum: the six recalls added. Gap closed: "
                "(method − source only) / (oracle − source only). The model of a run is its best epoch on the "
                b { "source" } " validation split; no target label is used for training or choosing, the oracle's training apart."
            }
            details { summary { "Every run" } (every_run(report)) }
        }
    }
}

fn every_run(report: &Report) -> Markup {
    let columns = ["seed", "epoch", "rSum", "median rank i2t", "median rank t2i"].map(Column::new);
    let lines: Vec<Line> = report
        .rows
        .iter()
        .flat_map(|row| row.runs.iter().map(move |run| (row.title, run)))
        .map(|(title, run)| Line {
            head: html! { (title) },
            cells: vec![
                Cell::new(run.seed),
                Cell::new(run.epoch),
                Cell::new(format!("{:.1}", run.metrics.rsum)),
                Cell::new(run.metrics.i2t.medr.to_string()),
                Cell::new(run.metrics.t2i.medr.to_string()),
            ],
            faint: false,
        })
        .collect();
    layout::table("row", &columns, &lines)
}

/// A line a row of the table, the mean over its seeds.
fn row_series(report: &Report, value: fn(&EpochRecord) -> Option<f64>) -> Vec<Series> {
    let rows = report.rows.iter().zip(COLOURS);
    rows.map(|(row, colour)| mean_over_seeds(row, row.title, colour, value)).collect()
}

fn charts(report: &Report) -> anyhow::Result<Vec<Markup>> {
    let mean = |name: &'static str| move |record: &EpochRecord| record.means.get(name).copied();
    let accuracy = |key: &str| -> Vec<Series> {
        let Some(row) = report.row(key) else { return Vec::new() };
        let mut sentences = mean_over_seeds(row, "sentences", COLOURS[3], mean("critic_accuracy_sentences"));
        sentences.stroke = Stroke::Dashed;
        vec![mean_over_seeds(row, "images", COLOURS[2], mean("critic_accuracy_images")), sentences]
    };
    let unit = Some((0.0, 1.0));
    let of_rows = |value| row_series(report, value);
    let plots = [
        ("Source loss", "loss", None, of_rows(|record| record.means.get("source_loss").copied())),
        ("Source validation", "rSum", None, of_rows(|record| record.source_validation_rsum)),
        (
            "Unpaired target sets: mean CSLS similarity of mutual neighbours",
            "similarity",
            None,
            of_rows(|record| record.target_mutual_similarity),
        ),
        (
            "Critic accuracy, AEIR (0.5: the critic can't tell the domains apart)",
            "accuracy",
            unit,
            accuracy("aeir"),
        ),
        ("Critic accuracy, AEIR", "accuracy", unit, accuracy("aeir")),
    ];
    let mut charts = Vec::new();
    for (title, y_label, range, series) in &plots {
        let chart = Chart { title, x_label: "epoch", y_label, range: *range, series };
        charts.extend(layout::figure(&chart, range.is_some())?);
    }
    Ok(charts)
}

/// The mean over a row's seeds at each epoch that all of them recorded.
fn mean_over_seeds(
    row: &Row,
    name: &str,
    colour: &'static str,
    value: impl Fn(&EpochRecord) -> Option<f64>,
) -> Series {
    let epochs = row.runs.iter().map(|run| run.history.len()).min().unwrap_or(0);
    let points = (0..epochs).filter_map(|epoch| {
        let values: Option<Vec<f64>> = row.runs.iter().map(|run| value(run.history.get(epoch)?)).collect();
        let values = values.filter(|values| !values.is_empty())?;
        Some((epoch as f64 + 1.0, values.iter().sum::<f64>() / values.len() as f64))
    });
    let points = points.collect();
    Series { name: name.to_owned(), colour, points, stroke: Stroke::Solid, marked: None }
}

fn gallery(gallery: &Gallery) -> anyhow::Result<Markup> {
    let examples = gallery.examples.iter().map(example).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(html! {
        h3 { (gallery.title) }
        p.note { (gallery.what) }
        @for example in &examples { (example) }
    })
}

fn example(example: &Example) -> anyhow::Result<Markup> {
    let found_right = example.results.iter().any(|found| found.right == Some(true));
    let sentences =
        matches!(example.query, Query::Image(_)) && example.results.iter().any(|it| it.right.is_some());
    let query = match &example.query {
        Query::Sentence(sentence) => html! { p.query { "“" (sentence) "”" } },
        Query::Image(path) => html! { (picture(path, "the query")?) },
    };
    let rank = example.right_rank.map(|rank| html! { span.rank { "rank " (rank) } });
    let results =
        example.results.iter().map(|found| if sentences { Ok(sentence(found)) } else { tile(found) });
    let results = results.collect::<anyhow::Result<Vec<_>>>()?;
    let missed = match (&example.right_image, found_right, example.right_rank) {
        (Some(path), false, Some(rank)) => Some(html! {
            figure.tile.missed { (picture(path, "the right image")?) figcaption { "right: rank " (rank) } }
        }),
        _ => None,
    };
    Ok(html! {
        div.example {
            div.asked { (query) @if let Some(rank) = rank { (rank) } }
            div class=(if sentences { "sentences" } else { "tiles" }) {
                @for result in &results { (result) }
                @if let Some(missed) = missed { (missed) }
            }
        }
    })
}

fn sentence(found: &Found) -> Markup {
    html! {
        p class=(class_of(found)) { (found.path.display()) span.score { (format!("{:.2}", found.score)) } }
    }
}

fn tile(found: &Found) -> anyhow::Result<Markup> {
    Ok(html! {
        figure.tile.(class_of(found)) {
            (picture(&found.path, "a result")?)
            figcaption { (mark(found)) (format!("{:.2}", found.score)) }
        }
    })
}

fn class_of(found: &Found) -> &'static str {
    match found.right {
        Some(true) => "right",
        Some(false) => "wrong",
        None => "unknown",
    }
}

/// Says right and wrong without colour.
fn mark(found: &Found) -> &'static str {
    match found.right {
        Some(true) => "✓ ",
        Some(false) => "✗ ",
        None => "",
    }
}

/// The picture itself, inside the page. The demo's images are small enough.
fn picture(path: &Path, what: &str) -> anyhow::Result<Markup> {
    let bytes = std::fs::read(path).with_context(|| format!("could not read `{}`", path.display()))?;
    let kind = match path.extension().and_then(|suffix| suffix.to_str()) {
        Some("png") => "png",
        Some("jpg" | "jpeg") => "jpeg",
        Some("gif") => "gif",
        _ => "webp",
    };
    let source =
        format!("data:image/{kind};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes));
    Ok(html! { img src=(source) alt=(what) loading="lazy"; })
}

fn reproduction(report: &Report) -> Markup {
    html! {
        section {
            h2 { "How this was made" }
            p {
                "aeir " (env!("CARGO_PKG_VERSION")) ", " code { "aeir demo" } ": features "
                (format!("{:.0} s", report.encoding_seconds)) " (a second run takes them from the cache), training "
                (format!("{:.0} s", report.training_seconds)) ", in all " (format!("{:.0} s", report.total_seconds))
                ". Each run has its settings, metrics and checkpoints in a folder of its own beside this file. The same "
                "seeds give the same table."
            }
            p {
                "Images: Noto Emoji (Apache-2.0) with Unicode CLDR captions (Unicode-3.0); Openclipart (public domain). \
                 Encoders: EfficientNet-lite0 and a static token table distilled from all-MiniLM-L6-v2 (both Apache-2.0), frozen."
            }
            details { summary { "Settings of all rows" } pre { (report.config) } }
        }
    }
}
