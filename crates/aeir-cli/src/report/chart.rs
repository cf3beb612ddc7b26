//! Line charts as SVG: inline in a page, or as a file of their own.

use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::SizeDesc;

/// Told apart also without colour vision, on light and dark.
pub(crate) const COLOURS: [&str; 8] =
    ["#2a7f9e", "#d1495b", "#e0a030", "#9b72b0", "#3c9d5d", "#7b8794", "#b5651d", "#5b6ee1"];
const WIDTH: u32 = 520;
const HEIGHT: u32 = 300;
const GREY: &str = "#8a8f98";

/// One line.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) colour: &'static str,
    /// (x, y), x ascending.
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) stroke: Stroke,
    /// Where the line gets a circle.
    pub(crate) marked: Option<f64>,
}

/// How a line is drawn: lines differ in more than colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stroke {
    Solid,
    Dashed,
    Dotted,
    /// No line: a circle a point.
    Points,
}

impl Stroke {
    /// Of the line with this number.
    pub(crate) fn of(index: usize) -> Self {
        match index % 3 {
            0 => Self::Solid,
            1 => Self::Dashed,
            _ => Self::Dotted,
        }
    }

    /// As CSS calls it.
    pub(crate) fn css(self) -> &'static str {
        match self {
            Self::Solid => "solid",
            Self::Dashed => "dashed",
            Self::Dotted | Self::Points => "dotted",
        }
    }
}

/// What a chart shows.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) x_label: &'a str,
    pub(crate) y_label: &'a str,
    /// Of the y axis; by default what the lines need.
    pub(crate) range: Option<(f64, f64)>,
    pub(crate) series: &'a [Series],
}

impl Chart<'_> {
    /// For a page, which gives it its width and its caption; none where nothing was recorded.
    pub(crate) fn inline(&self) -> anyhow::Result<Option<String>> {
        let Some(svg) = self.draw(false)? else { return Ok(None) };
        let size = format!("width=\"{WIDTH}\" height=\"{HEIGHT}\"");
        let label = maud::html! { (self.title) }.into_string();
        Ok(Some(svg.replacen(&size, &format!("class=\"chart\" role=\"img\" aria-label=\"{label}\""), 1)))
    }

    /// For a file: with title and legend; none where nothing was recorded.
    pub(crate) fn standalone(&self) -> anyhow::Result<Option<String>> {
        self.draw(true)
    }

    fn draw(&self, alone: bool) -> anyhow::Result<Option<String>> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let Some(last) = points().map(|(x, _)| *x).reduce(f64::max) else { return Ok(None) };
        let first = points().map(|(x, _)| *x).fold(last, f64::min);
        let (low, high) = self.range.unwrap_or_else(|| {
            let low = points().map(|(_, y)| *y).fold(f64::INFINITY, f64::min);
            let high = points().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max);
            let margin = (0.05 * (high - low)).max(1e-6 * high.abs()).max(1e-12);
            (low - margin, high + margin)
        });
        // Whole epochs: one alone still needs an axis. Points need room at both ends.
        let scattered = self.series.iter().any(|series| series.stroke == Stroke::Points);
        let (first, last) = match 0.05 * (last - first) {
            0.0 => (first, first + 1.0),
            margin if scattered => (first - margin, last + margin),
            _ => (first, last),
        };
        let (x_decimals, decimals) =
            (if scattered { decimals(first, last) } else { Some(0) }, decimals(low, high));
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
            // The backend's errors borrow what is drawn on: keep their text.
            let text = |error: &dyn std::fmt::Display| anyhow!("could not draw a chart: {error}");
            let grey = parse(GREY)?;
            let mut builder = ChartBuilder::on(&area);
            if alone {
                builder.caption(self.title, ("sans-serif", 16).into_font().color(&grey));
            }
            let mut chart = builder
                .margin(8)
                .x_label_area_size(44)
                .y_label_area_size(66)
                .build_cartesian_2d(first..last, low..high)
                .map_err(|error| text(&error))?;
            chart
                .configure_mesh()
                .x_labels(if scattered { 8 } else { 8.min((last - first) as usize + 1) })
                .y_labels(6)
                .x_label_formatter(&|x| label(*x, x_decimals))
                .y_label_formatter(&|y| label(*y, decimals))
                .x_desc(self.x_label)
                .y_desc(self.y_label)
                .axis_style(grey)
                .light_line_style(TRANSPARENT)
                .bold_line_style(grey.mix(0.25))
                .label_style(("sans-serif", 15).into_font().color(&grey))
                .axis_desc_style(("sans-serif", 15).into_font().color(&grey))
                .draw()
                .map_err(|error| text(&error))?;
            for series in self.series {
                let colour = parse(series.colour)?;
                let style = colour.stroke_width(2);
                let points = series.points.clone();
                let drawn = match series.stroke {
                    Stroke::Solid => chart.draw_series(LineSeries::new(points, style)),
                    Stroke::Dashed => chart.draw_series(dashes(points, 7, 5, style)),
                    Stroke::Dotted => chart.draw_series(dashes(points, 2, 4, style)),
                    Stroke::Points => chart
                        .draw_series(points.into_iter().map(|point| Circle::new(point, 4, colour.filled()))),
                }
                .map_err(|error| text(&error))?;
                if alone {
                    drawn
                        .label(series.name.clone())
                        .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
                }
                // A line of one point would not be seen.
                let single = (series.points.len() == 1).then(|| series.points.first()).flatten();
                let marked = series.marked.and_then(|at| series.points.iter().find(|(x, _)| *x == at));
                for point in single.into_iter().chain(marked) {
                    chart
                        .draw_series(std::iter::once(Circle::new(*point, 4, colour.filled())))
                        .map_err(|error| text(&error))?;
                }
            }
            if alone && self.series.len() > 1 {
                chart
                    .configure_series_labels()
                    .position(SeriesLabelPosition::UpperRight)
                    .border_style(grey.mix(0.4))
                    .label_font(("sans-serif", 13).into_font().color(&grey))
                    .draw()
                    .map_err(|error| text(&error))?;
            }
            area.present().map_err(|error| text(&error))?;
        }
        Ok(Some(svg))
    }
}

