//! Scatter plots and histograms as inline SVG.

use anyhow::anyhow;
use plotters::prelude::*;

const SIZE: (u32, u32) = (520, 340);
const GREY: RGBColor = RGBColor(138, 143, 152);

/// How a group's points look: shapes tell modalities apart, colours domains, so that neither is told by colour alone.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    Dot,
    Cross,
}

/// Points of one kind.
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) colour: RGBColor,
    pub(super) mark: Mark,
    pub(super) points: Vec<(f64, f64)>,
}

/// Groups of points in a plane, `title` for readers who can't see it.
pub(super) fn scatter(title: &str, groups: &[Group]) -> anyhow::Result<String> {
    let points = || groups.iter().flat_map(|group| &group.points);
    let (x, y) = (padded(points().map(|(x, _)| *x)), padded(points().map(|(_, y)| *y)));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(36)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .x_labels(5)
            .y_labels(5)
            .x_desc("first axis")
            .y_desc("second axis")
            .x_label_formatter(&|_| String::new())
            .y_label_formatter(&|_| String::new())
            .axis_style(GREY)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.2))
            .axis_desc_style(("sans-serif", 14).into_font().color(&GREY))
            .draw()
            .map_err(drawing)?;
        for Group { colour, mark, points, .. } in groups {
            let points = points.iter().copied();
            match mark {
                Mark::Dot => {
                    chart.draw_series(points.map(|at| Circle::new(at, 2, colour.mix(0.55).filled())))
                }
                Mark::Cross => {
                    chart
                        .draw_series(points.map(|at| Cross::new(at, 3, colour.mix(0.7))))
                        .map_err(drawing)?;
                    continue;
                }
            }
            .map_err(drawing)?;
        }
        area.present().map_err(drawing)?;
    }
    Ok(described(&svg, title))
}

/// Bars of how many values fall where; a vertical line at `line` where one is given.
pub(super) fn histogram(
    title: &str,
    x_label: &str,
    values: &[f64],
    line: Option<f64>,
    colour: RGBColor,
) -> anyhow::Result<String> {
    const BINS: usize = 30;
    let (low, high) = padded(values.iter().copied().chain(line));
    let width = (high - low) / BINS as f64;
    let mut counts = vec![0_usize; BINS];
    for value in values {
        let bin = (((value - low) / width) as usize).min(BINS - 1);
        if let Some(count) = counts.get_mut(bin) {
            *count += 1;
        }
    }
    let top = counts.iter().copied().max().unwrap_or(0).max(1) as f64 * 1.08;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(44)
            .y_label_area_size(52)
            .build_cartesian_2d(low..high, 0.0..top)
            .map_err(drawing)?;
        let digits = if high - low > 10.0 { 0 } else { 2 };
        chart
            .configure_mesh()
            .x_labels(7)
            .y_labels(5)
            .x_label_formatter(&|x| format!("{x:.digits$}"))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .x_desc(x_label)
            .axis_style(GREY)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.2))
            .label_style(("sans-serif", 14).into_font().color(&GREY))
            .axis_desc_style(("sans-serif", 14).into_font().color(&GREY))
            .draw()
            .map_err(drawing)?;
        let bars = counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(bin, count)| {
            let left = low + bin as f64 * width;
            Rectangle::new([(left, 0.0), (left + 0.92 * width, *count as f64)], colour.mix(0.8).filled())
        });
        chart.draw_series(bars).map_err(drawing)?;
        if let Some(at) = line {
            let style = RGBColor(209, 73, 91).stroke_width(3);
            chart.draw_series([PathElement::new(vec![(at, 0.0), (at, top)], style)]).map_err(drawing)?;
        }
        area.present().map_err(drawing)?;
    }
    Ok(described(&svg, title))
}

/// The range of some values with a margin on both sides.
fn padded(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if !(low.is_finite() && high.is_finite()) {
        return (0.0, 1.0);
    }
    let margin = 0.04 * (high - low).max(1e-6);
    (low - margin, high + margin)
}

/// The backend's errors borrow what is drawn on: their text is kept.
fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("could not draw a chart: {error}")
}

/// Scales with its column, and says what it shows.
fn described(svg: &str, title: &str) -> String {
    let escaped = maud::html! { (title) }.into_string();
    let (width, height) = SIZE;
    svg.replacen(
        &format!("width=\"{width}\" height=\"{height}\""),
        &format!("class=\"chart\" role=\"img\" aria-label=\"{}\"", escaped.replace('"', "&quot;")),
        1,
    )
}
