//! Charts as inline SVG. They need no script in the browser.

use std::fmt::Write as _;

use crate::escape;

/// The size of a chart, in units of the SVG's view box.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 120.0;
/// The maximum distance in milliseconds between two connected points. The line is broken at a longer gap.
const GAP: i64 = 180_000;

/// Draws values over time as a line. A point is (time in milliseconds, value). The horizontal axis reaches from `from`
/// to `to`. The vertical axis reaches from zero to `scale`, or to the highest value if this is higher.
pub(crate) fn line(name: &str, unit: &str, points: &[(i64, f64)], (from, to): (i64, i64), scale: f64) -> String {
    let top = points.iter().map(|(_, v)| *v).fold(scale, f64::max);
    let top = if top > 0.0 { top } else { 1.0 };
    let (name, unit) = (escape::html(name), escape::html(unit));
    let summary = match points.last() {
        None => "no readings yet".to_owned(),
        Some((_, last)) => {
            let low = points.iter().map(|(_, v)| *v).fold(f64::INFINITY, f64::min);
            let high = points.iter().map(|(_, v)| *v).fold(0.0, f64::max);
            format!("{} {unit}; {} to {} {unit}", short(*last), short(low), short(high))
        }
    };
    let lines = segments(points, (from, to), top);
    format!(
        "<figure class=\"chart\"><figcaption><b>{name}</b> <span>{summary}</span></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"{name}: {summary}\">\
         <path class=\"grid\" d=\"M0 1H{WIDTH}M0 {half}H{WIDTH}M0 {bottom}H{WIDTH}\"/>{lines}</svg>\
         <p class=\"axis\"><span>{ago} ago</span><span>top: {top} {unit}</span><span>now</span></p></figure>",
        half = HEIGHT / 2.0,
        bottom = HEIGHT - 1.0,
        ago = hours(to - from),
        top = short(top),
    )
}

/// A duration in hours, rounded: `24 h`.
fn hours(ms: i64) -> String {
    format!("{} h", (ms + 1_800_000) / 3_600_000)
}

/// The points as polylines. A new polyline begins after each gap.
// The values become pixels, so the lost precision is invisible.
#[allow(clippy::cast_precision_loss)]
fn segments(points: &[(i64, f64)], (from, to): (i64, i64), top: f64) -> String {
    let span = (to - from).max(1) as f64;
    let mut html = String::new();
    for run in points.chunk_by(|(a, _), (b, _)| b - a <= GAP) {
        html.push_str("<polyline points=\"");
        for (at, value) in run {
            let x = (at - from) as f64 / span * WIDTH;
            let y = HEIGHT - 2.0 - value.clamp(0.0, top) / top * (HEIGHT - 4.0);
            // Writing to a String cannot fail.
            let _ = write!(html, "{x:.1},{y:.1} ");
            // A single point becomes a short line, because a polyline of one point is invisible.
            if run.len() == 1 {
                let _ = write!(html, "{:.1},{y:.1} ", x + 2.0);
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
    fn a_line_names_its_last_value_and_is_broken_at_gaps() {
        let minute = 60_000;
        let points = [(0, 10.0), (minute, 20.0), (10 * minute, 30.5)];
        let html = line("Load", "%", &points, (0, 60 * minute), 100.0);
        assert_eq!(html.matches("<polyline").count(), 2);
        assert!(html.contains("30.5 %; 10 to 30.5 %") && html.contains("1 h ago"), "{html}");
        assert!(line("<b>", "%", &[], (0, minute), 0.0).contains("&#60;b&#62;: no readings yet"));
    }
}
