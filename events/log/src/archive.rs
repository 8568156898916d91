//! An archive of MARKET: a directory with the messages as compressed JSON lines, the leaf of each message in the Merkle
//! tree, and a manifest. An archive can be read, verified and folded anywhere, without a broker.
//!
//! Belongs here: writing and reading the format. Must not come here: code that depends on the kind of an event.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use gpubnb_events::{BoxError, Seq, message::Hash};
use gpubnb_proof::{MessageLine, SignedTreeHead};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::RawMessage;

/// The version of the format that this program writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// The file that lists the contents. An archive is complete if, and only if, it has this file.
const MANIFEST: &str = "manifest.json";
/// The file with the leaf of each message, one after the other.
const LEAVES: &str = "leaves.bin";
/// Messages in one part, which is a file of an archive. Only the last part has fewer.
const MESSAGES_PER_PART: u64 = if cfg!(test) { 4 } else { 50_000 };
/// Longest line, bytes. The broker takes messages of a mebibyte, and JSON writes some bytes as six characters.
const LONGEST_LINE: u64 = 16 << 20;

/// The reason why an archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file of the archive cannot be read or written.
    #[error("{file} cannot be read or written")]
    File {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The archive has another version of the format.
    #[error("the archive has format {0}; this program reads {FORMAT}")]
    Format(u32),
    /// The directory holds a complete archive already.
    #[error("{0} already holds a complete archive: choose a new directory for a new archive")]
    AlreadyComplete(PathBuf),
    /// Another process is writing this archive.
    #[error("{0} is being written by another export: wait for its end, or choose a new directory")]
    Busy(PathBuf),
    /// The `stop` function of the caller returned true.
    #[error("stopped")]
    Stopped,
}

/// Adds the name of the file to an error of input or output.
fn in_file(file: &Path) -> impl FnOnce(io::Error) -> ArchiveError + use<> {
    let file = file.to_owned();
    move |source| ArchiveError::File { file, source }
}

/// The contents of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveManifest {
    /// Version of the format.
    pub format: u32,
    /// Last sequence in the archive. The first is always 1.
    pub last: Seq,
    /// The parts, oldest first.
    pub parts: Vec<ArchivePart>,
    /// Signed tree heads of the log, oldest first.
    pub heads: Vec<SignedTreeHead>,
}

/// A part of an archive: one file of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivePart {
    /// The file's name.
    pub file: String,
    /// First sequence in the file.
    pub first: Seq,
    /// Last sequence in the file.
    pub last: Seq,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
}

/// Writes an archive. [`ArchiveWriter::finish`] writes the manifest and completes the archive.
pub struct ArchiveWriter {
    directory: PathBuf,
    leaves: BufWriter<File>,
    /// The part that is being written: its file name, its first sequence and its encoder.
    part: Option<(String, Seq, GzEncoder<BufWriter<File>>)>,
    parts: Vec<ArchivePart>,
    last: Seq,
    last_leaf: Option<Hash>,
}

/// The file name of the part that begins with this sequence: `events-<sequence>.jsonl.gz`.
fn part_name(first: Seq) -> String {
    format!("events-{:012}.jsonl.gz", first.0)
}

/// The messages in a part. If a message cannot be read, its error is the last item.
fn read_messages(file: PathBuf) -> Result<impl Iterator<Item = Result<RawMessage, ArchiveError>>, ArchiveError> {
    let mut lines = BufReader::new(MultiGzDecoder::new(BufReader::new(File::open(&file).map_err(in_file(&file))?)));
    let mut ended = false;
    Ok(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let mut line = Vec::new();
        let read = (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut line);
        let invalid = |why: BoxError| io::Error::new(io::ErrorKind::InvalidData, why);
        let raw = match read {
            Ok(0) => return None,
            Ok(_) => serde_json::from_slice::<MessageLine>(&line).map_err(|e| invalid(e.into())).and_then(|line| {
                RawMessage::from_line(line).ok_or_else(|| invalid("a line that holds no message".into()))
            }),
            Err(e) => Err(e),
        };
        ended = raw.is_err();
        Some(raw.map_err(in_file(&file)))
    }))
}

impl ArchiveWriter {
    /// Begins an archive in a directory, or continues an archive whose writer was interrupted. To continue, the
    /// function reads every message of the existing parts, and keeps the parts before the first incomplete one. `stop`
    /// is called after each message: if it returns true, the function fails with [`ArchiveError::Stopped`].
    pub fn create(directory: &Path, stop: impl Fn() -> bool) -> Result<Self, ArchiveError> {
        fs::create_dir_all(directory).map_err(in_file(directory))?;
        if directory.join(MANIFEST).exists() {
            return Err(ArchiveError::AlreadyComplete(directory.to_owned()));
        }
        let file = directory.join(LEAVES);
        let leaves = File::options().write(true).create(true).truncate(false).open(&file).map_err(in_file(&file))?;
        if leaves.try_lock().is_err() {
            return Err(ArchiveError::Busy(directory.to_owned()));
        }
        // Another writer may have completed the archive until now.
        if directory.join(MANIFEST).exists() {
            return Err(ArchiveError::AlreadyComplete(directory.to_owned()));
        }
        leaves.set_len(0).map_err(in_file(&file))?;
        let leaves = BufWriter::new(leaves);
        let (directory, part, parts) = (directory.to_owned(), None, Vec::new());
        let mut writer = Self { directory, leaves, part, parts, last: Seq::ZERO, last_leaf: None };
        while writer.keep_next_part(&stop)? {}
        Ok(writer)
    }

