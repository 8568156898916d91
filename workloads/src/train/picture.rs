//! The picture of a training: the curves of loss and accuracy, the confusion matrix, and some digits as samples.

use std::ops::Range;

use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::data::{CLASSES, PICTURE_SIDE, Picture, Subset};
use super::learning::{Confusion, Epoch, Metrics};
use crate::error::Error;
use crate::output::encode_png;

/// Width and height of the picture in pixels.
const SIZE: (usize, usize) = (1280, 1000);
/// The picture is first drawn larger by this factor and then scaled down, which makes all edges smooth.
const SCALE: usize = 2;
const FONT: &str = "Ubuntu";

const BACKGROUND_COLOUR: RGBColor = RGBColor(0xf6, 0xf7, 0xf9);
const TEXT_COLOUR: RGBColor = RGBColor(0x1c, 0x23, 0x2e);
const MUTED_COLOUR: RGBColor = RGBColor(0x6b, 0x74, 0x84);
const LINE_COLOUR: RGBColor = RGBColor(0xe3, 0xe6, 0xeb);
const ACCENT_COLOUR: RGBColor = RGBColor(0x1f, 0x6f, 0xeb);

/// The number of digits shown as samples.
const SAMPLES: usize = 15;
/// The maximum number of misread digits among the samples.
const MAX_MISREAD_SAMPLES: usize = 5;

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

/// A curve of a chart: label, colour, and a value for each epoch.
type Curve = (&'static str, RGBColor, fn(&Epoch) -> f64);

/// Draws the picture and encodes it as PNG. `predictions` has the digit that the network read in each test picture.
pub(super) fn draw(metrics: &Metrics, test: &Subset, predictions: &[usize]) -> Result<Vec<u8>, Error> {
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).map_err(|_| Error::Font)?;
    let (width, height) = (SIZE.0 * SCALE, SIZE.1 * SCALE);
    let mut pixels = vec![0; 3 * width * height];
    {
        let size = (u32::try_from(width).unwrap_or(0), u32::try_from(height).unwrap_or(0));
        let sheet = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        sheet.fill(&BACKGROUND_COLOUR)?;
        let (header, sheet) = sheet.margin(px(26), px(16), px(30), px(30)).split_vertically(px(88));
        let (results, samples) = sheet.split_vertically(px(690));
        let (curves, matrix) = results.split_horizontally(px(690));
        let (loss, accuracy) = curves.split_vertically(px(345));
        draw_header(&header, metrics)?;
        draw_loss(&loss, &metrics.epochs)?;
        draw_accuracy(&accuracy, &metrics.epochs)?;
        draw_confusion(&matrix, &metrics.confusion)?;
        draw_samples(&samples, test, predictions)?;
        sheet.present()?;
    }
    encode_png(SIZE.0, SIZE.1, &scale_down(&pixels))
}

/// Converts a length on the final picture to pixels of the larger drawing.
fn px(length: i32) -> i32 {
    length * i32::try_from(SCALE).unwrap_or(1)
}

/// Replaces each block of `SCALE` by `SCALE` pixels by its mean colour.
fn scale_down(pixels: &[u8]) -> Vec<u8> {
    let width = SIZE.0 * SCALE;
    let mean = |i: usize| {
        let (row, column, channel) = (i / 3 / SIZE.0, i / 3 % SIZE.0, i % 3);
        let offsets = (0..SCALE * SCALE).map(|k| (row * SCALE + k / SCALE) * width + column * SCALE + k % SCALE);
        let sum: usize = offsets.map(|offset| usize::from(pixels[3 * offset + channel])).sum();
        u8::try_from(sum / (SCALE * SCALE)).unwrap_or(u8::MAX)
    };
    (0..3 * SIZE.0 * SIZE.1).map(mean).collect()
}

fn font(size: i32, colour: RGBColor) -> TextStyle<'static> {
    (FONT, px(size)).into_font().color(&colour)
}

