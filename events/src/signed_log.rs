//! The signed log of an attempt: how many lines its log has, a digest of all lines, and the machine's signature.
//! Anybody who has the lines can check that they are the ones that the machine sent, in their order, and that none is
//! missing.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    ids::{JobId, Lease},
    output::{LogLine, LogStream},
};

/// The number of lines of a log, and the digest of the lines.
///
/// The digest is a chain of SHA-256, so that a worker that is started again needs only the last link. It begins with 32
/// zero bytes. Each line makes the next link: the SHA-256 of the link before, followed by the UTF-8 text
/// `<stream> <at> <cut> <text>`. Example of such a text: `stdout 1764460800123 0 hello`, where `at` is in milliseconds
/// since 1970 and `cut` is the number of bytes that are left out at the end of the line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChain {
    /// The number of lines so far.
    pub lines: u64,
    /// The last link of the chain.
    link: [u8; 32],
}

impl LogChain {
    /// Adds the next line of the log.
    pub fn add(&mut self, line: &LogLine) {
        let stream = match line.stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        let mut next = Sha256::new();
        next.update(self.link);
        next.update(format!("{stream} {} {} ", line.at.millis(), line.cut));
        next.update(&line.text);
        self.link = next.finalize().into();
        self.lines = self.lines.saturating_add(1);
    }

    /// The last link, as 64 hexadecimal digits.
    pub fn sha256(&self) -> String {
        crate::hex(self.link)
    }
}

/// The log of an attempt, as its machine signed it. The market does not check the digest when it takes the report. It
/// keeps what the machine signed, and `gpubnb verify` compares that with the lines that the market shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SignedLog {
    /// The number of lines of the attempt's log.
    pub lines: u64,
    /// The digest of the lines ([`LogChain`]), 64 hexadecimal digits.
    pub sha256: String,
    /// The machine's signature (Ed25519) over [`Self::signed_text`], base64url without padding.
    pub signature: String,
}

impl SignedLog {
    /// The text that the machine signs.
    pub fn signed_text(job: JobId, lease: Lease, lines: u64, sha256: &str) -> String {
        format!("log.{job}.{lease}.{lines}.{sha256}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{Millis, Timestamp};

    fn line(stream: LogStream, millis: u64, text: &str, cut: u64) -> LogLine {
        LogLine { stream, at: Timestamp::EPOCH.plus(Millis(millis)), text: text.to_owned(), cut }
    }

    fn digest(lines: &[LogLine]) -> String {
        let mut chain = LogChain::default();
        for line in lines {
            chain.add(line);
        }
        assert_eq!(chain.lines, lines.len() as u64);
        chain.sha256()
    }

    #[test]
    fn the_digest_is_the_documented_one() {
        assert_eq!(digest(&[]), "0".repeat(64));
        let mut text = vec![0; 32];
        text.extend_from_slice("stdout 1764460800123 0 hello".as_bytes());
        let expected = crate::hex(Sha256::digest(&text));
        assert_eq!(digest(&[line(LogStream::Stdout, 1_764_460_800_123, "hello", 0)]), expected);
    }

    #[test]
    fn every_change_changes_the_digest() {
        let (a, b) = (line(LogStream::Stdout, 1, "a", 0), line(LogStream::Stdout, 1, "b", 0));
        let digests = [
            digest(&[a.clone(), b.clone()]),
            digest(&[b.clone(), a.clone()]),
            digest(std::slice::from_ref(&a)),
            digest(&[a.clone(), b, a.clone()]),
            digest(&[line(LogStream::Stderr, 1, "a", 0)]),
            digest(&[line(LogStream::Stdout, 2, "a", 0)]),
            digest(&[line(LogStream::Stdout, 1, "a", 7)]),
            digest(&[line(LogStream::Stdout, 1, "0 a", 0)]),
        ];
        let different: std::collections::BTreeSet<_> = digests.iter().collect();
        assert_eq!(different.len(), digests.len());
    }

    #[test]
    fn a_chain_continues_after_it_was_saved() {
        let lines = [line(LogStream::Stdout, 1, "a", 0), line(LogStream::Stderr, 2, "b", 0)];
        let mut chain = LogChain::default();
        chain.add(&lines[0]);
        let saved = serde_json::to_string(&chain).unwrap();
        let mut chain: LogChain = serde_json::from_str(&saved).unwrap();
        chain.add(&lines[1]);
        assert_eq!(chain.sha256(), digest(&lines));
    }
}
