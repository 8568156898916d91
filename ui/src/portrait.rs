//! The portrait of a machine: a small picture in SVG that is drawn from the machine's hardware, and always the same for
//! the same machine. A board carries one card with fans for each GPU, or a processor if there is no GPU. The tint comes
//! from the machine's id.

use std::fmt::Write as _;

use gpubnb_query::view::ListedMachine;

/// Most GPUs that are drawn.
const MAX_CARDS: usize = 8;
/// The size of the picture, in its own units.
const WIDTH: usize = 160;
const HEIGHT: usize = 72;

/// The portrait as an SVG element.
pub(crate) fn portrait(machine: &ListedMachine) -> String {
    let hue = machine.machine.to_string().bytes().fold(0_u32, |hue, byte| (hue * 31 + u32::from(byte)) % 360);
    let gpus = &machine.offer.hardware.gpus;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"presentation\">");
    // The background is wider than the picture: the style sheet cuts it to the width that the page has. Writing to a
    // String cannot fail.
    let _ = write!(svg, "<rect x=\"-480\" width=\"1120\" height=\"{HEIGHT}\" fill=\"hsl({hue} 60% 55% / 0.16)\"/>");
    let _ = write!(svg, "<path d=\"M12 60h136\" stroke=\"hsl({hue} 45% 50%)\" stroke-width=\"3\"/>");
    if gpus.is_empty() {
        draw_processor(&mut svg, hue);
    }
    let fans = gpus.first().map_or(0, |gpu| if gpu.memory.0 >= 40_000 { 3 } else { 2 });
    let cards = gpus.len().min(MAX_CARDS);
    for index in 0..cards {
        draw_card(&mut svg, hue, index, cards, fans);
    }
    svg.push_str("</svg>");
    svg
}

/// Draws one of `cards` cards, side by side. A single card lies across the board, and several stand upright.
fn draw_card(svg: &mut String, hue: u32, index: usize, cards: usize, fans: usize) {
    let width = if cards == 1 { 112 } else { 128 / cards - 4 };
    let left = if cards == 1 { 24 } else { 16 + index * (width + 4) };
    let _ = write!(
        svg,
        "<rect x=\"{left}\" y=\"18\" width=\"{width}\" height=\"38\" rx=\"4\" fill=\"hsl({hue} 45% 50%)\"/>"
    );
    let (columns, rows) = if cards == 1 { (fans, 1) } else { (1, if width >= 16 { 2 } else { 0 }) };
    for fan in 0..columns * rows {
        let x = left + (2 * (fan % columns) + 1) * width / (2 * columns);
        let y = 18 + (2 * (fan / columns) + 1) * 38 / (2 * rows);
        let radius = if cards == 1 { 13 } else { (width / 2 - 2).min(8) };
        let _ = write!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"hsl({hue} 60% 92% / 0.85)\"/>");
        let _ = write!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"2\" fill=\"hsl({hue} 45% 35%)\"/>");
    }
}

fn draw_processor(svg: &mut String, hue: u32) {
    for pin in 0..5 {
        let at = 62 + pin * 9;
        let _ = write!(svg, "<path d=\"M{at} 12v48\" stroke=\"hsl({hue} 45% 50%)\" stroke-width=\"2\"/>");
    }
    let _ = write!(svg, "<rect x=\"56\" y=\"18\" width=\"48\" height=\"36\" rx=\"4\" fill=\"hsl({hue} 45% 50%)\"/>");
    let _ =
        write!(svg, "<rect x=\"66\" y=\"26\" width=\"28\" height=\"20\" rx=\"2\" fill=\"hsl({hue} 60% 92% / 0.85)\"/>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn a_machine_has_one_card_for_each_gpu_and_always_the_same_picture() {
        let mut machine = machine("a", "RTX 4090", 1).listed;
        let one = portrait(&machine);
        assert_eq!((one.matches("<rect").count(), one.matches("<circle").count()), (2, 4), "{one}");
        assert_eq!(portrait(&machine), one);
        let gpu = machine.offer.hardware.gpus[0].clone();
        machine.offer.hardware.gpus = vec![gpu; 100];
        assert_eq!(portrait(&machine).matches("<rect").count(), 1 + MAX_CARDS);
        machine.offer.hardware.gpus.clear();
        assert!(portrait(&machine).contains("M62 12v48"), "a processor");
    }
}
