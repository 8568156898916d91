//! A small picture to draw on: smooth shapes, text, and the encoding as PNG.
//!
//! Only general drawing belongs here. What a diagram looks like is told in `chart` and in the
//! modules of the jobs.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use crate::error::Error;
use crate::number::{byte, floor_index, real};

/// A colour of red, green and blue bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour([u8; 3]);

impl Colour {
    /// Plain white.
    pub const WHITE: Self = Self([255; 3]);

    /// A colour from its three bytes.
    pub const fn rgb(red: u8, green: u8, blue: u8) -> Self {
        Self([red, green, blue])
    }

    /// The colour `share` of the way towards another one.
    #[must_use]
    pub fn mix(self, other: Self, share: f32) -> Self {
        let channel = |i: usize| {
            let (from, to) = (f32::from(self.0[i]), f32::from(other.0[i]));
            byte((from + (to - from) * share) / 255.0)
        };
        Self([channel(0), channel(1), channel(2)])
    }
}

/// A point in pixels, counted from the top left corner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// To the right.
    pub x: f32,
    /// Downwards.
    pub y: f32,
}

impl Point {
    /// A point.
    pub const fn new(x: f32, y: f32) -> Self {
        Self { x, y }
    }
}

/// An upright rectangle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rect {
    /// The left edge.
    pub x: f32,
    /// The top edge.
    pub y: f32,
    /// How wide it is.
    pub width: f32,
    /// How high it is.
    pub height: f32,
}

impl Rect {
    /// A rectangle from its top left corner and its size.
    pub const fn new(x: f32, y: f32, width: f32, height: f32) -> Self {
        Self { x, y, width, height }
    }

    /// The right edge.
    pub const fn right(self) -> f32 {
        self.x + self.width
    }

    /// The bottom edge.
    pub const fn bottom(self) -> f32 {
        self.y + self.height
    }

    /// The point in the middle.
    pub const fn centre(self) -> Point {
        Point::new(self.x + self.width / 2.0, self.y + self.height / 2.0)
    }

    /// The rectangle with every edge moved outwards.
    #[must_use]
    pub const fn grown(self, by: f32) -> Self {
        Self::new(self.x - by, self.y - by, self.width + 2.0 * by, self.height + 2.0 * by)
    }
}

/// Where a text lies, seen from the point it is drawn at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// It starts at the point.
    Left,
    /// Its middle is at the point.
    Centre,
    /// It ends at the point.
    Right,
}

/// How a text looks.
#[derive(Clone, Copy, Debug)]
pub struct TextStyle {
    weight: FontWeight,
    size: RasterHeight,
    colour: Colour,
    align: Align,
}

impl TextStyle {
    /// Text of the smallest size.
    pub const fn small(colour: Colour) -> Self {
        Self::of(FontWeight::Regular, RasterHeight::Size16, colour)
    }

    /// Bold text of the smallest size.
    pub const fn small_bold(colour: Colour) -> Self {
        Self::of(FontWeight::Bold, RasterHeight::Size16, colour)
    }

    /// Bold text of medium size, for headings.
    pub const fn heading(colour: Colour) -> Self {
        Self::of(FontWeight::Bold, RasterHeight::Size20, colour)
    }

    /// Large bold text, for titles.
    pub const fn title(colour: Colour) -> Self {
        Self::of(FontWeight::Bold, RasterHeight::Size32, colour)
    }

    const fn of(weight: FontWeight, size: RasterHeight, colour: Colour) -> Self {
        Self { weight, size, colour, align: Align::Left }
    }

    /// The same look, placed otherwise.
    #[must_use]
    pub const fn aligned(self, align: Align) -> Self {
        Self { align, ..self }
    }

    /// How wide a text gets.
    pub fn width(&self, text: &str) -> f32 {
        real(text.chars().count() * get_raster_width(self.weight, self.size))
    }
}

