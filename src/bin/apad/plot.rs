//! Line plots as PNG and SVG, with a font of their own. Knows nothing of what the numbers mean.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

const FONT: &[u8] = include_bytes!("fonts/DejaVuSans-subset.ttf");
const FAMILY: &str = "sans-serif";
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 95, 168),
    RGBColor(196, 88, 22),
    RGBColor(44, 128, 76),
    RGBColor(120, 70, 150),
    RGBColor(160, 40, 70),
    RGBColor(100, 100, 40),
];

/// One line of a panel.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Its name in the legend; a nameless one is left out of it.
    pub name: String,
    /// Points from left to right. Those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// A faint band behind it: x with the least and the greatest y.
    pub band: Vec<(f64, f64, f64)>,
    /// Drawn faintly and without dots, as one of many.
    pub thin: bool,
    /// Number of its colour; unset: its position among the lines.
    pub colour: Option<usize>,
}

/// One coordinate system.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Below it, with the unit.
    pub x_label: String,
    /// Beside it, with the unit.
    pub y_label: String,
    /// The lines.
    pub series: Vec<Series>,
    /// A thin horizontal line at a value worth comparing with.
    pub mark: Option<f64>,
}

/// Pixels of a PNG per unit of size: sharp on dense screens, and letters keep their spacing.
const PNG_SCALE: u32 = 2;

/// Writes the panels, `columns` side by side, as a PNG; sizes are those of [`svg`], in finer pixels.
///
/// # Errors
/// If the file can't be written.
pub fn write_png(path: &Path, panels: &[Panel], columns: usize, size: (u32, u32)) -> Result<()> {
    use_own_font()?;
    let root = BitMapBackend::new(path, (size.0 * PNG_SCALE, size.1 * PNG_SCALE)).into_drawing_area();
    draw(&root, panels, columns, PNG_SCALE).with_context(|| format!("drawing {}", path.display()))
}

/// The panels, `columns` side by side, as an SVG element that stands inside a page.
///
/// # Errors
/// If the drawing library refuses the coordinates.
pub fn svg(panels: &[Panel], columns: usize, size: (u32, u32)) -> Result<String> {
    use_own_font()?;
    let mut text = String::new();
    draw(&SVGBackend::with_string(&mut text, size).into_drawing_area(), panels, columns, 1)
        .context("drawing an SVG")?;
    // A fixed size would overflow narrow windows; the view box lets the page scale it.
    let fixed = format!("<svg width=\"{}\" height=\"{}\" ", size.0, size.1);
    Ok(text.replacen(&fixed, "<svg ", 1))
}

fn use_own_font() -> Result<()> {
    register_font(FAMILY, FontStyle::Normal, FONT).map_err(|_| anyhow!("the built-in font is damaged"))
}

fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, panels: &[Panel], columns: usize, scale: u32) -> Result<()>
where
    DB::ErrorType: 'static,
{
    root.fill(&WHITE)?;
    let columns = columns.max(1);
    let areas = root.split_evenly((panels.len().div_ceil(columns).max(1), columns));
    for (panel, area) in panels.iter().zip(&areas) {
        draw_panel(area, panel, scale)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, panel: &Panel, scale: u32) -> Result<()>
where
    DB::ErrorType: 'static,
{
    let font = |size: u32| (FAMILY, size * scale).into_font();
    let lines: Vec<Vec<(f64, f64)>> = panel
        .series
        .iter()
        .map(|s| s.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect())
        .collect();
    let xs = range(lines.iter().flatten().map(|p| p.0), 0.02);
    let edges = panel.series.iter().flat_map(|s| &s.band).flat_map(|(_, low, high)| [*low, *high]);
    let ys = range(lines.iter().flatten().map(|p| p.1).chain(edges.filter(|y| y.is_finite())).chain(panel.mark), 0.08);
    let mut chart = ChartBuilder::on(area)
        .margin(12 * scale)
        .caption(&panel.title, font(18))
        .x_label_area_size(38 * scale)
        .y_label_area_size(58 * scale)
        .build_cartesian_2d(xs.clone(), ys)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(120, 120, 120))
        .x_labels(8)
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .y_labels(7)
        .x_desc(&panel.x_label)
        .y_desc(&panel.y_label)
        .label_style(font(13))
        .axis_desc_style(font(13))
        .draw()?;
    if let Some(mark) = panel.mark {
        chart.draw_series(LineSeries::new([(xs.start, mark), (xs.end, mark)], RGBColor(150, 150, 150)))?;
    }
    // Behind all lines.
    for (place, series) in panel.series.iter().enumerate().filter(|(_, s)| s.band.len() > 1) {
        let colour = COLOURS[series.colour.unwrap_or(place) % COLOURS.len()];
        let band = series.band.iter().filter(|(x, low, high)| x.is_finite() && low.is_finite() && high.is_finite());
        let upper = band.clone().map(|(x, _, high)| (*x, *high));
        let lower = band.clone().rev().map(|(x, low, _)| (*x, *low));
        let outline: Vec<(f64, f64)> = upper.chain(lower).collect();
        chart.draw_series([Polygon::new(outline, colour.mix(0.15).filled())])?;
    }
    for (place, (series, line)) in panel.series.iter().zip(&lines).enumerate() {
        let colour = COLOURS[series.colour.unwrap_or(place) % COLOURS.len()];
        if series.thin {
            chart.draw_series(strokes(line, colour.mix(0.4).stroke_width(scale)))?;
            continue;
        }
        let drawn = chart.draw_series(strokes(line, colour.stroke_width(2 * scale)))?;
        if !series.name.is_empty() {
            drawn.label(&series.name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 16 * scale as i32, y)], colour.stroke_width(2 * scale))
            });
        }
        chart.draw_series(line.iter().map(|p| Circle::new(*p, 3 * scale, colour.filled())))?;
    }
    if panel.series.iter().any(|s| !s.name.is_empty()) {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .label_font(font(13))
            .draw()?;
    }
    Ok(())
}

/// A line as separate strokes between points: at sharp turns plotters extends the corner of a polyline, across the
/// whole panel where it turns back.
fn strokes(line: &[(f64, f64)], style: ShapeStyle) -> impl Iterator<Item = PathElement<(f64, f64)>> {
    line.windows(2).map(move |ends| PathElement::new(ends.to_vec(), style))
}

/// As few digits as distinguish the marks of an axis.
fn number(value: &f64) -> String {
    format!("{}", (value * 1e4).round() / 1e4 + 0.0)
}

/// From the least to the greatest value with some air; never empty.
fn range(values: impl Iterator<Item = f64>, air: f64) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let pad = if high > low { (high - low) * air } else { 0.5 };
    low - pad..high + pad
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: Vec<(f64, f64)>) -> Panel {
        Panel {
            title: "reward".into(),
            x_label: "version".into(),
            y_label: "mean reward".into(),
            series: vec![Series { name: "batch".into(), points, ..Series::default() }],
            mark: Some(0.5),
        }
    }

    #[test]
    fn a_png_is_written_without_any_font_of_the_system() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curves.png");
        write_png(&path, &[panel(vec![(0.0, -1.0), (1.0, 0.5)])], 1, (400, 300)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    }

    #[test]
    fn an_svg_scales_and_holds_the_labels_as_text() {
        let text = svg(&[panel(vec![(0.0, -1.0), (1.0, 0.5)])], 1, (400, 300)).unwrap();
        assert!(text.starts_with("<svg viewBox"), "{}", &text[..80]);
        assert!(text.contains("mean reward"));
    }

    #[test]
    fn nothing_one_point_and_not_a_number_are_drawn_too() {
        for points in [vec![], vec![(3.0, 3.0)], vec![(0.0, f64::NAN), (1.0, f64::INFINITY), (2.0, 1.0)]] {
            svg(&[panel(points)], 2, (400, 300)).unwrap();
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(write_png(Path::new("no/such/folder/curves.png"), &[panel(vec![])], 1, (200, 200)).is_err());
    }
}
