//! Rules for single values that occur in several commands: texts, paths, hashes, numbers. Every error names the field
//! of the command that breaks the rule.

use std::collections::BTreeSet;

use gpubnb_events::{
    spec::{
        Artifact, Egress, LeftOut, MAX_HOST, MAX_HOST_PATTERNS, MAX_TRAFFIC_HOSTS, Mebibytes, OTHER_HOSTS, Traffic,
    },
    text::{DistinctPaths, MAX_NAMES, is_plain, is_plain_path, is_sha256_hex},
};

use crate::DomainError;

/// Longest argument of a command, bytes.
pub(crate) const MAX_ARGUMENT: usize = 4_096;

/// Checks a text for people: from 1 to `max_chars` characters, not only spaces, and none that can deceive a reader,
/// such as a control character ([`is_plain`]).
pub(crate) fn check_text(field: &'static str, text: &str, max_chars: usize) -> Result<(), DomainError> {
    if text.trim().is_empty() || text.chars().count() > max_chars || !text.chars().all(is_plain) {
        return Err(DomainError::field(field, format!("This must have from 1 to {max_chars} characters on one line.")));
    }
    Ok(())
}

/// Longest example of an entry that was left out, in bytes.
const MAX_EXAMPLE: usize = 512;

/// Checks the files that a machine reports: at most 1,000 files of `most` together, with plain relative paths that
/// differ, and SHA-256 hashes. Also checks the list of what the machine left out: at most one entry for each reason.
pub(crate) fn check_outputs(outputs: &[Artifact], left_out: &[LeftOut], most: Mebibytes) -> Result<(), DomainError> {
    if outputs.len() > 1_000 || !outputs.iter().all(|a| is_plain_path(&a.path) && is_sha256_hex(&a.sha256)) {
        return Err(DomainError::field("outputs", "The manifest has at most 1,000 files with plain relative paths."));
    }
    if outputs.iter().map(|a| a.path.len()).sum::<usize>() > MAX_NAMES {
        return Err(DomainError::field("outputs", "The paths of the files have more than 96 KiB together."));
    }
    let mut paths = DistinctPaths::default();
    if !outputs.iter().all(|a| paths.add(&a.path)) {
        return Err(DomainError::field("outputs", "The manifest names a file twice."));
    }
    if outputs.iter().fold(0_u64, |sum, a| sum.saturating_add(a.bytes)) > most.bytes() {
        return Err(DomainError::field("outputs", format!("The files have more than {} MiB.", most.0)));
    }
    let reasons: BTreeSet<_> = left_out.iter().map(|l| l.reason).collect();
    if reasons.len() < left_out.len() {
        return Err(DomainError::field("left_out", "Each reason occurs once."));
    }
    // An example is only shown. The job may have chosen it, so it need not be a path, and may be blank: a report must
    // not be refused for it.
    let is_shown = |example: &str| example.len() <= MAX_EXAMPLE && example.chars().all(is_plain);
    if !left_out.iter().all(|l| is_shown(&l.example)) {
        return Err(DomainError::field("left_out", "An example has at most 512 bytes and no control characters."));
    }
    Ok(())
}

/// Checks the traffic that a machine reports: each host once, and only hosts that the job asked for.
pub(crate) fn check_traffic(traffic: &Traffic, asked: &Egress) -> Result<(), DomainError> {
    let hosts: BTreeSet<_> = traffic.hosts.iter().map(|traffic| traffic.host.as_str()).collect();
    let is_asked = |host: &&str| *host == OTHER_HOSTS || (host.len() <= MAX_HOST && asked.allows(host));
    let is_shown = |host: &&str| host.chars().all(is_plain) && is_asked(host);
    if hosts.len() < traffic.hosts.len() || hosts.len() > MAX_TRAFFIC_HOSTS || !hosts.iter().all(is_shown) {
        return Err(DomainError::field(
            "traffic",
            "The traffic names at most 32 hosts, each once, that the job asked for.",
        ));
    }
    Ok(())
}

/// Checks a list of hosts: of a job, or of a machine's owner.
pub(crate) fn check_egress(egress: &Egress) -> Result<(), DomainError> {
    if egress.is_valid() {
        return Ok(());
    }
    let rule = format!(
        "Name at most {MAX_HOST_PATTERNS} hosts, such as pypi.org or *.pypi.org, in small letters; * is every host."
    );
    Err(DomainError::field("egress", rule))
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
            check_outputs(&[], &[LeftOut { reason, entries: 1, example: example.to_owned() }], Mebibytes(1))
        };
        for odd in ["", "  ", "a/", "a/..", ".", "/output", "<b>"] {
            check(odd).unwrap();
        }
        assert!(check("a\nb").is_err() && check(&"a".repeat(513)).is_err());
    }

    #[test]
    fn a_manifest_names_each_file_once_inside_its_directory_and_within_the_size_that_the_job_asked_for() {
        let file = |path: &str, bytes: u64| Artifact { path: path.to_owned(), bytes, sha256: "0".repeat(64) };
        let check = |files: &[Artifact]| check_outputs(files, &[], Mebibytes(1));
        check(&[file("a/b.png", 1 << 19), file("c", 1 << 19)]).unwrap();
        for bad in ["", "/a", "../a", "a/../b", "a//b", "a\nb", ".", "a\u{202e}b"] {
            assert!(check(&[file(bad, 1)]).is_err(), "{bad:?}");
        }
        for (one, other) in [("a", "a"), ("caf\u{e9}", "cafe\u{301}")] {
            assert!(check(&[file(one, 1), file(other, 1)]).is_err(), "{one} {other}");
        }
        for sizes in [[1 << 20, 1], [u64::MAX, 1], [u64::MAX, u64::MAX]] {
            assert!(check(&[file("a", sizes[0]), file("b", sizes[1])]).is_err(), "{sizes:?}");
        }
    }
}
