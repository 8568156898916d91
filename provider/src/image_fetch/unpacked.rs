//! The size of a layer's files. A layer of a few megabytes can unpack to terabytes, so the worker unpacks each layer for
//! counting while the layer arrives, before Docker unpacks it to the disk.

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    StreamingDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use tokio::sync::mpsc;

use super::FetchError;

/// Most files of an image.
pub(super) const MAX_FILES: u64 = 2_000_000;
/// The unit of a tar archive, bytes.
const BLOCK: usize = 512;
/// Chunks of a layer that wait to be counted.
const WAITING: usize = 8;

/// The size of the files of an image, as far as its layers are counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unpacked {
    pub(super) bytes: u64,
    files: u64,
    largest: u64,
}

impl Unpacked {
    pub(super) const fn new(largest: u64) -> Self {
        Self { bytes: 0, files: 0, largest }
    }

    fn check(&self) -> Result<(), FetchError> {
        match () {
            () if self.bytes > self.largest => Err(FetchError::TooLarge { largest: self.largest }),
            () if self.files > MAX_FILES => Err(FetchError::TooMany),
            () => Ok(()),
        }
    }
}

/// Counts one layer on a thread of its own.
pub(super) struct LayerCounter {
    chunks: mpsc::Sender<Bytes>,
    thread: tokio::task::JoinHandle<Result<Unpacked, FetchError>>,
}

impl LayerCounter {
    /// Begins to count a layer after the others.
    pub(super) fn start(before: Unpacked) -> Self {
        let (chunks, received) = mpsc::channel(WAITING);
        let thread = tokio::task::spawn_blocking(move || count(Chunks { received, current: Bytes::new() }, before));
        Self { chunks, thread }
    }

    /// Counts the next bytes of the layer, as they are sent. An error is told by [`LayerCounter::finish`].
    pub(super) async fn add(&self, chunk: Bytes) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    /// The size of the image with this layer.
    pub(super) async fn finish(self) -> Result<Unpacked, FetchError> {
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

/// Counts a layer, which may be packed by gzip or zstd.
fn count(chunks: impl Read, before: Unpacked) -> Result<Unpacked, FetchError> {
    let mut counter = TarCounter { unpacked: before, block: Vec::with_capacity(BLOCK), content: 0, failure: None };
    let mut packed = BufReader::new(chunks);
    let read = match packed.fill_buf() {
        Ok([0x1f, 0x8b, ..]) => io::copy(&mut MultiGzDecoder::new(packed), &mut counter).map(drop),
        Ok([0x28, 0xb5, 0x2f, 0xfd, ..]) => copy_zstd(packed, &mut counter),
        Ok(_) => io::copy(&mut packed, &mut counter).map(drop),
        Err(e) => Err(e),
    };
    match (counter.failure, read) {
        (Some(failure), _) => Err(failure),
        (None, Ok(())) => Ok(counter.unpacked),
        (None, Err(_)) => Err(FetchError::Malformed),
    }
}

/// Unpacks all frames of zstd. Some frames only describe the others, and are skipped.
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

/// Counts the bytes and the files of a tar archive that is written to it. Fails as soon as one of them is too large.
struct TarCounter {
    unpacked: Unpacked,
    /// The beginning of the next header.
    block: Vec<u8>,
    /// The bytes of the current file that are not written yet, and of the padding behind it.
    content: u64,
    failure: Option<FetchError>,
}

impl TarCounter {
    /// Counts the file of a header. A block that is no header, such as the end of the archive, is no file.
    fn end_block(&mut self) {
        let header: Option<&[u8; BLOCK]> = self.block.as_slice().try_into().ok();
        if let Some(header) = header.map(|bytes| tar::Header::from_byte_slice(bytes))
            && is_header(header)
        {
            self.unpacked.files += 1;
            self.content = header.entry_size().unwrap_or(0).div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64);
        }
        self.block.clear();
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
        self.unpacked.bytes = self.unpacked.bytes.saturating_add(bytes.len() as u64);
        let mut rest = bytes;
        while !rest.is_empty() {
            let skipped = usize::try_from(self.content).unwrap_or(usize::MAX).min(rest.len());
            (rest, self.content) = (&rest[skipped..], self.content - skipped as u64);
            let taken = (BLOCK - self.block.len()).min(rest.len());
            self.block.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if self.block.len() == BLOCK {
                self.end_block();
            }
        }
        match self.unpacked.check() {
            Ok(()) => Ok(bytes.len()),
            Err(failure) => {
                self.failure = Some(failure);
                Err(io::Error::other("too large"))
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
        ] {
            let counted = count(packed.as_slice(), Unpacked::new(LARGEST)).unwrap();
            assert_eq!((counted.bytes, counted.files), (plain.len() as u64, 6), "{packing}");
        }
    }

    #[test]
    fn a_layer_that_unpacks_to_more_than_the_limit_is_refused_however_it_is_packed() {
        let bomb = archive(&[8 << 20]);
        for packed in [bomb.clone(), gzip(&bomb), zstd(&bomb)] {
            let refused = count(packed.as_slice(), Unpacked::new(LARGEST)).unwrap_err();
            assert!(matches!(refused, FetchError::TooLarge { largest: LARGEST }), "{refused:?}");
        }
        // The layers of an image count together.
        let half = archive(&[600 << 10]);
        let first = count(half.as_slice(), Unpacked::new(LARGEST)).unwrap();
        assert!(matches!(count(half.as_slice(), first), Err(FetchError::TooLarge { .. })));
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
        assert_eq!(count(outer.as_slice(), Unpacked::new(LARGEST)).unwrap().files, 1);
    }

    #[test]
    fn a_damaged_layer_is_refused() {
        let plain = archive(&[5_000]);
        for packed in [gzip(&plain), zstd(&plain)] {
            let cut = &packed[..packed.len() - 5];
            assert!(matches!(count(cut, Unpacked::new(LARGEST)), Err(FetchError::Malformed)));
        }
    }
}
