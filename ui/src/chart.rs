//! Charts as inline SVG. They need no script in the browser.

use std::fmt::Write as _;

use crate::escape;

/// The size of a chart, in units of the SVG's view box.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 120.0;
/// The maximum distance in milliseconds between two connected points. The line is broken at a longer gap.
const GAP: i64 = 180_000;

/// A chart of values over time.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    /// The unit of the values; empty for amounts that [`Line::text`] writes with their unit.
    pub(crate) unit: &'a str,
    /// Each point is (time in milliseconds, value), in order of time.
    pub(crate) points: &'a [(i64, f64)],
    /// The begin and the end of the horizontal axis.
    pub(crate) period: (i64, i64),
    /// The vertical axis reaches from zero to this value, or to the highest value if that is higher.
    pub(crate) scale: f64,
    /// The maximum distance in milliseconds between two connected points. The line is broken at a longer gap.
    pub(crate) gap: i64,
    /// A value in words.
    pub(crate) text: fn(f64) -> String,
}

/// Draws the readings of a machine, of which there is one each minute, as a line.
pub(crate) fn line(name: &str, unit: &str, points: &[(i64, f64)], period: (i64, i64), scale: f64) -> String {
    Line { name, unit, points, period, scale, gap: GAP, text: short }.draw()
}

impl Line<'_> {
    pub(crate) fn draw(&self) -> String {
        let values = || self.points.iter().map(|(_, value)| *value);
        let highest = values().fold(0.0, f64::max);
        let top = if highest < self.scale { self.scale } else { round_above(highest) };
        let (name, unit) = (escape::html(self.name), escape::html(self.unit));
        let text = |value: f64| format!("{} {unit}", (self.text)(value)).trim_end().to_owned();
        let summary = match self.points.last() {
            None => "no readings yet".to_owned(),
            Some((_, last)) => {
                let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
                format!("now {}; from {} to {}", text(*last), text(low), text(high))
            }
        };
        let lines = segments(self.points, self.period, top, self.gap);
        format!(
            "<figure class=\"chart\"><figcaption><b>{name}</b> <span>{summary}</span></figcaption>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"{name}: {summary}\">\
             <path class=\"grid\" d=\"M0 1H{WIDTH}M0 {half}H{WIDTH}M0 {bottom}H{WIDTH}\"/>{lines}</svg>\
             <p class=\"axis\"><span>{ago} ago</span><span>top: {top}</span><span>now</span></p></figure>",
            half = HEIGHT / 2.0,
            bottom = HEIGHT - 1.0,
            ago = long(self.period.1 - self.period.0),
            top = text(top),
        )
    }
}

/// One bar of a bar chart.
pub(crate) struct Bar {
    /// The words under the pointer: `3 Mar: $0.12`.
    pub(crate) label: String,
    pub(crate) value: f64,
}

/// Draws values as bars from zero to the highest value. `summary` says the chart in words.
// The values become pixels, so the lost precision is invisible.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn bars(name: &str, summary: &str, bars: &[Bar], (first, last): (&str, &str)) -> String {
    let (name, summary) = (escape::html(name), escape::html(summary));
    let top = bars.iter().map(|bar| bar.value).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let width = WIDTH / bars.len().max(1) as f64;
    let mut html = String::new();
    for (number, bar) in bars.iter().enumerate() {
        let height = bar.value.max(0.0) / top * (HEIGHT - 4.0);
        // A day without earnings is a line on the ground, so that the day can be pointed at. Writing cannot fail.
        let _ = write!(
            html,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\"><title>{label}</title></rect>",
            x = number as f64 * width + width * 0.1,
            y = HEIGHT - height.max(1.0),
            w = width * 0.8,
            h = height.max(1.0),
            label = escape::html(&bar.label),
        );
    }
    format!(
        "<figure class=\"chart bars\"><figcaption><b>{name}</b> <span>{summary}</span></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"{name}: {summary}\">{html}</svg>\
         <p class=\"axis\"><span>{first}</span><span>{last}</span></p></figure>",
        first = escape::html(first),
        last = escape::html(last),
    )
}

/// The next round number above a value, so that no line runs along the edge: 0.5 for 0.42, 150 for 120.
fn round_above(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let unit = 10_f64.powf(value.log10().floor());
    [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0].into_iter().find(|factor| factor * unit > value).unwrap_or(10.0) * unit
}

/// A duration in hours or, from two days on, in days, rounded: `24 h`, `7 days`.
fn long(ms: i64) -> String {
    let hours = (ms + 1_800_000) / 3_600_000;
    if hours >= 48 { format!("{} days", (hours + 12) / 24) } else { format!("{hours} h") }
}

/// The points as polylines. A new polyline begins after each gap.
// The values become pixels, so the lost precision is invisible.
#[allow(clippy::cast_precision_loss)]
fn segments(points: &[(i64, f64)], (from, to): (i64, i64), top: f64, gap: i64) -> String {
    let span = (to - from).max(1) as f64;
    let mut html = String::new();
    for run in points.chunk_by(|(a, _), (b, _)| b - a <= gap) {
        html.push_str("<polyline points=\"");
        for (at, value) in run {
            let x = (at - from) as f64 / span * WIDTH;
            let y = HEIGHT - 2.0 - value.clamp(0.0, top) / top * (HEIGHT - 4.0);
            // Writing to a String cannot fail.
            let _ = write!(html, "{x:.1},{y:.1} ");
            // A single point becomes a short line, because a polyline of one point is invisible.
            if run.len() == 1 {
                let _ = write!(html, "{:.1},{y:.1} ", if x > WIDTH / 2.0 { x - 8.0 } else { x + 8.0 });
            }
        }
        html.push_str("\"/>");
    }
    html
}

/// A number with at most one decimal: `12.5`, `12`, `120`.
pub(crate) fn short(value: f64) -> String {
    let text = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") };
    text.strip_suffix(".0").map_or(text.clone(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_a_chart_is_a_round_number_above_its_values() {
        for (value, top) in [(0.0, 1.0), (0.42, 0.5), (1.0, 1.5), (3.0, 4.0), (120.0, 150.0), (9.5, 10.0)] {
            assert!((round_above(value) - top).abs() < 1e-9, "{value}: {}", round_above(value));
        }
    }

    #[test]
    fn bars_reach_from_the_ground_to_the_highest_value() {
        let bar = |label: &str, value| Bar { label: label.to_owned(), value };
        let html = bars("Earned", "$3 in 2 days", &[bar("<1>", 0.0), bar("2", 3.0)], ("first", "today"));
        assert_eq!(html.matches("<rect").count(), 2);
        assert!(
            html.contains("height=\"1.0\"><title>&#60;1&#62;") && html.contains("height=\"116.0\"><title>2"),
            "{html}"
        );
    }

    #[test]
    fn a_line_names_its_last_value_and_is_broken_at_gaps() {
        let minute = 60_000;
        let points = [(0, 10.0), (minute, 20.0), (10 * minute, 30.5)];
        let html = line("Load", "%", &points, (0, 60 * minute), 100.0);
        assert_eq!(html.matches("<polyline").count(), 2);
        assert!(html.contains("now 30.5 %; from 10 % to 30.5 %") && html.contains("1 h ago"), "{html}");
        assert!(line("<b>", "%", &[], (0, minute), 0.0).contains("&#60;b&#62;: no readings yet"));
    }
}
