//! What all pages share: the frame, tables that fold on a phone, charts with their legends. No scripts, no network.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{Chart, Series};

const STYLE: &str = include_str!("style.css");
/// By this a page is known as ours, and may be written anew.
pub(crate) const GENERATOR: &str = concat!("aeir ", env!("CARGO_PKG_VERSION"));
const GENERATOR_MARK: &str = "<meta name=\"generator\" content=\"aeir ";

/// A whole page around its content.
pub(crate) fn page(title: &str, content: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content=(GENERATOR);
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { main { (content) } }
        }
    };
    page.into_string()
}

/// Text in which names stand between backticks, as messages have them.
pub(crate) fn worded(text: &str) -> Markup {
    html! {
        @for (number, part) in text.split('`').enumerate() {
            @if number % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Whether a file's text is a page that this program wrote.
pub(crate) fn is_ours(text: &str) -> bool {
    text.get(..500.min(text.len())).is_some_and(|head| head.contains(GENERATOR_MARK))
}

/// A column of a table.
pub(crate) struct Column {
    /// Columns side by side with the same group share a heading; empty for none.
    pub(crate) group: String,
    /// Its own heading; may be empty.
    pub(crate) label: String,
}

impl Column {
    pub(crate) fn new(label: impl Into<String>) -> Self {
        Self { group: String::new(), label: label.into() }
    }

    pub(crate) fn grouped(group: impl Into<String>, label: impl Into<String>) -> Self {
        Self { group: group.into(), label: label.into() }
    }

    /// Both headings, for where they don't stand above it.
    fn whole_label(&self) -> String {
        if self.group.is_empty() { self.label.clone() } else { format!("{} {}", self.group, self.label) }
    }
}

/// A row of a table: its heading and a cell a column.
pub(crate) struct Line {
    pub(crate) head: Markup,
    pub(crate) cells: Vec<Cell>,
    pub(crate) faint: bool,
}

/// A cell, with a class for its looks.
pub(crate) struct Cell {
    pub(crate) content: Markup,
    pub(crate) class: &'static str,
}

impl Cell {
    pub(crate) fn new(content: impl maud::Render) -> Self {
        Self { content: content.render(), class: "" }
    }

    pub(crate) fn with_class(self, class: &'static str) -> Self {
        Self { class, ..self }
    }
}

/// A table that becomes a list of cards on a narrow screen: each cell then carries its heading. The roles are written out, as
/// browsers forget them where a table is laid out otherwise.
pub(crate) fn table(corner: &str, columns: &[Column], lines: &[Line]) -> Markup {
    let groups: Vec<(&str, usize)> = columns
        .chunk_by(|a, b| a.group == b.group)
        .filter_map(|run| Some((run.first()?.group.as_str(), run.len())))
        .collect();
    html! {
        div.scroll { table.fold role="table" {
            thead role="rowgroup" {
                @if columns.iter().any(|column| !column.group.is_empty()) {
                    tr role="row" {
                        td role="cell" {}
                        @for (group, width) in groups {
                            @if group.is_empty() { td role="cell" colspan=(width) {} }
                            @else { th role="columnheader" scope="colgroup" colspan=(width) { (group) } }
                        }
                    }
                }
                tr role="row" {
                    th role="columnheader" scope="col" { (corner) }
                    @for column in columns { th role="columnheader" scope="col" { (column.label) } }
                }
            }
            tbody role="rowgroup" {
                @for line in lines {
                    tr.faint[line.faint] role="row" {
                        th role="rowheader" scope="row" { (line.head) }
                        @for (cell, column) in line.cells.iter().zip(columns) {
                            td class=[Some(cell.class).filter(|class| !class.is_empty())] role="cell" data-label=(column.whole_label()) { (cell.content) }
                        }
                    }
                }
            }
        } }
    }
}

/// A bar as wide as its share of the most.
pub(crate) fn bar(value: f64, most: f64, colour: &str) -> Markup {
    let width = (100.0 * value / most).clamp(0.0, 100.0);
    html! { div.bar aria-hidden="true" { div style={ "width:" (format!("{width:.1}")) "%;background:" (colour) } {} } }
}

/// What the lines of charts are.
pub(crate) fn legend(series: &[Series]) -> Markup {
    html! {
        span.legend { @for line in series {
            span { i style={ "border-top-style:" (line.stroke.css()) ";border-top-color:" (line.colour) } {} (line.name) }
        } }
    }
}

/// A chart with its title, and its own legend where it has one; none where nothing was recorded.
pub(crate) fn figure(chart: &Chart<'_>, own_legend: bool) -> anyhow::Result<Option<Markup>> {
    let Some(svg) = chart.inline()? else { return Ok(None) };
    Ok(Some(html! {
        figure {
            figcaption { (chart.title) @if own_legend { (legend(chart.series)) } }
            (PreEscaped(svg))
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_between_backticks_are_code() {
        assert_eq!(worded("raise `epochs`, or <b>").into_string(), "raise <code>epochs</code>, or &lt;b&gt;");
        assert_eq!(worded("plain").into_string(), "plain");
    }
}
