//! Rules for single values that occur in several commands: texts, paths, hashes, numbers. Every error names the field
//! of the command that breaks the rule.

use gpubnb_events::spec::Artifact;

use crate::DomainError;

/// True for a relative path that stays inside its directory, such as `a/b.png`. False for `/a`, `../a` and `a//b`.
pub(crate) fn is_plain_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 512
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// True for a SHA-256 hash, written as 64 hexadecimal digits.
pub(crate) fn is_sha256_hex(hash: &str) -> bool {
    hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Checks a text for people: from 1 to `max_chars` characters, not only spaces, and no control characters.
pub(crate) fn check_text(field: &'static str, text: &str, max_chars: usize) -> Result<(), DomainError> {
    if text.trim().is_empty() || text.chars().count() > max_chars || text.chars().any(char::is_control) {
        return Err(DomainError::field(field, format!("This must have from 1 to {max_chars} characters on one line.")));
    }
    Ok(())
}

/// Checks the list of files that a machine reports: at most 1,000 files, with plain relative paths and SHA-256 hashes.
pub(crate) fn check_outputs(outputs: &[Artifact]) -> Result<(), DomainError> {
    if outputs.len() > 1_000 || !outputs.iter().all(|a| is_plain_path(&a.path) && is_sha256_hex(&a.sha256)) {
        return Err(DomainError::field("outputs", "The manifest has at most 1,000 files with plain relative paths."));
    }
    Ok(())
}

/// Checks that a number is from `least` to `most`. The unit, such as "MiB", is for the error message.
pub(crate) fn check_range(
    field: &'static str,
    value: u64,
    least: u64,
    most: u64,
    unit: &str,
) -> Result<(), DomainError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(DomainError::field(field, format!("This must be from {least} to {most} {unit}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_with_a_path_out_of_its_directory_is_refused() {
        let file = |path: &str| Artifact { path: path.to_owned(), bytes: 1, sha256: "0".repeat(64) };
        assert!(check_outputs(&[file("a/b.png")]).is_ok());
        for bad in ["", "/a", "../a", "a/../b", "a//b", "a\nb", "."] {
            assert!(check_outputs(&[file(bad)]).is_err(), "{bad:?}");
        }
    }
}
