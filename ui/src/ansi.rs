//! A job's lines for people: colours and weights of ECMA-48 (SGR) become classes, everything else that is meant for a
//! terminal is left out.

use std::fmt::Write as _;

use vte::{Params, Parser, Perform};

/// A line as HTML.
pub(crate) fn html(line: &str) -> String {
    let mut page = Page::default();
    Parser::new().advance(&mut page, line.as_bytes());
    page.close();
    page.html
}

/// A line without what is meant for a terminal.
pub(crate) fn plain(line: &str) -> String {
    if !line.contains(char::is_control) {
        return line.to_owned();
    }
    let mut plain = Plain::default();
    Parser::new().advance(&mut plain, line.as_bytes());
    plain.0
}

/// Text that goes into HTML.
pub(crate) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, c| {
        push(&mut html, c);
        html
    })
}

fn push(html: &mut String, c: char) {
    match c {
        '&' => html.push_str("&amp;"),
        '<' => html.push_str("&lt;"),
        '>' => html.push_str("&gt;"),
        '"' => html.push_str("&quot;"),
        c => html.push(c),
    }
}

#[derive(Default)]
struct Plain(String);

impl Perform for Plain {
    fn print(&mut self, c: char) {
        self.0.push(c);
    }
}

/// How the text looks that comes next.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct Look {
    /// 0 to 15.
    colour: Option<u16>,
    bold: bool,
    dim: bool,
    underlined: bool,
}

#[derive(Default)]
struct Page {
    html: String,
    look: Look,
    /// The look of the element that is open.
    open: Look,
}

impl Page {
    fn close(&mut self) {
        if self.open != Look::default() {
            self.html.push_str("</span>");
        }
        self.open = Look::default();
    }

    fn turn(&mut self) {
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

impl Perform for Page {
    fn print(&mut self, c: char) {
        self.turn();
        push(&mut self.html, c);
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
            // A colour of the large palettes: its numbers are no codes of their own; it is shown plain.
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
        assert_eq!(html("\u{1b}[2J\u{1b}]0;title\u{7}x<y\u{1b}[92m"), "x&lt;y");
        assert_eq!(html("\u{1b}[38;5;200mpink\u{1b}[m\u{1b}[33mamber"), "pink<span class=\"c3\">amber</span>");
        assert_eq!(plain("\u{1b}[31mred\u{1b}[0m\tx"), "redx");
    }
}
