//! The manifest of what an attempt left, and the machine's signature over it: anyone can check that the files are those
//! which the machine listed, with nothing but the log and the files.

use sha2::{Digest as _, Sha256};

use crate::{
    ids::{JobId, Lease},
    spec::Artifact,
};

/// What the machine signs: the job, the attempt, and the SHA-256 of the list, which has a line for each file in the
/// order of the manifest: `<sha256> <bytes> <path>`, each ended by a line feed.
pub fn signed_text(job: JobId, lease: Lease, outputs: &[Artifact]) -> String {
    let mut list = Sha256::new();
    for file in outputs {
        list.update(format!("{} {} {}\n", file.sha256, file.bytes, file.path));
    }
    format!("manifest.{job}.{lease}.{}", crate::hex(list.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Seq;

    #[test]
    fn whatever_is_changed_the_text_is_another() {
        let job = JobId::generate();
        let file = |path: &str, bytes| Artifact { path: path.to_owned(), bytes, sha256: "ab".to_owned() };
        let text = signed_text(job, Lease(Seq(1)), &[file("a", 1)]);
        assert_eq!(text, signed_text(job, Lease(Seq(1)), &[file("a", 1)]));
        for other in [
            signed_text(job, Lease(Seq(2)), &[file("a", 1)]),
            signed_text(job, Lease(Seq(1)), &[file("a", 2)]),
            signed_text(job, Lease(Seq(1)), &[file("b", 1)]),
            signed_text(job, Lease(Seq(1)), &[]),
            signed_text(JobId::generate(), Lease(Seq(1)), &[file("a", 1)]),
        ] {
            assert_ne!(other, text);
        }
    }
}
