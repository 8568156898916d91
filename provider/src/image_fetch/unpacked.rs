//! The size of a layer's files. A layer of a few megabytes can unpack to terabytes, so the worker unpacks each layer
//! for counting while the layer arrives, before Docker unpacks it to the disk.

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    StreamingDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use gpubnb_registry::RegistryError;

use super::FetchError;

/// Most files of an image.
pub(super) const MAX_FILES: u64 = 2_000_000;
/// The unit of a tar archive, bytes.
const BLOCK: usize = 512;
/// Largest extended header, bytes.
const MAX_EXTENSION: u64 = 1 << 20;
/// Chunks of a layer that wait to be counted.
const WAITING: usize = 8;

/// The size of the files of an image, as far as its layers are counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unpacked {
    pub(super) bytes: u64,
    files: u64,
    largest: u64,
}

/// A layer that was counted.
#[derive(Debug)]
pub(super) struct CountedLayer {
    /// The size of the image with this layer.
    pub(super) total: Unpacked,
    /// The SHA-256 of the unpacked layer, hexadecimal.
    pub(super) digest: String,
}

impl Unpacked {
    pub(super) const fn new(largest: u64) -> Self {
        Self { bytes: 0, files: 0, largest }
    }

    /// The size without the layers of `before`.
    pub(super) const fn minus(self, before: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(before.bytes), files: self.files.saturating_sub(before.files), ..self }
    }

    /// The size with the layers of `more`.
    pub(super) fn plus(self, more: Self) -> Result<Self, FetchError> {
        let sum =
            Self { bytes: self.bytes.saturating_add(more.bytes), files: self.files.saturating_add(more.files), ..self };
        sum.check().map(|()| sum)
    }

    fn check(&self) -> Result<(), FetchError> {
        match () {
            () if self.bytes > self.largest => Err(FetchError::UnpackedTooLarge { largest: self.largest }),
            () if self.files > MAX_FILES => Err(FetchError::TooMany),
            () => Ok(()),
        }
    }
}

/// Counts one layer on a thread of its own.
pub(super) struct LayerCounter {
    chunks: mpsc::Sender<Bytes>,
    thread: tokio::task::JoinHandle<Result<CountedLayer, FetchError>>,
}

impl LayerCounter {
    /// Begins to count a layer after the others.
    pub(super) fn start(before: Unpacked) -> Self {
        let (chunks, received) = mpsc::channel(WAITING);
        let thread = tokio::task::spawn_blocking(move || count(Chunks { received, current: Bytes::new() }, before));
        Self { chunks, thread }
    }

    /// Counts the next bytes of the layer, as they are sent. Returns false if the count has failed;
    /// [`LayerCounter::finish`] then returns the error.
    pub(super) async fn add(&self, chunk: Bytes) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    /// The result of the count.
    pub(super) async fn finish(self) -> Result<CountedLayer, FetchError> {
        drop(self.chunks);
        self.thread.await.map_err(|e| FetchError::Worker(e.into()))?
    }
}

