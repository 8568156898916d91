//! Line charts: axes with round numbers, a legend, and smooth curves.
//!
//! The look shared by all diagrams (the palette, the card they stand on) is here too. What is
//! shown, and where on the picture, is up to the caller.

use crate::canvas::{Align, Canvas, Colour, Point, Rect, TextStyle};
use crate::number::{floor_index, real};

/// The background of a picture.
pub const PAPER: Colour = Colour::rgb(0xf6, 0xf7, 0xf9);
/// The colour of text.
pub const INK: Colour = Colour::rgb(0x1c, 0x23, 0x2e);
/// The colour of what is secondary.
pub const MUTED: Colour = Colour::rgb(0x6b, 0x74, 0x84);
/// The colour of grid lines and borders.
pub const LINE: Colour = Colour::rgb(0xe3, 0xe6, 0xeb);
/// The one colour that draws attention.
pub const ACCENT: Colour = Colour::rgb(0x1f, 0x6f, 0xeb);

/// One curve. The first value stands at 1 on the horizontal axis.
#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// What the legend says.
    pub label: &'a str,
    /// The values, all finite.
    pub values: &'a [f32],
    /// The colour of the curve.
    pub colour: Colour,
    /// Whether the curve is emphasised.
    pub strong: bool,
}

/// What a chart shows.
#[derive(Clone, Debug)]
pub struct Chart<'a> {
    /// The heading.
    pub title: &'a str,
    /// What the horizontal axis counts.
    pub x_label: &'a str,
    /// The curves, the last one on top.
    pub series: &'a [Series<'a>],
    /// The least value of the vertical axis.
    pub low: f32,
    /// The greatest value of the vertical axis.
    pub high: f32,
    /// How many decimals the vertical axis shows.
    pub decimals: usize,
    /// What follows each number on the vertical axis.
    pub unit: &'a str,
}

/// Draws the sheet on which a diagram stands, with its heading.
pub fn draw_card(canvas: &mut Canvas, area: Rect, title: &str) {
    canvas.rounded(area, 10.0, Colour::WHITE);
    canvas.outline(area, 10.0, 1.0, LINE);
    canvas.text(Point::new(area.x + 24.0, area.y + 30.0), title, TextStyle::heading(INK));
}

/// Draws a whole chart on its card.
pub fn draw_chart(canvas: &mut Canvas, area: Rect, chart: &Chart<'_>) {
    draw_card(canvas, area, chart.title);
    draw_legend(canvas, area, chart.series);
    let plot = Rect::new(area.x + 84.0, area.y + 62.0, area.width - 114.0, area.height - 122.0);
    let last = chart.series.iter().map(|series| series.values.len()).max().unwrap_or(1);
    let scale = Scale { plot, last, low: chart.low, high: chart.high };
    draw_axes(canvas, &scale, chart);
    for series in chart.series {
        draw_series(canvas, &scale, series);
    }
}

/// Where values lie on the picture.
struct Scale {
    plot: Rect,
    last: usize,
    low: f32,
    high: f32,
}

impl Scale {
    /// The place of position `number` (from 1) on the horizontal axis.
    fn x(&self, number: usize) -> f32 {
        if self.last <= 1 {
            return self.plot.centre().x;
        }
        let share = real(number.saturating_sub(1)) / real(self.last - 1);
        self.plot.x + share * self.plot.width
    }

    fn y(&self, value: f32) -> f32 {
        let share = (value - self.low) / (self.high - self.low).max(f32::MIN_POSITIVE);
        self.plot.bottom() - share.clamp(0.0, 1.0) * self.plot.height
    }

    fn place(&self, series: &Series<'_>) -> Vec<Point> {
        let places = series.values.iter().enumerate();
        places.map(|(i, value)| Point::new(self.x(i + 1), self.y(*value))).collect()
    }
}

