//! Rendering of terminal control sequences (ECMA-48, also called ANSI) in a line of a job's log. Colours, bold, dim and
//! underlined text become CSS classes. Every other control sequence is dropped.

use std::fmt::Write as _;

use vte::{Params, Parser, Perform};

use crate::escape::push_html;

/// A line as HTML.
pub(crate) fn html(line: &str) -> String {
    let mut renderer = HtmlRenderer::default();
    Parser::new().advance(&mut renderer, line.as_bytes());
    renderer.close_span();
    renderer.html
}

/// A line as plain text, without control sequences.
pub(crate) fn plain(line: &str) -> String {
    if !line.contains(char::is_control) {
        return line.to_owned();
    }
    let mut renderer = PlainRenderer::default();
    Parser::new().advance(&mut renderer, line.as_bytes());
    renderer.0
}

#[derive(Default)]
struct PlainRenderer(String);

impl Perform for PlainRenderer {
    fn print(&mut self, c: char) {
        self.0.push(c);
    }
}

/// The style of text.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct TextStyle {
    /// The number of a terminal colour, from 0 to 15.
    colour: Option<u16>,
    is_bold: bool,
    is_dim: bool,
    is_underlined: bool,
}

#[derive(Default)]
struct HtmlRenderer {
    html: String,
    /// The style of the following text.
    style: TextStyle,
    /// The style of the open `<span>`. With the default style, no `<span>` is open.
    open: TextStyle,
}

impl HtmlRenderer {
    fn close_span(&mut self) {
        if self.open != TextStyle::default() {
            self.html.push_str("</span>");
        }
        self.open = TextStyle::default();
    }

    /// Opens a `<span>` for the current style, unless that `<span>` is already open.
    fn apply_style(&mut self) {
        if self.open == self.style {
            return;
        }
        self.close_span();
        self.open = self.style;
        if self.style == TextStyle::default() {
            return;
        }
        let mut classes = Vec::new();
        if let Some(colour) = self.style.colour {
            classes.push(format!("c{colour}"));
        }
        let flags = [(self.style.is_bold, "b"), (self.style.is_dim, "dim"), (self.style.is_underlined, "u")];
        classes.extend(flags.into_iter().filter(|(on, _)| *on).map(|(_, class)| class.to_owned()));
        // Writing to a String cannot fail.
        let _ = write!(self.html, "<span class=\"{}\">", classes.join(" "));
    }

    /// Applies an SGR code ("select graphic rendition"), for example 31 for red text.
    fn set_style(&mut self, code: u16) {
        match code {
            0 => self.style = TextStyle::default(),
            1 => self.style.is_bold = true,
            2 => self.style.is_dim = true,
            4 => self.style.is_underlined = true,
            22 => (self.style.is_bold, self.style.is_dim) = (false, false),
            24 => self.style.is_underlined = false,
            30..=37 => self.style.colour = Some(code - 30),
            39 => self.style.colour = None,
            90..=97 => self.style.colour = Some(code - 90 + 8),
            _ => {}
        }
    }
}

impl Perform for HtmlRenderer {
    fn print(&mut self, c: char) {
        self.apply_style();
        push_html(&mut self.html, c);
    }

    fn execute(&mut self, byte: u8) {
        if byte == b'\t' {
            self.html.push('\t');
        }
    }

    fn csi_dispatch(&mut self, params: &Params, _: &[u8], _: bool, action: char) {
        if action != 'm' {
            return;
        }
        if params.is_empty() {
            self.set_style(0);
        }
        let mut codes = params.iter().filter_map(|p| p.first().copied());
        while let Some(code) = codes.next() {
            // Colours of larger palettes are not shown: the numbers after 38 or 48 are skipped. Such a colour has the
            // form `38;5;n` or `38;2;r;g;b`.
            if matches!(code, 38 | 48) {
                let skip = if codes.next() == Some(5) { 1 } else { 3 };
                codes.by_ref().take(skip).for_each(drop);
                continue;
            }
            self.set_style(code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_classes_and_other_sequences_are_dropped() {
        assert_eq!(html("a\u{1b}[1;31mred\u{1b}[0m b"), "a<span class=\"c1 b\">red</span> b");
        assert_eq!(html("\u{1b}[2J\u{1b}]0;title\u{7}x<y\u{1b}[92m"), "x&#60;y");
        assert_eq!(html("\u{1b}[38;5;200mpink\u{1b}[m\u{1b}[33mamber"), "pink<span class=\"c3\">amber</span>");
        assert_eq!(plain("\u{1b}[31mred\u{1b}[0m\tx"), "redx");
    }
}
