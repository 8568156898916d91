//! Texts and file names that strangers wrote and people read.

use std::collections::HashSet;

use unicode_normalization::{UnicodeNormalization as _, is_nfc};

/// Longest path of a file, bytes.
pub const MAX_PATH: usize = 512;
/// The most bytes that the paths of a job's files have together. The list of the files must fit into one request.
pub const MAX_NAMES: usize = 96 << 10;

/// False for a character that can deceive a reader or a terminal: a control character, a character without a width, and
/// a character that changes the direction of the text. With the latter, `gpj.exe` can look like `exe.jpg`.
pub fn is_plain(c: char) -> bool {
    let deceives = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' // without a width, and marks of direction
        | '\u{2028}'..='\u{202e}' // separators of lines, and changes of direction
        | '\u{2060}'..='\u{206f}' // without a width, and isolated directions
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' // tags
    );
    !deceives && !c.is_control()
}

/// A text for a terminal or a log: each character that is not plain is replaced.
pub fn make_plain(text: &str) -> String {
    text.chars().map(|c| if is_plain(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// True for a relative path that stays inside its directory, such as `a/b.png`. False for `/a`, `../a` and `a//b`, and
/// for a path that is too long or deceives its reader.
pub fn is_plain_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MAX_PATH
        && path.chars().all(is_plain)
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// True for a SHA-256 in hex: 64 digits, with small letters.
pub fn is_sha256_hex(hash: &str) -> bool {
    hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A set of paths that name different files on every system. Some systems take `é` as one character, and `é` as an `e`
/// with an accent, for the same name. Therefore the paths are compared in Unicode's normal form C.
#[derive(Debug, Default)]
pub struct DistinctPaths(HashSet<String>);

impl DistinctPaths {
    /// Adds a path. Returns false if a path with the same normal form was added before.
    pub fn add(&mut self, path: &str) -> bool {
        self.0.insert(if is_nfc(path) { path.to_owned() } else { path.nfc().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_deceive_are_replaced() {
        for c in [
            '\0',
            '\n',
            '\u{1b}',
            '\u{7f}',
            '\u{9b}',
            '\u{ad}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{202e}',
            '\u{2028}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{61c}',
            '\u{e0041}',
        ] {
            assert!(!is_plain(c), "{c:?}");
            assert_eq!(make_plain(&format!("a{c}b")), "a\u{fffd}b");
        }
        for text in ["naïve", "日本語", "עברית", "مرحبا", "🚀", "a b/c-d_e.f"] {
            assert_eq!(make_plain(text), text);
        }
    }

    #[test]
    fn a_path_stays_inside_its_directory_and_says_what_it_is() {
        assert!(is_plain_path("a/b.png") && is_plain_path("été/…"));
        for bad in ["", "/a", "../a", "a/../b", "a//b", "a\nb", ".", "a/", "a\u{202e}gpj.exe", &"a".repeat(513)] {
            assert!(!is_plain_path(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_same_name_in_two_forms_is_one_path() {
        let mut paths = DistinctPaths::default();
        assert!(paths.add("caf\u{e9}") && paths.add("CAF\u{c9}") && paths.add("cafe"));
        assert!(!paths.add("cafe\u{301}") && !paths.add("caf\u{e9}"));
    }
}
