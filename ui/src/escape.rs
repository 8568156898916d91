//! Escaping of text that users or jobs wrote, for HTML and for URLs.

use std::fmt::Write;

use askama::filters::{Escaper as _, Html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All characters except the "unreserved" characters of RFC 3986.
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Escapes text for HTML. Templates escape text in the same way.
pub(crate) fn html(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    // Writing to a String cannot fail.
    let _ = Html.write_escaped_str(&mut html, text);
    html
}

/// Escapes one character and appends it to HTML.
pub(crate) fn push_html(html: &mut impl Write, c: char) {
    // The callers write to a String, which cannot fail.
    let _ = Html.write_escaped_char(html, c);
}

/// Escapes one segment of a path, or one value of a query string.
pub(crate) fn url(text: &str) -> String {
    utf8_percent_encode(text, &RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_has_no_special_characters_of_html() {
        let escaped = html("<b title=\"x\" id='y'>&</b>");
        assert!(!escaped.contains(['<', '>', '"', '\'']), "{escaped}");
        assert_eq!(html("1 < 2"), "1 &#60; 2");
    }

    #[test]
    fn escaped_text_is_one_segment_of_a_url() {
        assert_eq!(url("a b/c?d#e%f"), "a%20b%2Fc%3Fd%23e%25f");
        assert_eq!(url("Aa0-_.~"), "Aa0-_.~");
        assert_eq!(url("é"), "%C3%A9");
    }
}