fn centred(style: &TextStyle<'static>) -> TextStyle<'static> {
    style.pos(Pos::new(HPos::Center, VPos::Center))
}

fn draw_header(area: &Area<'_>, metrics: &Metrics) -> Result<(), Error> {
    let layers: Vec<String> = metrics.layers.iter().map(ToString::to_string).collect();
    let description = format!(
        "network {}, weights {}, epochs {}, batch {}, learning rate {}, seed {}",
        layers.join("-"),
        metrics.weights,
        metrics.epochs.len(),
        metrics.parameters.batch,
        metrics.parameters.learning_rate,
        metrics.seed
    );
    area.draw_text("Reading handwritten digits", &font(38, TEXT_COLOUR), (px(10), px(5)))?;
    area.draw_text(&description, &font(18, MUTED_COLOUR), (px(10), px(52)))?;
    let right = px(1210);
    let aligned = |style: TextStyle<'static>| style.pos(Pos::new(HPos::Right, VPos::Top));
    let result = format!("{:.1} %", 100.0 * metrics.test_accuracy);
    area.draw_text(&result, &aligned(font(38, ACCENT_COLOUR)), (right, px(5)))?;
    let below = format!("of {} test digits correct", metrics.test_pictures);
    Ok(area.draw_text(&below, &aligned(font(18, MUTED_COLOUR)), (right, px(52)))?)
}

/// Draws a white card with a heading; returns the area below the heading.
fn draw_card<'a>(area: &Area<'a>, title: &str) -> Result<Area<'a>, Error> {
    let area = area.margin(px(10), px(10), px(10), px(10));
    area.fill(&LINE_COLOUR)?;
    let area = area.margin(px(1), px(1), px(1), px(1));
    area.fill(&WHITE)?;
    area.draw_text(title, &font(22, TEXT_COLOUR), (px(22), px(16)))?;
    Ok(area.margin(px(50), px(12), px(22), px(22)))
}

fn draw_loss(area: &Area<'_>, epochs: &[Epoch]) -> Result<(), Error> {
    let curves: [Curve; 2] =
        [("training", MUTED_COLOUR, |epoch| epoch.train_loss), ("test", ACCENT_COLOUR, |epoch| epoch.test_loss)];
    let max_loss = epochs.iter().map(|epoch| epoch.train_loss.max(epoch.test_loss)).fold(1e-3, f64::max);
    draw_chart(&draw_card(area, "Loss")?, 0.0..max_loss * 1.05, "", epochs, &curves)
}

fn draw_accuracy(area: &Area<'_>, epochs: &[Epoch]) -> Result<(), Error> {
    let curves: [Curve; 1] = [("test", ACCENT_COLOUR, |epoch| 100.0 * epoch.test_accuracy)];
    let min_accuracy = epochs.iter().map(|epoch| 100.0 * epoch.test_accuracy).fold(99.5, f64::min);
    let low = (min_accuracy - 0.1 * (100.0 - min_accuracy)).max(0.0);
    draw_chart(&draw_card(area, "Accuracy on the test digits")?, low..100.0, " %", epochs, &curves)
}

fn draw_chart(area: &Area<'_>, range: Range<f64>, unit: &str, epochs: &[Epoch], curves: &[Curve]) -> Result<(), Error> {
    let low = range.start;
    let last = i32::try_from(epochs.len()).unwrap_or(i32::MAX);
    let mut chart = ChartBuilder::on(area)
        .margin_right(px(8))
        .x_label_area_size(px(50))
        .y_label_area_size(px(62))
        .build_cartesian_2d(1..last.max(2), range)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(LINE_COLOUR.stroke_width(2))
        .axis_style(MUTED_COLOUR.stroke_width(2))
        .set_all_tick_mark_size(px(5))
        .label_style(font(16, MUTED_COLOUR))
        .x_labels(16)
        .y_labels(6)
        .y_label_formatter(&|value| format!("{}{unit}", (value * 1000.0).round() / 1000.0))
        .x_desc("epoch")
        .draw()?;
    for (label, colour, value) in curves {
        let points: Vec<(i32, f64)> = (1..).zip(epochs.iter().map(value)).collect();
        let style = colour.stroke_width(5);
        if *colour == ACCENT_COLOUR {
            chart.draw_series(AreaSeries::new(points.iter().copied(), low, ACCENT_COLOUR.mix(0.07)))?;
        }
        // A curve of many epochs has no markers, because they would hide the line.
        let marker = if points.len() <= 32 { 4 } else { 0 };
        chart
            .draw_series(LineSeries::new(points, style.filled()).point_size(u32::try_from(px(marker)).unwrap_or(0)))?
            .label(*label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + px(22), y)], style));
    }
    if curves.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(font(16, MUTED_COLOUR))
            .legend_area_size(px(30))
            .draw()?;
    }
    Ok(())
}

