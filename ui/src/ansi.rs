//! Lines of a job's log for a page: colours and weights of ECMA-48 (SGR) become CSS classes, and every other control
//! sequence is dropped.

use std::fmt::Write as _;

use vte::{Params, Parser, Perform};

use crate::escape::push_html;

/// A line as HTML.
pub(crate) fn html(line: &str) -> String {
    let mut line_html = HtmlLine::default();
    Parser::new().advance(&mut line_html, line.as_bytes());
    line_html.close();
    line_html.html
}

/// A line as plain text, without control sequences.
pub(crate) fn plain(line: &str) -> String {
    if !line.contains(char::is_control) {
        return line.to_owned();
    }
    let mut plain = Plain::default();
    Parser::new().advance(&mut plain, line.as_bytes());
    plain.0
}

#[derive(Default)]
struct Plain(String);

impl Perform for Plain {
    fn print(&mut self, c: char) {
        self.0.push(c);
    }
}

/// The look of the text that comes next.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct Look {
    /// One of the 16 colours of a terminal, from 0 to 15.
    colour: Option<u16>,
    bold: bool,
    dim: bool,
    underlined: bool,
}

#[derive(Default)]
struct HtmlLine {
    html: String,
    look: Look,
    /// The look of the `<span>` that is open.
    open: Look,
}

impl HtmlLine {
    fn close(&mut self) {
        if self.open != Look::default() {
            self.html.push_str("</span>");
        }
        self.open = Look::default();
    }

    /// Opens a `<span>` for the present look, if another one is open.
    fn apply_look(&mut self) {
        if self.open == self.look {
            return;
        }
        self.close();
        self.open = self.look;
        if self.look == Look::default() {
            return;
        }
        let mut classes = Vec::new();
        if let Some(colour) = self.look.colour {
            classes.push(format!("c{colour}"));
        }
        let flags = [(self.look.bold, "b"), (self.look.dim, "dim"), (self.look.underlined, "u")];
        classes.extend(flags.into_iter().filter(|(on, _)| *on).map(|(_, class)| class.to_owned()));
        // Writing to a String cannot fail.
        let _ = write!(self.html, "<span class=\"{}\">", classes.join(" "));
    }

    fn set(&mut self, code: u16) {
        match code {
            0 => self.look = Look::default(),
            1 => self.look.bold = true,
            2 => self.look.dim = true,
            4 => self.look.underlined = true,
            22 => (self.look.bold, self.look.dim) = (false, false),
            24 => self.look.underlined = false,
            30..=37 => self.look.colour = Some(code - 30),
            39 => self.look.colour = None,
            90..=97 => self.look.colour = Some(code - 90 + 8),
            _ => {}
        }
    }
}

impl Perform for HtmlLine {
    fn print(&mut self, c: char) {
        self.apply_look();
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
            self.set(0);
        }
        let mut codes = params.iter().filter_map(|p| p.first().copied());
        while let Some(code) = codes.next() {
            // A colour of the large palettes: `38;5;n` or `38;2;r;g;b`. The numbers after 38 or 48 are skipped.
            if matches!(code, 38 | 48) {
                let skip = if codes.next() == Some(5) { 1 } else { 3 };
                codes.by_ref().take(skip).for_each(drop);
                continue;
            }
            self.set(code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_classes_and_other_sequences_vanish() {
        assert_eq!(html("a\u{1b}[1;31mred\u{1b}[0m b"), "a<span class=\"c1 b\">red</span> b");
        assert_eq!(html("\u{1b}[2J\u{1b}]0;title\u{7}x<y\u{1b}[92m"), "x&#60;y");
        assert_eq!(html("\u{1b}[38;5;200mpink\u{1b}[m\u{1b}[33mamber"), "pink<span class=\"c3\">amber</span>");
        assert_eq!(plain("\u{1b}[31mred\u{1b}[0m\tx"), "redx");
    }
}