fn dashes<S: SizeDesc>(
    points: Vec<(f64, f64)>,
    length: S,
    gap: S,
    style: ShapeStyle,
) -> DashedLineSeries<std::vec::IntoIter<(f64, f64)>, S> {
    DashedLineSeries::new(points, length, gap, style)
}

fn label(value: f64, decimals: Option<usize>) -> String {
    match decimals {
        Some(decimals) => format!("{value:.decimals$}"),
        None => format!("{value:.1e}"),
    }
}

/// Decimals that tell the labels of an axis apart; none where only powers of ten would.
fn decimals(low: f64, high: f64) -> Option<usize> {
    const LABELS: f64 = 6.0;
    let step = ((high - low) / LABELS).max(f64::MIN_POSITIVE);
    let decimals = (-step.log10()).ceil().max(0.0);
    (decimals <= 5.0 && high.abs().max(low.abs()) < 1e7).then_some(decimals as usize)
}

fn parse(colour: &str) -> anyhow::Result<RGBColor> {
    let part = |range| {
        let digits = colour.get(range).ok_or_else(|| anyhow!("`{colour}` is no colour"))?;
        Ok::<u8, anyhow::Error>(u8::from_str_radix(digits, 16)?)
    };
    Ok(RGBColor(part(1..3)?, part(3..5)?, part(5..7)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: &[(f64, f64)], stroke: Stroke) -> Series {
        Series {
            name: "a <run>".into(),
            colour: COLOURS[0],
            points: points.to_vec(),
            stroke,
            marked: Some(2.0),
        }
    }

    fn chart(series: &[Series]) -> Chart<'_> {
        Chart { title: "Loss & \"more\"", x_label: "epoch", y_label: "loss", range: None, series }
    }

    #[test]
    fn a_chart_has_its_lines_and_a_name() {
        let lines = [
            series(&[(1.0, 0.5), (2.0, 0.25)], Stroke::Solid),
            series(&[(1.0, 0.1), (2.0, 0.2)], Stroke::Dashed),
        ];
        let inline = chart(&lines).inline().unwrap().unwrap();
        assert!(inline.contains("role=\"img\" aria-label=\"Loss &amp; &quot;more&quot;\""), "{inline}");
        assert_eq!(inline.matches("<circle").count(), 2, "the chosen epoch of each");
        assert!(!inline.contains("a &lt;run&gt;") && !inline.contains("width=\"520\" height=\"300\""));
        let alone = chart(&lines).standalone().unwrap().unwrap();
        assert!(alone.contains("a &lt;run&gt;") && alone.contains("width=\"520\" height=\"300\""));
    }

    #[test]
    fn odd_series_are_drawn_and_empty_ones_are_not() {
        assert!(chart(&[]).inline().unwrap().is_none());
        assert!(chart(&[series(&[], Stroke::Dotted)]).inline().unwrap().is_none());
        for points in [
            [(1.0, 0.0)].as_slice(),
            &[(1.0, 3.0), (2.0, 3.0)],
            &[(1.0, 1e-9), (2.0, 2e-9)],
            &[(1.0, 1e12), (2.0, 3e12)],
        ] {
            assert!(chart(&[series(points, Stroke::Dotted)]).inline().unwrap().is_some(), "{points:?}");
        }
    }

    #[test]
    fn labels_differ() {
        for (low, high) in [(0.0, 1.0), (0.051, 0.058), (100.0, 190.0), (-0.0004, 0.0002)] {
            let decimals = decimals(low, high).unwrap();
            let labels: std::collections::BTreeSet<String> = (0..6)
                .map(|label| format!("{:.decimals$}", low + (high - low) * f64::from(label) / 6.0))
                .collect();
            assert_eq!(labels.len(), 6, "{labels:?}");
        }
        assert_eq!(decimals(1e-9, 2e-9), None);
    }
}