/// The bytes of a layer, as a reader on the counting thread.
struct Chunks {
    received: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.received.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let bytes = self.current.split_to(to.len().min(self.current.len()));
        to[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

/// Counts a layer, which may be packed by gzip or zstd. Other formats are refused: Docker would unpack them, too.
fn count(mut chunks: impl Read, before: Unpacked) -> Result<CountedLayer, FetchError> {
    let mut counter = TarCounter::new(before);
    let read = read_head(&mut chunks).and_then(|head| {
        let mut packed = BufReader::new(io::Cursor::new(head.clone()).chain(chunks));
        match head.as_slice() {
            [0x1f, 0x8b, ..] => io::copy(&mut MultiGzDecoder::new(packed), &mut counter).map(drop),
            // The first bytes of a zstd frame with data, and of a skippable frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => copy_zstd(packed, &mut counter),
            _ => io::copy(&mut packed, &mut counter).map(drop),
        }
    });
    match (counter.failure, read) {
        (Some(failure), _) => Err(failure),
        (None, Ok(())) => {
            let digest = data_encoding::HEXLOWER.encode(&counter.hash.finalize());
            Ok(CountedLayer { total: counter.unpacked, digest })
        }
        (None, Err(_)) => Err(RegistryError::Malformed.into()),
    }
}

/// The first bytes of a layer, by which its format is recognised. A server may send them one by one.
fn read_head(chunks: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    chunks.by_ref().take(8).read_to_end(&mut head)?;
    Ok(head)
}

/// Unpacks all frames of zstd. Skippable frames hold no data of the layer.
fn copy_zstd(mut packed: impl BufRead, counter: &mut TarCounter) -> io::Result<()> {
    while !packed.fill_buf()?.is_empty() {
        let skipped = match StreamingDecoder::new(&mut packed) {
            Ok(mut decoder) => {
                io::copy(&mut decoder, counter)?;
                continue;
            }
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => length,
            Err(e) => return Err(io::Error::other(e)),
        };
        io::copy(&mut packed.by_ref().take(u64::from(skipped)), &mut io::sink())?;
    }
    Ok(())
}

/// Counts the bytes and the files of a tar archive that is written to it. Fails as soon as there are too many bytes or
/// files, or if the bytes are no archive.
struct TarCounter {
    unpacked: Unpacked,
    hash: Sha256,
    /// The beginning of the next header.
    block: Vec<u8>,
    /// The bytes of the current file that are not written yet, and of the padding behind it.
    content: u64,
    /// The content of an extended header (PAX), while it is written.
    extension: Option<Vec<u8>>,
    /// The size of the next file, if an extended header has said it.
    next_size: Option<u64>,
    failure: Option<FetchError>,
}

impl TarCounter {
    fn new(unpacked: Unpacked) -> Self {
        Self {
            unpacked,
            hash: Sha256::new(),
            block: Vec::with_capacity(BLOCK),
            content: 0,
            extension: None,
            next_size: None,
            failure: None,
        }
    }

    /// Reads the header of a file. The end of the archive is a block of zeros.
    fn end_block(&mut self) -> Result<(), FetchError> {
        let block = std::mem::take(&mut self.block);
        let header: &[u8; BLOCK] = block.as_slice().try_into().map_err(|_| RegistryError::Malformed)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let header = tar::Header::from_byte_slice(header);
        if !is_header(header) {
            return Err(RegistryError::Malformed.into());
        }
        let kind = header.entry_type();
        if kind.is_gnu_sparse() {
            return Err(RegistryError::Malformed.into());
        }
        let is_extension = kind.is_pax_local_extensions() || kind.is_pax_global_extensions();
        let is_name = kind.is_gnu_longname() || kind.is_gnu_longlink();
        let mut size = header.entry_size().map_err(|_| RegistryError::Malformed)?;
        if !is_extension && !is_name {
            self.unpacked.files += 1;
            size = self.next_size.take().unwrap_or(size);
            // No content follows the header of a link, a device or a directory, even if the header names a size.
            if !kind.is_file() && !kind.is_contiguous() {
                size = 0;
            }
        }
        if (is_extension || is_name) && size > MAX_EXTENSION {
            return Err(RegistryError::Malformed.into());
        }
        self.extension = is_extension.then(Vec::new);
        self.content = size.checked_next_multiple_of(BLOCK as u64).ok_or(RegistryError::Malformed)?;
        Ok(())
    }

    /// Reads an extended header. Sparse files are refused: Docker would write their holes as zeros.
    fn end_extension(&mut self, content: &[u8]) -> Result<(), FetchError> {
        let end = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        for record in tar::PaxExtensions::new(&content[..end]) {
            let record = record.map_err(|_| RegistryError::Malformed)?;
            match record.key().map_err(|_| RegistryError::Malformed)? {
                "size" => {
                    let size = record.value().ok().and_then(|size| size.parse().ok());
                    self.next_size = Some(size.ok_or(RegistryError::Malformed)?);
                }
                key if key.starts_with("GNU.sparse") => return Err(RegistryError::Malformed.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.unpacked.bytes = self.unpacked.bytes.saturating_add(bytes.len() as u64);
        self.hash.update(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let skipped = usize::try_from(self.content).unwrap_or(usize::MAX).min(rest.len());
            if let Some(extension) = &mut self.extension {
                extension.extend_from_slice(&rest[..skipped]);
            }
            (rest, self.content) = (&rest[skipped..], self.content - skipped as u64);
            if self.content == 0
                && let Some(content) = self.extension.take()
            {
                self.end_extension(&content)?;
            }
            let taken = (BLOCK - self.block.len()).min(rest.len());
            self.block.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if self.block.len() == BLOCK {
                self.end_block()?;
            }
        }
        self.unpacked.check()
    }
}

/// True if the checksum of a header is right.
fn is_header(header: &tar::Header) -> bool {
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    let sum = |index: usize, byte: &u8| if CHECKSUM.contains(&index) { u32::from(b' ') } else { u32::from(*byte) };
    let computed: u32 = header.as_bytes().iter().enumerate().map(|(index, byte)| sum(index, byte)).sum();
    header.cksum().is_ok_and(|named| named == computed)
}

impl Write for TarCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.read(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(failure) => {
                self.failure = Some(failure);
                Err(io::Error::other("the layer is refused"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: u64 = 1 << 20;

    /// An archive of files of these sizes.
    fn archive(sizes: &[usize]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for size in sizes {
            let mut header = tar::Header::new_gnu();
            header.set_size(*size as u64);
            header.set_cksum();
            builder.append_data(&mut header, "a", vec![0_u8; *size].as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn files_and_bytes_are_counted_however_the_layer_is_packed() {
        let plain = archive(&[0, 1, 511, 512, 513, 10_000]);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(&plain)].concat();
        let (first, second) = plain.split_at(700);
        for (packing, packed) in [
            ("none", plain.clone()),
            ("gzip", gzip(&plain)),
            ("gzip in two parts", [gzip(first), gzip(second)].concat()),
            ("zstd", zstd(&plain)),
            ("zstd in two frames", [zstd(first), zstd(second)].concat()),
            ("zstd with a frame to skip behind", [zstd(&plain), skipped[..11].to_vec()].concat()),
            ("zstd with a frame to skip before", skipped.clone()),
        ] {
            for mut reader in [Box::new(packed.as_slice()) as Box<dyn Read>, Box::new(OneByOne(packed.as_slice()))] {
                let counted = count(&mut reader, Unpacked::new(LARGEST)).unwrap();
                assert_eq!((counted.total.bytes, counted.total.files), (plain.len() as u64, 6), "{packing}");
                assert_eq!(counted.digest, data_encoding::HEXLOWER.encode(&Sha256::digest(&plain)), "{packing}");
            }
        }
    }

    #[test]
    fn a_layer_that_unpacks_to_more_than_the_limit_is_refused_however_it_is_packed() {
        let bomb = archive(&[8 << 20]);
        for packed in [bomb.clone(), gzip(&bomb), zstd(&bomb)] {
            let refused = count(packed.as_slice(), Unpacked::new(LARGEST)).unwrap_err();
            assert!(matches!(refused, FetchError::UnpackedTooLarge { largest: LARGEST }), "{refused:?}");
        }
        // The layers of an image count together.
        let half = archive(&[600 << 10]);
        let first = count(half.as_slice(), Unpacked::new(LARGEST)).unwrap();
        assert!(matches!(count(half.as_slice(), first.total), Err(FetchError::UnpackedTooLarge { .. })));
        let layer = first.total.minus(Unpacked::new(LARGEST));
        assert!(
            matches!(first.total.plus(layer), Err(FetchError::UnpackedTooLarge { .. })),
            "a layer that is listed twice"
        );
    }

    #[test]
    fn too_many_files_are_refused_and_a_file_that_looks_like_files_is_one() {
        let before = Unpacked { files: MAX_FILES - 1, ..Unpacked::new(LARGEST) };
        assert!(count(archive(&[1]).as_slice(), before).is_ok());
        assert!(matches!(count(archive(&[1, 1]).as_slice(), before), Err(FetchError::TooMany)));
        let mut builder = tar::Builder::new(Vec::new());
        let inner = archive(&[1, 2, 3]);
        let mut header = tar::Header::new_gnu();
        header.set_size(inner.len() as u64);
        builder.append_data(&mut header, "inner.tar", inner.as_slice()).unwrap();
        let outer = builder.into_inner().unwrap();
        assert_eq!(count(outer.as_slice(), Unpacked::new(LARGEST)).unwrap().total.files, 1);
    }

    /// Gives one byte at a time, as a server may send them.
    struct OneByOne<'a>(&'a [u8]);

    impl Read for OneByOne<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let length = to.len().min(1);
            self.0.read(&mut to[..length])
        }
    }

    /// An archive of one entry, which an extended header with this record describes.
    fn extended(record: &str, kind: tar::EntryType, size: u64, content: &[u8]) -> Vec<u8> {
        let text = format!("{} {record}\n", record.len() + 4);
        let mut archive = Vec::new();
        for (kind, size, content) in
            [(tar::EntryType::XHeader, text.len() as u64, text.as_bytes()), (kind, size, content)]
        {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_cksum();
            archive.extend_from_slice(header.as_bytes());
            archive.extend_from_slice(content);
            archive.resize(archive.len().next_multiple_of(BLOCK), 0);
        }
        archive.resize(archive.len() + 2 * BLOCK, 0);
        archive
    }

    #[test]
    fn an_archive_is_read_as_docker_reads_it() {
        let read = |archive: &[u8]| count(archive, Unpacked::new(LARGEST)).map(|counted| counted.total.files);
        let regular = tar::EntryType::Regular;
        // The size in the extended header counts, and the zeros in the file's content are no headers.
        assert_eq!(read(&extended("size=001200", regular, 0, &[7; 1_200])).unwrap(), 1);
        // A directory has no content, whatever its header says: a file behind it is counted.
        let hidden = [extended("comment=abc", tar::EntryType::Directory, 1 << 33, &[]), archive(&[1])].concat();
        assert_eq!(read(&hidden).unwrap(), 2);
        for sparse in ["GNU.sparse.major=1", "GNU.sparse.realsize=1099511627776"] {
            assert!(
                matches!(read(&extended(sparse, regular, 0, &[])), Err(FetchError::Registry(RegistryError::Malformed))),
                "{sparse}"
            );
        }
        for other in [&b"BZh91AY&SY"[..], &[0xfd, b'7', b'z', b'X', b'Z', 0], &[b'x'; 2_000]] {
            let padded = [other, &[b'x'; BLOCK]].concat();
            assert!(matches!(read(&padded), Err(FetchError::Registry(RegistryError::Malformed))), "{other:?}");
        }
    }

    #[test]
    fn a_damaged_layer_is_refused() {
        let plain = archive(&[5_000]);
        for packed in [gzip(&plain), zstd(&plain)] {
            let cut = &packed[..packed.len() - 5];
            assert!(matches!(count(cut, Unpacked::new(LARGEST)), Err(FetchError::Registry(RegistryError::Malformed))));
        }
    }
}
