//! Rules for single values that occur in several commands: texts, paths, hashes, numbers.

use gpubnb_events::spec::Artifact;

use crate::Refusal;

/// True if a path is relative and cannot lead out of its directory.
pub(crate) fn plain_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 512
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

pub(crate) fn sha256_hex(hash: &str) -> bool {
    hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A short text for people: not empty, not long, no control characters.
pub(crate) fn check_text(field: &'static str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.trim().is_empty() || text.chars().count() > most || text.chars().any(char::is_control) {
        return Err(Refusal::field(field, format!("This must have from 1 to {most} characters on one line.")));
    }
    Ok(())
}

/// The list of files that a machine reports: not too long, and with plain relative paths only.
pub(crate) fn check_outputs(outputs: &[Artifact]) -> Result<(), Refusal> {
    if outputs.len() > 1_000 || !outputs.iter().all(|a| plain_path(&a.path) && sha256_hex(&a.sha256)) {
        return Err(Refusal::field("outputs", "The manifest has at most 1,000 files with plain relative paths."));
    }
    Ok(())
}

pub(crate) fn in_range(field: &'static str, value: u64, least: u64, most: u64, unit: &str) -> Result<(), Refusal> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Refusal::field(field, format!("This must be from {least} to {most} {unit}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_with_paths_that_leave_is_refused() {
        let file = |path: &str| Artifact { path: path.to_owned(), bytes: 1, sha256: "0".repeat(64) };
        assert!(check_outputs(&[file("a/b.png")]).is_ok());
        for bad in ["", "/a", "../a", "a/../b", "a//b", "a\nb", "."] {
            assert!(check_outputs(&[file(bad)]).is_err(), "{bad:?}");
        }
    }
}
