//! The manifest: the list of the files that an attempt left in `/output`. The machine signs the manifest. Anybody who
//! has the log and the files can check that the files are the ones that the machine listed.

use sha2::{Digest as _, Sha256};

use crate::{
    ids::{JobId, Lease},
    spec::Artifact,
};

/// The text that the machine signs: the job, the attempt, and the SHA-256 of the list of files. The list has a line
/// `<sha256> <bytes> <path>` for each file, in the order of the manifest, and each line ends with a line feed.
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
    fn every_change_changes_the_signed_text() {
        let job = JobId::generate();
        let file_with =
            |path: &str, bytes, sha256: &str| Artifact { path: path.to_owned(), bytes, sha256: sha256.to_owned() };
        let file = |path: &str, bytes| file_with(path, bytes, "ab");
        let text = signed_text(job, Lease(Seq(1)), &[file("a", 1)]);
        assert_eq!(text, signed_text(job, Lease(Seq(1)), &[file("a", 1)]));
        let two = [file("a", 1), file("b", 2)];
        let turned = [file("b", 2), file("a", 1)];
        assert_ne!(signed_text(job, Lease(Seq(1)), &two), signed_text(job, Lease(Seq(1)), &turned), "the order counts");
        for other in [
            signed_text(job, Lease(Seq(2)), &[file("a", 1)]),
            signed_text(job, Lease(Seq(1)), &[file("a", 2)]),
            signed_text(job, Lease(Seq(1)), &[file("b", 1)]),
            signed_text(job, Lease(Seq(1)), &[file_with("a", 1, "cd")]),
            signed_text(job, Lease(Seq(1)), &[]),
            signed_text(JobId::generate(), Lease(Seq(1)), &[file("a", 1)]),
        ] {
            assert_ne!(other, text);
        }
    }
}
