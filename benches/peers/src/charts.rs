//! The charts, as SVG.

use std::path::Path;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::report::{Figures, geometric_mean, is_float, rate};

/// Distinct in print and for most kinds of colour blindness.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(100, 100, 100),
    RGBColor(120, 60, 20),
];

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn draw(path: &Path, chart: impl FnOnce(&Path) -> Outcome) {
    chart(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// GMAC/s of bitlinear over multiply-adds for each stored byte of weights, under the machine's roof.
pub fn roofline(f: &Figures, path: &Path) {
    draw(path, |path| {
        let Some(limits) = f.limits.get(&1) else { return Ok(()) };
        let root = SVGBackend::new(path, (900, 560)).into_drawing_area();
        root.fill(&WHITE)?;
        let (read, integer, float) = (limits.read / 1e9, limits.integer / 1e9, limits.float / 1e9);
        let top = integer.max(limits.integer_16 / 1e9) * 2.0;
        let mut chart = ChartBuilder::on(&root)
            .caption("bitlinear under the roof of this machine, one thread", ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d((0.05f64..2000.0).log_scale(), (1.0f64..top).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("multiply-adds for each byte of stored weights (m x 8 / bits)")
            .y_desc("GMAC/s, geometric mean over the shapes")
            .light_line_style(WHITE)
            .draw()?;
        let roof = |peak: f64| {
            let steps = (0..=400).map(|i| 0.05 * 40_000f64.powf(f64::from(i) / 400.0));
            steps.map(move |x| (x, (x * read).min(peak))).filter(|p| p.1 >= 1.0).collect::<Vec<_>>()
        };
        for (peak, name) in [(integer, "int8 multiply-adds"), (float, "f32 multiply-adds")] {
            chart.draw_series(LineSeries::new(roof(peak), BLACK.stroke_width(2)))?;
            chart.draw_series(std::iter::once(Text::new(
                format!("{name}: {peak:.0}"),
                (250.0, peak * 1.2),
                ("sans-serif", 13),
            )))?;
        }
        chart.draw_series(std::iter::once(Text::new(
            format!("reading: {read:.1} GB/s"),
            (0.4, read * 0.35),
            ("sans-serif", 13),
        )))?;
        let wanted = ["ternary", "q1_0", "q4_0", "q4_k", "q6_k", "int8", "f16"];
        let formats = f.formats.iter().filter(|x| wanted.contains(&x.name));
        for (format, colour) in formats.zip(COLOURS) {
            let points: Vec<(f64, f64)> = f
                .rows()
                .into_iter()
                .filter_map(|m| {
                    let pairs = f.pairs(format.name, m, 1, m <= 32);
                    let mean = geometric_mean(pairs.iter().map(|p| rate(p.ours)))?;
                    Some((m as f64 * 8.0 / format.bits, mean / 1e9))
                })
                .collect();
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
                .label(format.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
            chart.draw_series(points.into_iter().map(|p| Circle::new(p, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.filled())
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 13))
            .draw()?;
        root.present()?;
        Ok(())
    });
}

/// Positions 0 .. n with names.
struct Names(Vec<String>);

impl Ranged for Names {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;
    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (f64::from(limit.1 - limit.0) * value / self.0.len() as f64) as i32
    }
    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.0.len()).map(|i| i as f64 + 0.5).collect()
    }
    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.0.len() as f64
    }
}

impl ValueFormatter<f64> for Names {
    fn format(value: &f64) -> String {
        value.to_string()
    }
    fn format_ext(&self, value: &f64) -> String {
        self.0.get(*value as usize).cloned().unwrap_or_default()
    }
}

/// How many times as fast as the best peer, by format and rows of x, one thread.
pub fn ratios(f: &Figures, path: &Path) {
    draw(path, |path| {
        let wanted: Vec<usize> = [1, 8, 32, 128].into_iter().filter(|m| f.rows().contains(m)).collect();
        let bars: Vec<(String, Vec<Option<f64>>)> = f
            .formats
            .iter()
            .map(|x| {
                let ratios = wanted.iter().map(|&m| f.ratio("", x.name, m, 1, m <= 32)).collect();
                (x.name.to_string(), ratios)
            })
            .filter(|(_, ratios): &(_, Vec<Option<f64>>)| ratios.iter().any(Option::is_some))
            .collect();
        let top = bars.iter().flat_map(|b| &b.1).flatten().fold(2.0f64, |a, &b| a.max(b)) * 1.3;
        let bottom = bars.iter().flat_map(|b| &b.1).flatten().fold(0.5f64, |a, &b| a.min(b)) / 1.2;
        let root = SVGBackend::new(path, (1100, 460)).into_drawing_area();
        root.fill(&WHITE)?;
        let names = Names(bars.iter().map(|b| b.0.clone()).collect());
        let mut chart = ChartBuilder::on(&root)
            .caption("Speed of bitlinear over that of the fastest peer, one thread", ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(48)
            .build_cartesian_2d(names, (bottom..top).log_scale())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(bars.len())
            .y_desc("times as fast")
            .y_label_formatter(&|v| format!("{v:.1}"))
            .light_line_style(WHITE)
            .draw()?;
        for (i, (&m, colour)) in wanted.iter().zip(COLOURS).enumerate() {
            let width = 0.8 / wanted.len() as f64;
            let rectangles = bars.iter().enumerate().filter_map(|(b, (_, ratios))| {
                let left = b as f64 + 0.1 + i as f64 * width;
                Some(Rectangle::new([(left, 1.0), (left + width, ratios[i]?)], colour.filled()))
            });
            chart
                .draw_series(rectangles)?
                .label(format!("m = {m}"))
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
        }
        let line = vec![(0.0, 1.0), (bars.len() as f64, 1.0)];
        chart.draw_series(LineSeries::new(line, BLACK.stroke_width(1)))?;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.filled())
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 13))
            .draw()?;
        root.present()?;
        Ok(())
    });
}

