//! Escaping of text for the two places where a page puts text that it did not write itself: HTML, and the path of a
//! URL.

use std::fmt::Write;

use askama::filters::{Escaper as _, Html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Every character that RFC 3986 does not call "unreserved".
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Text for HTML, escaped as the templates do it.
pub(crate) fn html(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    // Writing to a String cannot fail.
    let _ = Html.write_escaped_str(&mut html, text);
    html
}

/// Appends one character to HTML.
pub(crate) fn push_html(html: &mut impl Write, c: char) {
    // The callers write to a String, which cannot fail.
    let _ = Html.write_escaped_char(html, c);
}

/// One segment of a path, or one value of a query string.
pub(crate) fn url(part: &str) -> String {
    utf8_percent_encode(part, &RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_an_element_or_an_attribute() {
        let escaped = html("<b title=\"x\" id='y'>&</b>");
        assert!(!escaped.contains(['<', '>', '"', '\'']), "{escaped}");
        assert_eq!(html("1 < 2"), "1 &#60; 2");
    }

    #[test]
    fn a_part_of_an_url_stays_one_part() {
        assert_eq!(url("a b/c?d#e%f"), "a%20b%2Fc%3Fd%23e%25f");
        assert_eq!(url("Aa0-_.~"), "Aa0-_.~");
        assert_eq!(url("é"), "%C3%A9");
    }
}