fn draw_confusion(area: &Area<'_>, confusion: &Confusion) -> Result<(), Error> {
    const CELL: i32 = 43;
    let area = draw_card(area, "Confusion matrix")?;
    let label = centred(&font(16, MUTED_COLOUR));
    for (row, counts) in (0..).zip(confusion) {
        let middle = px(CELL * row + CELL / 2);
        area.draw_text(&row.to_string(), &label, (px(18), px(48) + middle))?;
        area.draw_text(&row.to_string(), &label, (px(38) + middle, px(22)))?;
        let total = counts.iter().sum::<u32>().max(1);
        for (column, count) in (0..).zip(counts) {
            let (x, y) = (px(38 + CELL * column), px(48 + CELL * row));
            let share = f64::from(*count) / f64::from(total);
            // The minimum opacity makes even a single misread digit visible.
            let colour = if *count == 0 { BACKGROUND_COLOUR.to_rgba() } else { ACCENT_COLOUR.mix(0.12 + 0.88 * share) };
            let cell = [(x + px(1), y + px(1)), (x + px(CELL - 2), y + px(CELL - 2))];
            area.draw(&Rectangle::new(cell, colour.filled()))?;
            if *count > 0 {
                let text_colour = if share > 0.45 { WHITE } else { TEXT_COLOUR };
                let middle = (x + px(CELL / 2), y + px(CELL / 2));
                area.draw_text(&count.to_string(), &centred(&font(17, text_colour)), middle)?;
            }
        }
    }
    let total: u32 = confusion.iter().flatten().sum();
    let correct: u32 = (0..CLASSES).map(|digit| confusion[digit][digit]).sum();
    let below = px(48 + CELL * 10);
    area.draw_text("row: the written digit", &font(16, MUTED_COLOUR), (0, below + px(22)))?;
    area.draw_text("column: the digit that the network read", &font(16, MUTED_COLOUR), (0, below + px(44)))?;
    Ok(area.draw_text(
        &format!("{} of {total} misread", total - correct),
        &font(18, TEXT_COLOUR),
        (0, below + px(74)),
    )?)
}

fn draw_samples(area: &Area<'_>, test: &Subset, predictions: &[usize]) -> Result<(), Error> {
    let area = draw_card(area, "Samples, and the digits that the network read")?;
    let samples = choose_samples(&test.labels, predictions);
    for (cell, sample) in area.split_evenly((1, SAMPLES)).iter().zip(samples) {
        let (written, read) = (test.labels[sample], predictions[sample]);
        let colour = if written == read { TEXT_COLOUR } else { ACCENT_COLOUR };
        draw_digit(cell, &test.pictures[sample], colour)?;
        let below = if written == read { read.to_string() } else { format!("{read} not {written}") };
        cell.draw_text(&below, &centred(&font(17, colour)), (px(39), px(80)))?;
    }
    Ok(())
}

fn draw_digit(area: &Area<'_>, picture: &Picture, digit_colour: RGBColor) -> Result<(), Error> {
    const PIXEL: i32 = 8;
    for (row, line) in (0..).zip(picture.chunks(PICTURE_SIDE)) {
        for (column, brightness) in (0..).zip(line) {
            let (x, y) = (px(7 + PIXEL * column), px(PIXEL * row));
            area.draw(&Rectangle::new([(x, y), (x + px(PIXEL), y + px(PIXEL))], BACKGROUND_COLOUR.filled()))?;
            let colour = digit_colour.mix(f64::from(*brightness));
            area.draw(&Rectangle::new([(x, y), (x + px(PIXEL), y + px(PIXEL))], colour.filled()))?;
        }
    }
    Ok(())
}

/// Chooses the indices of the test pictures to show: first correctly read digits in the order 0 to 9, then up to
/// `MAX_MISREAD_SAMPLES` misread digits.
fn choose_samples(labels: &[usize], predictions: &[usize]) -> Vec<usize> {
    let is_correct = |i: &usize| labels[*i] == predictions[*i];
    let count = labels.len().min(predictions.len());
    let misread: Vec<usize> = (0..count).filter(|i| !is_correct(i)).take(MAX_MISREAD_SAMPLES).collect();
    let correct_count = SAMPLES - misread.len();
    let mut chosen: Vec<usize> = Vec::new();
    // Each round adds one picture of each digit. Two rounds are enough, unless the network never reads some digit
    // correctly.
    for round in 0..correct_count {
        for digit in 0..CLASSES {
            chosen.extend((0..count).filter(is_correct).filter(|i| labels[*i] == digit).nth(round));
        }
    }
    chosen.truncate(correct_count);
    chosen.extend(misread);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_show_each_digit_and_some_misread_digits() {
        let labels: Vec<usize> = (0..200).map(|i| i % 10).collect();
        let mut predictions = labels.clone();
        for wrong in &mut predictions[20..60] {
            *wrong = (*wrong + 1) % 10;
        }
        let chosen = choose_samples(&labels, &predictions);
        assert_eq!(chosen.len(), SAMPLES);
        assert_eq!(chosen[..10].iter().map(|i| labels[*i]).collect::<Vec<_>>(), labels[..10]);
        assert!(chosen[10..].iter().all(|i| labels[*i] != predictions[*i]));
        assert_eq!(choose_samples(&labels, &labels).len(), SAMPLES);
    }
}