/// GMAC/s over rows of x, everybody, four formats, one thread.
pub fn rows(f: &Figures, path: &Path) {
    draw(path, |path| {
        let root = SVGBackend::new(path, (1100, 760)).into_drawing_area();
        root.fill(&WHITE)?;
        let areas = root.split_evenly((2, 2));
        let wanted = ["ternary", "q4_0", "q4_k", "int8"];
        let formats = f.formats.iter().filter(|x| wanted.contains(&x.name));
        for (area, format) in areas.iter().zip(formats) {
            let lines: Vec<(String, Vec<(f64, f64)>)> = f
                .contestants(format.name)
                .into_iter()
                .map(|name| {
                    let points = f.rows().into_iter().filter_map(|m| {
                        let here = |c: &&crate::store::Cell| {
                            c.format == format.name
                                && c.contestant == name
                                && (c.m, c.threads, c.dram) == (m, 1, m <= 32)
                        };
                        let mean = geometric_mean(f.store.cells.iter().filter(here).map(rate))?;
                        Some((m as f64, mean / 1e9))
                    });
                    (name.clone(), points.collect())
                })
                .collect();
            let Some(limits) = f.limits.get(&1) else { return Ok(()) };
            let peak = if is_float(format.name) { limits.float } else { limits.integer } / 1e9;
            let top = lines.iter().flat_map(|l| &l.1).fold(peak, |a, p| a.max(p.1)) * 1.4;
            let mut chart = ChartBuilder::on(area)
                .caption(format!("{}: GMAC/s, one thread", format.name), ("sans-serif", 17))
                .margin(10)
                .x_label_area_size(34)
                .y_label_area_size(44)
                .build_cartesian_2d((1.0f64..600.0).log_scale(), (1.0f64..top).log_scale())?;
            chart.configure_mesh().x_desc("rows of x").light_line_style(WHITE).draw()?;
            chart.draw_series(LineSeries::new(vec![(1.0, peak), (600.0, peak)], BLACK.stroke_width(1)))?;
            for ((name, points), colour) in lines.into_iter().zip(COLOURS) {
                let width = if name == "bitlinear" { 3 } else { 1 };
                chart
                    .draw_series(LineSeries::new(points.clone(), colour.stroke_width(width)))?
                    .label(name)
                    .legend(move |(x, y)| {
                        PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2))
                    });
                chart.draw_series(points.into_iter().map(|p| Circle::new(p, 2, colour.filled())))?;
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.filled())
                .border_style(RGBColor(200, 200, 200))
                .label_font(("sans-serif", 12))
                .draw()?;
        }
        root.present()?;
        Ok(())
    });
}