/// A picture of a fixed size.
#[derive(Clone, Debug)]
pub struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    /// A picture which is one colour all over.
    pub fn new(width: usize, height: usize, colour: Colour) -> Self {
        Self { width, height, pixels: colour.0.repeat(width * height) }
    }

    /// Draws everything within `distance` 0; the edge, one pixel wide, is blended smoothly.
    ///
    /// `distance` says how far a point is from the edge of the shape, negative within it. Only
    /// pixels in `bounds` are asked for.
    pub fn shape(&mut self, bounds: Rect, colour: Colour, opacity: f32, distance: impl Fn(Point) -> f32) {
        let columns = floor_index(bounds.x)..floor_index(bounds.right() + 1.0).min(self.width);
        for row in floor_index(bounds.y)..floor_index(bounds.bottom() + 1.0).min(self.height) {
            for column in columns.clone() {
                let point = Point::new(real(column) + 0.5, real(row) + 0.5);
                let coverage = (0.5 - distance(point)).clamp(0.0, 1.0);
                self.blend(column, row, colour, coverage * opacity);
            }
        }
    }

    /// Fills a rectangle.
    pub fn fill(&mut self, rect: Rect, colour: Colour) {
        self.rounded(rect, 0.0, colour);
    }

    /// Fills a rectangle with rounded corners.
    pub fn rounded(&mut self, rect: Rect, radius: f32, colour: Colour) {
        self.shape(rect.grown(1.0), colour, 1.0, |point| rect_distance(rect, radius, point));
    }

    /// Draws the outline of a rectangle with rounded corners.
    pub fn outline(&mut self, rect: Rect, radius: f32, thickness: f32, colour: Colour) {
        self.shape(rect.grown(thickness), colour, 1.0, |point| {
            rect_distance(rect, radius, point).abs() - thickness / 2.0
        });
    }

    /// Draws a straight line with round ends.
    pub fn line(&mut self, from: Point, to: Point, thickness: f32, colour: Colour) {
        let corner = Point::new(from.x.min(to.x), from.y.min(to.y));
        let (dx, dy) = (to.x - from.x, to.y - from.y);
        let bounds = Rect::new(corner.x, corner.y, dx.abs(), dy.abs()).grown(thickness + 1.0);
        let length_squared = (dx * dx + dy * dy).max(f32::MIN_POSITIVE);
        self.shape(bounds, colour, 1.0, |point| {
            let along = (point.x - from.x) * dx + (point.y - from.y) * dy;
            let share = (along / length_squared).clamp(0.0, 1.0);
            let nearest = Point::new(from.x + share * dx, from.y + share * dy);
            (point.x - nearest.x).hypot(point.y - nearest.y) - thickness / 2.0
        });
    }

    /// Draws a filled circle.
    pub fn dot(&mut self, centre: Point, radius: f32, colour: Colour) {
        self.line(centre, centre, 2.0 * radius, colour);
    }

    /// Draws a text whose middle height is at the point. Signs the font lacks are left blank.
    pub fn text(&mut self, at: Point, text: &str, style: TextStyle) {
        let left = match style.align {
            Align::Left => at.x,
            Align::Centre => at.x - style.width(text) / 2.0,
            Align::Right => at.x - style.width(text),
        };
        let mut column = floor_index(left.round());
        let top = floor_index((at.y - real(style.size.val()) / 2.0).round());
        for sign in text.chars() {
            if let Some(raster) = get_raster(sign, style.weight, style.size) {
                for (y, row) in raster.rows().enumerate() {
                    for (x, intensity) in row.iter().enumerate() {
                        let opacity = f32::from(*intensity) / 255.0;
                        self.blend(column + x, top + y, style.colour, opacity);
                    }
                }
            }
            column += get_raster_width(style.weight, style.size);
        }
    }

    fn blend(&mut self, column: usize, row: usize, colour: Colour, opacity: f32) {
        if column >= self.width || row >= self.height || opacity <= 0.0 {
            return;
        }
        let start = 3 * (row * self.width + column);
        if let Some([red, green, blue]) = self.pixels.get_mut(start..start + 3) {
            let mixed = Colour::rgb(*red, *green, *blue).mix(colour, opacity);
            [*red, *green, *blue] = mixed.0;
        }
    }

    /// The picture as a PNG file.
    pub fn to_png(&self) -> Result<Vec<u8>, Error> {
        encode_png(self.width, self.height, &self.pixels)
    }
}

/// How far a point is from the edge of a rectangle with rounded corners.
fn rect_distance(rect: Rect, radius: f32, point: Point) -> f32 {
    let centre = rect.centre();
    let x = (point.x - centre.x).abs() - rect.width / 2.0 + radius;
    let y = (point.y - centre.y).abs() - rect.height / 2.0 + radius;
    x.max(0.0).hypot(y.max(0.0)) + x.max(y).min(0.0) - radius
}

/// Encodes rows of red, green and blue bytes as a PNG file.
pub fn encode_png(width: usize, height: usize, pixels: &[u8]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    // A side beyond 32 bits cannot be held in memory; the encoder refuses the 0 it would become.
    let side = |length: usize| u32::try_from(length).unwrap_or(0);
    let mut encoder = png::Encoder::new(&mut bytes, side(width), side(height));
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixel(canvas: &Canvas, column: usize, row: usize) -> Colour {
        let start = 3 * (row * canvas.width + column);
        Colour::rgb(canvas.pixels[start], canvas.pixels[start + 1], canvas.pixels[start + 2])
    }

    #[test]
    fn a_png_decodes_to_what_was_drawn() {
        let mut canvas = Canvas::new(20, 10, Colour::WHITE);
        canvas.fill(Rect::new(5.0, 2.0, 4.0, 4.0), Colour::rgb(1, 2, 3));
        let bytes = canvas.to_png().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (20, 10));
        assert_eq!(pixels, canvas.pixels);
        assert_eq!(pixel(&canvas, 5, 2), Colour::rgb(1, 2, 3));
        assert_eq!(pixel(&canvas, 4, 2), Colour::WHITE);
    }

    #[test]
    fn drawing_beyond_the_edge_is_harmless() {
        let mut canvas = Canvas::new(8, 8, Colour::WHITE);
        let ink = Colour::rgb(0, 0, 0);
        canvas.line(Point::new(-50.0, -50.0), Point::new(50.0, 50.0), 3.0, ink);
        canvas.dot(Point::new(100.0, 4.0), 200.0, ink);
        canvas.text(Point::new(-5.0, 4.0), "far too long", TextStyle::title(ink));
        canvas.outline(Rect::new(-9.0, -9.0, 90.0, 90.0), 4.0, 2.0, ink);
        assert_eq!(pixel(&canvas, 4, 4), ink);
    }

    #[test]
    fn an_empty_picture_cannot_be_encoded() {
        assert!(encode_png(0, 5, &[]).is_err());
    }
}
