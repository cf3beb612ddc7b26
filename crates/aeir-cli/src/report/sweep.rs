//! The page of a sweep.

use maud::{Markup, html};

use super::chart::{COLOURS, Chart, Series, Stroke};
use super::layout::{self, Cell, Column, Line, worded};
use super::summary::Summary;

/// A setting: the mean over its seeds.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) seeds: usize,
    /// In the order of the criteria.
    pub(crate) criteria: Vec<Option<String>>,
    /// rSum on test pairs.
    pub(crate) test: Option<Summary>,
}

/// A criterion against recall on test pairs: for each setting a point a run.
pub(crate) struct CriterionPlot {
    pub(crate) criterion: String,
    pub(crate) settings: Vec<(String, Vec<(f64, f64)>)>,
}

/// The page.
pub(crate) fn html(
    criteria: &[String],
    rows: &[Row],
    verdicts: &[String],
    plots: &[CriterionPlot],
) -> anyhow::Result<String> {
    // The settings are the same in all of them.
    let legend = plots.first().map(|plot| layout::legend(&series(plot)));
    let plots = plots.iter().map(plot).collect::<anyhow::Result<Vec<_>>>()?;
    let plots: Vec<Markup> = plots.into_iter().flatten().collect();
    let content = html! {
        header {
            h1 { "Sweep" }
            ul.verdicts { @for verdict in verdicts { li { (worded(verdict)) } } }
        }
        section {
            h2 { "Settings" }
            (table(criteria, rows))
            p.note {
                "Mean over seeds, ± sample standard deviation. The criteria are those of the epoch that became the model; none sees a "
                "label of the target. Recall on test pairs took no part in any choice."
            }
        }
        @if !plots.is_empty() {
            section {
                h2 { "Does the criterion pick good runs?" }
                @if let Some(legend) = legend { p { (legend) } }
                div.charts { @for plot in &plots { (plot) } }
                p.note { "A point a run, a colour a setting. A criterion that picks well rises from left to right." }
            }
        }
        p.note { "Curves of single runs: " code { "aeir report" } " with their folders. All figures: sweep.csv and sweep.json beside this page." }
    };
    Ok(layout::page("aeir: sweep", &content))
}

fn table(criteria: &[String], rows: &[Row]) -> Markup {
    let most = rows.iter().filter_map(|row| Some(row.test?.mean)).fold(1.0, f64::max);
    let tested = rows.iter().any(|row| row.test.is_some());
    let mut columns = vec![Column::new("seeds")];
    if tested {
        columns.extend(["test rSum", ""].map(Column::new));
    }
    columns.extend(criteria.iter().map(|name| Column::new(name.replace('_', " "))));
    let lines: Vec<Line> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![Cell::new(row.seeds)];
            if tested {
                cells.push(
                    Cell::new(row.test.map_or_else(|| "–".to_owned(), Summary::text)).with_class("sum"),
                );
                cells.push(
                    Cell::new(layout::bar(row.test.map_or(0.0, |it| it.mean), most, COLOURS[0]))
                        .with_class("wide"),
                );
            }
            cells.extend(row.criteria.iter().map(|value| Cell::new(value.as_deref().unwrap_or("–"))));
            Line { head: html! { (row.name) }, cells, faint: false }
        })
        .collect();
    layout::table("setting", &columns, &lines)
}

fn series(plot: &CriterionPlot) -> Vec<Series> {
    plot.settings
        .iter()
        .zip(COLOURS.iter().cycle())
        .map(|((name, points), colour)| Series {
            name: name.clone(),
            colour,
            points: points.clone(),
            stroke: Stroke::Points,
            marked: None,
        })
        .collect()
}

fn plot(plot: &CriterionPlot) -> anyhow::Result<Option<Markup>> {
    let (heading, series) = (format!("Test rSum by {}", plot.criterion.replace('_', " ")), series(plot));
    let chart = Chart {
        title: &heading,
        x_label: &plot.criterion,
        y_label: "test rSum",
        range: None,
        series: &series,
    };
    layout::figure(&chart, false)
}