    /// Keeps the next part that is in the directory, if the part is complete; otherwise removes it. Returns true if a
    /// part was kept.
    fn keep_next_part(&mut self, stop: &impl Fn() -> bool) -> Result<bool, ArchiveError> {
        let (first, name) = (self.last.next(), part_name(self.last.next()));
        let file = self.directory.join(&name);
        if !file.exists() {
            return Ok(false);
        }
        let (mut leaves, mut messages) = (Vec::new(), read_messages(file.clone())?);
        // The loop asks for one message more than a part has. This last read reaches the end of the file, where gzip
        // checks its checksum, so a truncated file gives an error here. A part with too many messages is invalid.
        for (n, raw) in (first.0..=first.0 + MESSAGES_PER_PART).zip(&mut messages) {
            match raw {
                Ok(raw) if raw.seq.0 == n => leaves.push(raw.leaf()),
                _ => {
                    leaves.clear();
                    break;
                }
            }
            if stop() {
                return Err(ArchiveError::Stopped);
            }
        }
        if leaves.len() as u64 != MESSAGES_PER_PART {
            // The part is incomplete, or the manifest of a complete archive was removed, and this is its short last
            // part. The caller writes the messages of this part again.
            fs::remove_file(&file).map_err(in_file(&file))?;
            return Ok(false);
        }
        self.leaves.write_all(leaves.as_flattened()).map_err(in_file(&self.directory.join(LEAVES)))?;
        self.last = Seq(self.last.0 + MESSAGES_PER_PART);
        self.last_leaf = leaves.pop();
        self.parts.push(ArchivePart { file: name, first, last: self.last, sha256: sha256(&file)? });
        Ok(true)
    }

    /// The sequence of the last message that was written or kept.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// The leaf of the last message that was written or kept.
    pub fn last_leaf(&self) -> Option<Hash> {
        self.last_leaf
    }

    /// Writes the next message. The caller gives the messages in the order of their sequences, without a gap.
    pub fn write(&mut self, raw: &RawMessage) -> Result<(), ArchiveError> {
        if self.part.as_ref().is_some_and(|(_, first, _)| raw.seq.0 >= first.0 + MESSAGES_PER_PART) {
            self.close_part()?;
        }
        if self.part.is_none() {
            let name = part_name(raw.seq);
            let path = self.directory.join(&name);
            // This overwrites a part that an interrupted writer left. `create` keeps only complete parts.
            let file = BufWriter::new(File::create(&path).map_err(in_file(&path))?);
            self.part = Some((name, raw.seq, GzEncoder::new(file, Compression::default())));
        }
        // The part was opened above.
        let Some((name, _, encoder)) = &mut self.part else { return Ok(()) };
        let line =
            serde_json::to_vec(&MessageLine::from(raw)).map_err(|e| in_file(&self.directory.join(&*name))(e.into()))?;
        encoder
            .write_all(&line)
            .and_then(|()| encoder.write_all(b"\n"))
            .map_err(in_file(&self.directory.join(name)))?;
        let leaf = raw.leaf();
        self.leaves.write_all(&leaf).map_err(in_file(&self.directory.join(LEAVES)))?;
        (self.last, self.last_leaf) = (raw.seq, Some(leaf));
        Ok(())
    }

    /// Completes the part that is being written, if there is one.
    fn close_part(&mut self) -> Result<(), ArchiveError> {
        let Some((name, first, part)) = self.part.take() else { return Ok(()) };
        let file = self.directory.join(&name);
        let written = part.finish().and_then(|file| file.into_inner().map_err(io::IntoInnerError::into_error));
        written.and_then(|file| file.sync_all()).map_err(in_file(&file))?;
        self.parts.push(ArchivePart { file: name, first, last: self.last, sha256: sha256(&file)? });
        Ok(())
    }

