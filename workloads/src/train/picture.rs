//! The picture of a training: the curves, the confusion matrix, and some digits as they were read.
//!
//! Only the composition is here; how lines and letters are drawn is told in `canvas` and `chart`.

use super::data::{Part, Picture, SIDE};
use super::learning::Metrics;
use crate::canvas::{Align, Canvas, Colour, Point, Rect, TextStyle};
use crate::chart::{ACCENT, Chart, INK, LINE, MUTED, PAPER, Series, draw_card, draw_chart, round_step};
use crate::error::Error;
use crate::number::{floor_index, real, single};

/// Width and height of the picture.
const SIZE: (usize, usize) = (1280, 1000);

const LEFT: f32 = 40.0;
const SAMPLES: usize = 15;
/// At most so many of the shown samples are mistakes.
const MISTAKES: usize = 5;

/// Draws the whole picture and encodes it.
pub(super) fn draw(metrics: &Metrics, test: &Part, read: &[u32]) -> Result<Vec<u8>, Error> {
    let mut canvas = Canvas::new(SIZE.0, SIZE.1, PAPER);
    draw_header(&mut canvas, metrics);
    draw_loss(&mut canvas, Rect::new(LEFT, 124.0, 660.0, 322.0), metrics);
    draw_accuracy(&mut canvas, Rect::new(LEFT, 466.0, 660.0, 322.0), metrics);
    draw_confusion(&mut canvas, Rect::new(720.0, 124.0, 520.0, 664.0), metrics);
    draw_samples(&mut canvas, Rect::new(LEFT, 808.0, 1200.0, 158.0), test, read);
    canvas.to_png()
}

fn draw_header(canvas: &mut Canvas, metrics: &Metrics) {
    let title = TextStyle::title(INK);
    canvas.text(Point::new(LEFT, 48.0), "Reading handwritten digits", title);
    let layers: Vec<String> = metrics.layers.iter().map(ToString::to_string).collect();
    let about = format!(
        "network {}, weights {}, epochs {}, batch {}, learning rate {}, seed {}",
        layers.join("-"),
        metrics.weights,
        metrics.epochs.len(),
        metrics.parameters.batch,
        metrics.parameters.learning_rate,
        metrics.seed
    );
    let small = TextStyle::small(MUTED);
    canvas.text(Point::new(LEFT, 86.0), &about, small);
    let result = format!("{:.1} %", 100.0 * metrics.test_accuracy);
    let right = real(SIZE.0) - LEFT;
    canvas.text(Point::new(right, 48.0), &result, TextStyle::title(ACCENT).aligned(Align::Right));
    let below = format!("of {} test digits correct", metrics.test_pictures);
    canvas.text(Point::new(right, 86.0), &below, small.aligned(Align::Right));
}

fn draw_loss(canvas: &mut Canvas, area: Rect, metrics: &Metrics) {
    let train: Vec<f32> = metrics.epochs.iter().map(|epoch| single(epoch.train_loss)).collect();
    let test: Vec<f32> = metrics.epochs.iter().map(|epoch| single(epoch.test_loss)).collect();
    let most = train.iter().chain(&test).copied().fold(0.0, f32::max);
    let step = round_step(most / 5.0);
    let chart = Chart {
        title: "Loss",
        x_label: "epoch",
        series: &[
            Series { label: "training", values: &train, colour: MUTED, strong: false },
            Series { label: "test", values: &test, colour: ACCENT, strong: true },
        ],
        low: 0.0,
        high: (most / step).ceil().max(1.0) * step,
        decimals: decimals(step),
        unit: "",
    };
    draw_chart(canvas, area, &chart);
}

fn draw_accuracy(canvas: &mut Canvas, area: Rect, metrics: &Metrics) {
    let test: Vec<f32> = metrics.epochs.iter().map(|epoch| single(100.0 * epoch.test_accuracy)).collect();
    let least = test.iter().copied().fold(100.0, f32::min);
    let step = round_step((100.0 - least).max(1.0) / 5.0);
    let chart = Chart {
        title: "Accuracy",
        x_label: "epoch",
        series: &[Series { label: "test", values: &test, colour: ACCENT, strong: true }],
        low: 100.0 - (((100.0 - least) / step).ceil().max(1.0) * step).min(100.0),
        high: 100.0,
        decimals: decimals(step),
        unit: " %",
    };
    draw_chart(canvas, area, &chart);
}

/// How many decimals are needed to tell multiples of a round step apart.
fn decimals(step: f32) -> usize {
    floor_index((-step.log10() - 0.01).ceil())
}

