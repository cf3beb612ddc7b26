//! A report as Markdown and as one page of HTML.

use std::fmt::Write;

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// A part of a report.
pub(super) enum Block {
    Heading(u8, String),
    Text(String),
    Table(Vec<String>, Vec<Vec<String>>),
    Chart(Chart),
}

/// Lines over an axis.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: String,
    pub(super) y: String,
    /// Whether equal factors on the x axis are equally far apart.
    pub(super) logarithmic: bool,
    pub(super) series: Vec<(String, Vec<(f64, f64)>)>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 48.0;
/// Told apart also by those who see few colours.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}\
table{border-collapse:collapse;margin:1rem 0;font-size:14px;display:block;overflow-x:auto}th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:right;\
font-variant-numeric:tabular-nums}th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #888}h2{margin-top:2.5rem}svg{max-width:100%;height:auto}\
figure{margin:1rem 0}figcaption{font-size:14px}code{font-size:90%}";

pub(super) fn markdown(blocks: &[Block]) -> String {
    let mut text = String::new();
    for block in blocks {
        match block {
            Block::Heading(level, title) => {
                text += &format!("{} {title}\n\n", "#".repeat(usize::from(*level)))
            }
            Block::Text(paragraph) => text += &format!("{paragraph}\n\n"),
            Block::Table(header, rows) => text += &table(header, rows),
            Block::Chart(chart) => text += &chart.markdown(),
        }
    }
    text
}

fn table(header: &[String], rows: &[Vec<String>]) -> String {
    // A bar inside a cell would end it.
    let line = |cells: &[String]| {
        format!("| {} |\n", cells.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>().join(" | "))
    };
    let rule = format!("|{}\n", " --- |".repeat(header.len()));
    line(header) + &rule + &rows.iter().map(|row| line(row)).collect::<String>() + "\n"
}

pub(super) fn page(title: &str, blocks: &[Block]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { @for block in blocks { (block.html()) } }
        }
    };
    page.into_string()
}

impl Block {
    fn html(&self) -> Markup {
        match self {
            Self::Heading(1, title) => html! { h1 { (title) } },
            Self::Heading(2, title) => html! { h2 { (title) } },
            Self::Heading(_, title) => html! { h3 { (title) } },
            Self::Text(text) => html! { p { (code(text)) } },
            Self::Table(header, rows) => html! {
                table {
                    thead { tr { @for cell in header { th { (code(cell)) } } } }
                    tbody { @for row in rows { tr { @for cell in row { td { (code(cell)) } } } } }
                }
            },
            Self::Chart(chart) => chart.html(),
        }
    }
}

/// Text whose spans between backquotes are code, and between two asterisks strong.
fn code(text: &str) -> Markup {
    html! {
        @for (place, part) in text.split('`').enumerate() {
            @if place % 2 == 1 { code { (part) } } @else {
                @for (place, part) in part.split("**").enumerate() {
                    @if place % 2 == 1 { strong { (part) } } @else { (part) }
                }
            }
        }
    }
}

impl Chart {
    fn points(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.series.iter().flat_map(|(_, points)| points.iter().copied())
    }

    /// The same as a table.
    fn markdown(&self) -> String {
        let mut all: Vec<f64> = self.points().map(|(x, _)| x).collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        let header: Vec<String> =
            std::iter::once(self.x.clone()).chain(self.series.iter().map(|(name, _)| name.clone())).collect();
        let row = |x: &f64| {
            let at = |points: &[(f64, f64)]| {
                points
                    .iter()
                    .find(|(other, _)| other == x)
                    .map_or_else(|| "not run".to_owned(), |(_, y)| format!("{y:.1}"))
            };
            std::iter::once(format!("{x}"))
                .chain(self.series.iter().map(|(_, points)| at(points)))
                .collect::<Vec<_>>()
        };
        format!("{}: {}\n\n{}", self.title, self.y, table(&header, &all.iter().map(row).collect::<Vec<_>>()))
    }

    fn html(&self) -> Markup {
        html! {
            figure {
                figcaption { strong { (self.title) } ": " (self.y) " over " (self.x) }
                (PreEscaped(self.svg()))
                figcaption {
                    @for ((name, _), colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
                        span style=(format!("color:{colour}")) { "\u{25cf} " } (name) " \u{2002}"
                    }
                }
            }
        }
    }

    fn svg(&self) -> String {
        let scale = |x: f64| if self.logarithmic { x.max(f64::MIN_POSITIVE).log10() } else { x };
        let (left, right) = bounds(self.points().map(|(x, _)| scale(x)));
        let (low, high) = bounds(self.points().map(|(_, y)| y));
        let x_at = |x: f64| MARGIN + (scale(x) - left) / (right - left) * (WIDTH - 2.0 * MARGIN);
        let y_at = |y: f64| HEIGHT - MARGIN + (low - y) / (high - low) * (HEIGHT - 2.0 * MARGIN);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" font-size=\"12\" fill=\"#444\">"
        );
        for step in 0..=4 {
            let y = low + (high - low) * f64::from(step) / 4.0;
            let _ = write!(
                svg,
                "<line x1=\"{MARGIN}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{y:.1}</text>",
                WIDTH - MARGIN,
                MARGIN - 6.0,
                y_at(y) + 4.0,
                at = y_at(y)
            );
        }
        let mut ticks: Vec<f64> = self.points().map(|(x, _)| x).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let every = ticks.len().div_ceil(8).max(1);
        for x in ticks.iter().step_by(every) {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x}</text>",
                x_at(*x),
                HEIGHT - MARGIN + 18.0
            );
        }
        for ((_, points), colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let path: Vec<String> =
                points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
            let _ = write!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for (x, y) in points {
                let _ = write!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{x}: {y:.1}</title></circle>",
                    x_at(*x),
                    y_at(*y)
                );
            }
        }
        svg + "</svg>"
    }
}

/// Lowest and highest, never the same.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low < high {
        (low, high)
    } else if low.is_finite() {
        (low - 1.0, low + 1.0)
    } else {
        (0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(series: Vec<(String, Vec<(f64, f64)>)>) -> Chart {
        Chart { title: "t".into(), x: "x".into(), y: "y".into(), logarithmic: true, series }
    }

    #[test]
    fn cells_can_not_break_a_table() {
        let blocks = [Block::Table(vec!["a".into()], vec![vec!["b|c <i>".into()]])];
        assert_eq!(markdown(&blocks), "| a |\n| --- |\n| b\\|c <i> |\n\n");
        assert!(page("p", &blocks).contains("b|c &lt;i&gt;"));
    }

    #[test]
    fn charts_hold_what_they_are_given() {
        let one = chart(vec![("a".into(), vec![(1.0, 5.0)]), ("b".into(), vec![(0.1, 4.0), (1.0, 6.0)])]);
        assert!(one.markdown().contains("| 0.1 | not run | 4.0 |"));
        for svg in [one.svg(), chart(Vec::new()).svg(), chart(vec![("a".into(), vec![(0.0, 1.0)])]).svg()] {
            assert!(svg.ends_with("</svg>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn backquotes_are_code() {
        assert_eq!(code("run `x` **now**").into_string(), "run <code>x</code> <strong>now</strong>");
    }
}