fn draw_legend(canvas: &mut Canvas, area: Rect, series: &[Series<'_>]) {
    let style = TextStyle::small(MUTED);
    let mut right = area.right() - 28.0;
    for series in series.iter().rev() {
        let y = area.y + 30.0;
        canvas.text(Point::new(right, y), series.label, style.aligned(Align::Right));
        right -= style.width(series.label) + 10.0;
        let thickness = thickness(series);
        canvas.line(Point::new(right - 22.0, y), Point::new(right, y), thickness, series.colour);
        right -= 46.0;
    }
}

const fn thickness(series: &Series<'_>) -> f32 {
    if series.strong { 3.0 } else { 2.0 }
}

fn draw_axes(canvas: &mut Canvas, scale: &Scale, chart: &Chart<'_>) {
    let plot = scale.plot;
    let style = TextStyle::small(MUTED);
    let step = round_step((chart.high - chart.low) / 5.0);
    for number in 0..=20 {
        let value = (chart.low / step).ceil() * step + real(number) * step;
        if value > chart.high + step * 0.01 {
            break;
        }
        // Grid lines lie on whole pixels, so that they are crisp.
        let y = scale.y(value).floor() + 0.5;
        canvas.line(Point::new(plot.x, y), Point::new(plot.right(), y), 1.0, LINE);
        let label = format!("{value:.*}{}", chart.decimals, chart.unit);
        canvas.text(Point::new(plot.x - 12.0, y), &label, style.aligned(Align::Right));
    }
    let base = plot.bottom().floor() + 0.5;
    canvas.line(Point::new(plot.x, base), Point::new(plot.right(), base), 1.0, MUTED);
    for number in epoch_ticks(scale.last) {
        let x = scale.x(number).floor() + 0.5;
        canvas.line(Point::new(x, base), Point::new(x, base + 5.0), 1.0, MUTED);
        let at = Point::new(x, base + 18.0);
        canvas.text(at, &number.to_string(), style.aligned(Align::Centre));
    }
    let at = Point::new(plot.centre().x, base + 40.0);
    canvas.text(at, chart.x_label, style.aligned(Align::Centre));
}

fn draw_series(canvas: &mut Canvas, scale: &Scale, series: &Series<'_>) {
    let points = scale.place(series);
    if series.strong {
        shade_below(canvas, scale, &points, series.colour);
    }
    for pair in points.windows(2) {
        if let [from, to] = pair {
            canvas.line(*from, *to, thickness(series), series.colour);
        }
    }
    if points.len() <= 32 {
        for point in points {
            canvas.dot(point, thickness(series) + 1.5, Colour::WHITE);
            canvas.dot(point, thickness(series) + 0.5, series.colour);
        }
    }
}

/// Tints the area between a curve and the base line.
fn shade_below(canvas: &mut Canvas, scale: &Scale, points: &[Point], colour: Colour) {
    for pair in points.windows(2) {
        let [from, to] = pair else { continue };
        // Pixels belong to the pair which their centre lies in, so that none is tinted twice.
        let top = from.y.min(to.y) - 1.0;
        let bounds = Rect::new(from.x, top, to.x - from.x, scale.plot.bottom() - top - 1.0);
        canvas.shape(bounds, colour, 0.07, |point| {
            if point.x < from.x || point.x >= to.x {
                return 1.0;
            }
            let share = (point.x - from.x) / (to.x - from.x).max(f32::MIN_POSITIVE);
            from.y + share * (to.y - from.y) - point.y
        });
    }
}

/// The next round number (1, 2 or 5 times a power of ten) which is not below a positive one.
pub fn round_step(at_least: f32) -> f32 {
    let power = 10_f32.powf(at_least.max(1e-6).log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let fitting = factors.into_iter().find(|factor| factor * power >= at_least * 0.999);
    fitting.unwrap_or(10.0) * power
}

/// Which positions on the horizontal axis get a number: the first, the last, round ones between.
fn epoch_ticks(last: usize) -> Vec<usize> {
    if last <= 16 {
        return (1..=last).collect();
    }
    let step = floor_index(round_step(real(last) / 10.0)).max(1);
    let between = (step..last).step_by(step).filter(|tick| *tick > 1 && last - tick > step / 2);
    std::iter::once(1).chain(between).chain([last]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (at_least, expected) in [(0.13, 0.2), (0.2, 0.2), (3.0, 5.0), (7.0, 10.0)] {
            assert!((round_step(at_least) - expected).abs() < 1e-6, "{at_least}");
        }
    }

    #[test]
    fn ticks_are_few_and_end_with_the_last() {
        for last in 1..=1000 {
            let ticks = epoch_ticks(last);
            assert!(ticks.len() <= 16, "{last}: {ticks:?}");
            assert_eq!(ticks.last(), Some(&last));
            assert!(ticks.is_sorted_by(|a, b| a < b), "{last}: {ticks:?}");
        }
    }

    #[test]
    fn a_single_value_is_drawn() {
        let mut canvas = Canvas::new(400, 300, PAPER);
        let series = Series { label: "one", values: &[0.5], colour: ACCENT, strong: true };
        let chart =
            Chart { title: "Single", x_label: "epoch", series: &[series], low: 0.0, high: 1.0, decimals: 1, unit: "" };
        let before = canvas.to_png().unwrap();
        draw_chart(&mut canvas, Rect::new(0.0, 0.0, 400.0, 300.0), &chart);
        assert_ne!(canvas.to_png().unwrap(), before);
    }
}