fn draw_confusion(canvas: &mut Canvas, area: Rect, metrics: &Metrics) {
    const CELL: f32 = 43.0;
    draw_card(canvas, area, "Confusion matrix");
    let table = Rect::new(area.x + 68.0, area.y + 96.0, CELL * 10.0, CELL * 10.0);
    let label = TextStyle::small_bold(MUTED).aligned(Align::Centre);
    for (row, counts) in metrics.confusion.iter().enumerate() {
        let along = real(row) * CELL + CELL / 2.0;
        canvas.text(Point::new(table.x - 22.0, table.y + along), &row.to_string(), label);
        canvas.text(Point::new(table.x + along, table.y - 20.0), &row.to_string(), label);
        let most = counts.iter().sum::<u32>().max(1);
        for (column, count) in counts.iter().enumerate() {
            let place = Rect::new(
                table.x + real(column) * CELL + 1.5,
                table.y + real(row) * CELL + 1.5,
                CELL - 3.0,
                CELL - 3.0,
            );
            draw_cell(canvas, place, *count, most);
        }
    }
    let style = TextStyle::small(MUTED);
    let x = area.x + 24.0;
    canvas.text(Point::new(x, table.bottom() + 40.0), "row: the digit that was written", style);
    canvas.text(Point::new(x, table.bottom() + 64.0), "column: the digit that was read", style);
    let mistakes = metrics.confusion.iter().enumerate().flat_map(|(row, counts)| {
        counts.iter().enumerate().filter(move |(column, _)| *column != row).map(|(_, count)| count)
    });
    let mistakes: u32 = mistakes.sum();
    let told = format!("{mistakes} of {} misread", metrics.test_pictures);
    canvas.text(Point::new(x, table.bottom() + 100.0), &told, TextStyle::small_bold(INK));
}

fn draw_cell(canvas: &mut Canvas, place: Rect, count: u32, most: u32) {
    if count == 0 {
        canvas.rounded(place, 5.0, PAPER);
        return;
    }
    let share = single(f64::from(count) / f64::from(most));
    // Even a single mistake must be seen.
    let colour = Colour::WHITE.mix(ACCENT, 0.12 + 0.88 * share);
    canvas.rounded(place, 5.0, colour);
    let ink = if share > 0.45 { Colour::WHITE } else { INK };
    let style = TextStyle::small(ink).aligned(Align::Centre);
    canvas.text(place.centre(), &count.to_string(), style);
}

fn draw_samples(canvas: &mut Canvas, area: Rect, test: &Part, read: &[u32]) {
    draw_card(canvas, area, "Samples");
    let note = TextStyle::small(MUTED).aligned(Align::Right);
    let told = "below: the digit that was read, and for mistakes the one that was written";
    canvas.text(Point::new(area.right() - 28.0, area.y + 30.0), told, note);
    let side = real(SIDE) * 8.0;
    let gap = (area.width - 48.0 - side * real(SAMPLES)) / real(SAMPLES - 1);
    for (number, sample) in choose(&test.labels, read).into_iter().enumerate() {
        let x = (area.x + 24.0 + real(number) * (side + gap)).round();
        let place = Rect::new(x, area.y + 54.0, side, side);
        draw_digit(canvas, place, &test.pictures[sample]);
        let (truth, read) = (test.labels[sample], read[sample]);
        let below = Point::new(place.centre().x, place.bottom() + 20.0);
        if truth == read {
            let style = TextStyle::small(INK).aligned(Align::Centre);
            canvas.text(below, &read.to_string(), style);
        } else {
            canvas.outline(place.grown(2.0), 3.0, 3.0, ACCENT);
            let style = TextStyle::small_bold(ACCENT).aligned(Align::Centre);
            canvas.text(below, &format!("{read} not {truth}"), style);
        }
    }
}

fn draw_digit(canvas: &mut Canvas, place: Rect, picture: &Picture) {
    let step = place.width / real(SIDE);
    for (i, brightness) in picture.iter().enumerate() {
        let (x, y) = (real(i % SIDE) * step, real(i / SIDE) * step);
        let pixel = Rect::new(place.x + x, place.y + y, step, step);
        canvas.fill(pixel, PAPER.mix(INK, *brightness));
    }
    canvas.outline(place, 0.0, 1.0, LINE);
}

/// Which test pictures to show: one of each digit that was read well, then some mistakes.
fn choose(truth: &[u32], read: &[u32]) -> Vec<usize> {
    let is_right = |i: &usize| truth[*i] == read[*i];
    let all = truth.len().min(read.len());
    let mistakes: Vec<usize> = (0..all).filter(|i| !is_right(i)).take(MISTAKES).collect();
    let wanted = SAMPLES - mistakes.len();
    let mut right: Vec<usize> = Vec::new();
    // More rounds than needed, since the network may never read some digit well.
    for round in 0..wanted {
        for digit in 0..10 {
            right.extend((0..all).filter(is_right).filter(|i| truth[*i] == digit).nth(round));
        }
    }
    right.truncate(wanted);
    right.extend(mistakes);
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_show_each_digit_and_some_mistakes() {
        let truth: Vec<u32> = (0..200).map(|i| i % 10).collect();
        let mut read = truth.clone();
        for wrong in &mut read[20..60] {
            *wrong = (*wrong + 1) % 10;
        }
        let chosen = choose(&truth, &read);
        assert_eq!(chosen.len(), SAMPLES);
        assert_eq!(chosen[..10].iter().map(|i| truth[*i]).collect::<Vec<_>>(), truth[..10]);
        assert!(chosen[10..].iter().all(|i| truth[*i] != read[*i]));
        assert_eq!(choose(&truth, &truth).len(), SAMPLES);
    }

    #[test]
    fn decimals_fit_the_step() {
        for (step, expected) in [(20.0, 0), (5.0, 0), (1.0, 0), (0.5, 1), (0.2, 1), (0.05, 2)] {
            assert_eq!(decimals(step), expected, "{step}");
        }
    }
}