    /// Completes the archive. `heads` are the signed tree heads of the log.
    pub fn finish(mut self, heads: Vec<SignedTreeHead>) -> Result<ArchiveManifest, ArchiveError> {
        self.close_part()?;
        let leaves = self.directory.join(LEAVES);
        let written = self.leaves.into_inner().map_err(io::IntoInnerError::into_error);
        // The open file is the lock of the directory, until the manifest is there.
        let _lock = written.and_then(|file| file.sync_all().map(|()| file)).map_err(in_file(&leaves))?;
        let manifest = ArchiveManifest { format: FORMAT, last: self.last, parts: self.parts, heads };
        let file = self.directory.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| in_file(&file)(e.into()))?;
        // Whole or not at all: a reader takes an archive with this file for complete.
        let new = self.directory.join(format!("{MANIFEST}.new"));
        let written = File::create(&new).and_then(|mut open| open.write_all(&text).and_then(|()| open.sync_all()));
        written.and_then(|()| fs::rename(&new, &file)).map_err(in_file(&file))?;
        Ok(manifest)
    }
}

/// The SHA-256 of a file, hexadecimal.
pub fn sha256(file: &Path) -> Result<String, ArchiveError> {
    let mut hash = Sha256::new();
    let mut open = File::open(file).map_err(in_file(file))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match open.read(&mut buffer).map_err(in_file(file))? {
            0 => return Ok(gpubnb_events::hex(hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// An archive, for reading.
pub struct ArchiveReader {
    directory: PathBuf,
    /// The manifest.
    pub manifest: ArchiveManifest,
}

impl ArchiveReader {
    /// Opens a complete archive.
    pub fn open(directory: &Path) -> Result<Self, ArchiveError> {
        let file = directory.join(MANIFEST);
        let text = fs::read(&file).map_err(in_file(&file))?;
        let manifest: ArchiveManifest = serde_json::from_slice(&text).map_err(|e| in_file(&file)(e.into()))?;
        if manifest.format != FORMAT {
            return Err(ArchiveError::Format(manifest.format));
        }
        Ok(Self { directory: directory.to_owned(), manifest })
    }

    /// The path of a part. Only the last component of the name is used, so that no name leads out of the archive.
    pub fn file(&self, part: &ArchivePart) -> PathBuf {
        self.directory.join(Path::new(&part.file).file_name().unwrap_or_default())
    }

    /// The messages of a part. If a message cannot be read, its error is the last item.
    pub fn messages(
        &self,
        part: &ArchivePart,
    ) -> Result<impl Iterator<Item = Result<RawMessage, ArchiveError>> + use<>, ArchiveError> {
        read_messages(self.file(part))
    }

    /// The leaves of all messages, in order, as the writer of the archive stored them.
    pub fn leaves(&self) -> Result<impl Iterator<Item = Hash> + use<>, ArchiveError> {
        let file = self.directory.join(LEAVES);
        let mut leaves = BufReader::new(File::open(&file).map_err(in_file(&file))?);
        Ok(std::iter::from_fn(move || {
            let mut leaf = Hash::default();
            leaves.read_exact(&mut leaf).ok().map(|()| leaf)
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn raw(seq: u64) -> RawMessage {
        let payload = format!("{{\"n\":{seq}}}").into();
        RawMessage { seq: Seq(seq), nanos: 1, subject: "s".to_owned(), headers: None, payload }
    }

    #[test]
    fn an_interrupted_archive_goes_on_after_its_last_complete_part() {
        let directory = tempfile::tempdir().unwrap();
        let whole = directory.path().join("whole");
        let mut writer = ArchiveWriter::create(&whole, || false).unwrap();
        (1..=10).for_each(|seq| writer.write(&raw(seq)).unwrap());
        let expected = writer.finish(Vec::new()).unwrap();
        assert!(matches!(ArchiveWriter::create(&whole, || false), Err(ArchiveError::AlreadyComplete(_))));

        let cut = directory.path().join("cut");
        let mut writer = ArchiveWriter::create(&cut, || false).unwrap();
        (1..=7).for_each(|seq| writer.write(&raw(seq)).unwrap());
        drop(writer);
        assert!(matches!(ArchiveWriter::create(&cut, || true), Err(ArchiveError::Stopped)));
        // A part without its end is not complete, even if all of its messages can be read.
        let first = cut.join(part_name(Seq(1)));
        let (whole_part, truncated) = (fs::read(&first).unwrap(), cut.with_file_name("truncated"));
        fs::create_dir(&truncated).unwrap();
        fs::write(truncated.join(part_name(Seq(1))), &whole_part[..whole_part.len() - 8]).unwrap();
        assert_eq!(ArchiveWriter::create(&truncated, || false).unwrap().last(), Seq::ZERO);
        let mut writer = ArchiveWriter::create(&cut, || false).unwrap();
        assert!(matches!(ArchiveWriter::create(&cut, || false), Err(ArchiveError::Busy(_))));
        assert_eq!((writer.last(), writer.last_leaf()), (Seq(4), Some(raw(4).leaf())));
        (5..=10).for_each(|seq| writer.write(&raw(seq)).unwrap());
        assert_eq!(writer.finish(Vec::new()).unwrap(), expected);
        let leaves = |directory: &Path| fs::read(directory.join(LEAVES)).unwrap();
        assert_eq!(leaves(&cut), leaves(&whole));
    }
}
