//! Line charts as inline SVG.

use anyhow::anyhow;
use plotters::prelude::*;

/// One line.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: &'static str,
    /// (x, y), x ascending.
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart of at least one line; none where nothing was recorded.
pub(super) fn line_chart(
    x_label: &str,
    y_label: &str,
    range: Option<(f64, f64)>,
    series: &[Series],
) -> anyhow::Result<Option<String>> {
    let points = || series.iter().flat_map(|series| &series.points);
    let Some(last) = points().map(|(x, _)| *x).reduce(f64::max) else { return Ok(None) };
    let first = points().map(|(x, _)| *x).fold(last, f64::min);
    let (low, high) = range.unwrap_or_else(|| {
        let low = points().map(|(_, y)| *y).fold(f64::INFINITY, f64::min);
        let high = points().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max);
        let margin = 0.05 * (high - low).max(1e-6);
        (low - margin, high + margin)
    });
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (520, 300)).into_drawing_area();
        // The backend's errors borrow what is drawn on: keep their text.
        let text = |error: &dyn std::fmt::Display| anyhow!("could not draw a chart: {error}");
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(first..last.max(first + 1.0), low..high)
            .map_err(|error| text(&error))?;
        let grey = parse("#8a8f98")?;
        chart
            .configure_mesh()
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| if high > 20.0 { format!("{y:.0}") } else { format!("{y:.1}") })
            .x_desc(x_label)
            .y_desc(y_label)
            .axis_style(grey)
            .light_line_style(TRANSPARENT)
            .bold_line_style(grey.mix(0.25))
            .label_style(("sans-serif", 15).into_font().color(&grey))
            .axis_desc_style(("sans-serif", 15).into_font().color(&grey))
            .draw()
            .map_err(|error| text(&error))?;
        for Series { colour, points, .. } in series {
            let style = parse(colour)?.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))
                .map_err(|error| text(&error))?;
        }
        area.present().map_err(|error| text(&error))?;
    }
    // Scales with its column.
    Ok(Some(svg.replacen("width=\"520\" height=\"300\"", "class=\"chart\"", 1)))
}

fn parse(colour: &str) -> anyhow::Result<RGBColor> {
    let part = |range| {
        let digits = colour.get(range).ok_or_else(|| anyhow!("`{colour}` is no colour"))?;
        Ok::<u8, anyhow::Error>(u8::from_str_radix(digits, 16)?)
    };
    Ok(RGBColor(part(1..3)?, part(3..5)?, part(5..7)?))
}
