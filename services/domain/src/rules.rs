//! Rules for single values that occur in several commands: texts, paths, hashes, numbers. Every error names the field
//! of the command that breaks the rule.

use std::collections::BTreeSet;

use gpubnb_events::spec::{Artifact, LeftOut};

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

/// Longest example of an entry that was left out, in bytes.
const MAX_EXAMPLE: usize = 512;

/// Checks the files that a machine reports: at most 1,000 files, with plain relative paths that differ, and SHA-256
/// hashes. Checks also what the machine says that it left out: at most one entry for each reason.
pub(crate) fn check_outputs(outputs: &[Artifact], left_out: &[LeftOut]) -> Result<(), DomainError> {
    let paths: BTreeSet<_> = outputs.iter().map(|a| &a.path).collect();
    if paths.len() < outputs.len() {
        return Err(DomainError::field("outputs", "The manifest names a file twice."));
    }
    if outputs.iter().try_fold(0_u64, |sum, a| sum.checked_add(a.bytes)).is_none() {
        return Err(DomainError::field("outputs", "The sizes of the files have no sum."));
    }
    let reasons: BTreeSet<_> = left_out.iter().map(|l| l.reason).collect();
    if reasons.len() < left_out.len() {
        return Err(DomainError::field("left_out", "Each reason occurs once."));
    }
    // An example is only shown. The job may have chosen it, so it need not be a path, and may be blank: a report must
    // not be refused for it.
    let is_shown = |example: &str| example.len() <= MAX_EXAMPLE && !example.chars().any(char::is_control);
    if !left_out.iter().all(|l| is_shown(&l.example)) {
        return Err(DomainError::field("left_out", "An example has at most 512 bytes and no control characters."));
    }
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
    use gpubnb_events::spec::LeftOutReason;

    #[test]
    fn an_example_that_a_job_has_chosen_does_not_refuse_the_report() {
        let check = |example: &str| {
            let reason = LeftOutReason::NotAFile;
            check_outputs(&[], &[LeftOut { reason, entries: 1, example: example.to_owned() }])
        };
        for odd in ["", "  ", "a/", "a/..", ".", "/output", "<b>"] {
            check(odd).unwrap();
        }
        assert!(check("a\nb").is_err() && check(&"a".repeat(513)).is_err());
    }

    #[test]
    fn a_manifest_with_a_path_out_of_its_directory_is_refused() {
        let file = |path: &str| Artifact { path: path.to_owned(), bytes: 1, sha256: "0".repeat(64) };
        assert!(check_outputs(&[file("a/b.png")], &[]).is_ok());
        for bad in ["", "/a", "../a", "a/../b", "a//b", "a\nb", "."] {
            assert!(check_outputs(&[file(bad)], &[]).is_err(), "{bad:?}");
        }
    }
}
