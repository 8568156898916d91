//! The folder into which a job writes its results.
//!
//! A result appears under its name only when the file is complete: `model.safetensors` is first
//! written as `.model.safetensors.part` and then renamed.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use crate::error::Error;

/// An output folder that is known to be writable.
#[derive(Clone, Debug)]
pub struct OutputDir {
    path: PathBuf,
}

impl OutputDir {
    /// Creates the folder if it is missing and checks that files can be written.
    ///
    /// A job opens the folder before it starts to work, so no work is lost to a folder that is read-only.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let probe = path.join(".writable");
        fs::create_dir_all(&path)
            .and_then(|()| fs::write(&probe, b""))
            .and_then(|()| fs::remove_file(&probe))
            .map_err(|source| Error::Write { path: path.clone(), source })?;
        Ok(Self { path })
    }

    /// Stores bytes under a file name.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Error> {
        let part = self.path.join(format!(".{name}.part"));
        let path = self.path.join(name);
        match fs::write(&part, bytes).and_then(|()| fs::rename(&part, &path)) {
            Ok(()) => Ok(path),
            Err(source) => {
                // The first error is reported, also if the part cannot be removed and stays among the output files.
                let _ = fs::remove_file(&part);
                Err(Error::Write { path, source })
            }
        }
    }

    /// Stores a value as readable JSON under a file name.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<PathBuf, Error> {
        let mut bytes = serde_json::to_vec_pretty(value)?;
        bytes.push(b'\n');
        self.write(name, &bytes)
    }
}

/// Encodes rows of red, green and blue bytes as a PNG file.
pub fn encode_png(width: usize, height: usize, pixels: &[u8]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    // A side beyond 32 bits becomes 0, which the encoder refuses. (Such a picture would not fit in memory.)
    let side = |length: usize| u32::try_from(length).unwrap_or(0);
    let mut encoder = png::Encoder::new(&mut bytes, side(width), side(height));
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_stored_whole_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let output = OutputDir::open(dir.path().join("made")).unwrap();
        let path = output.write("a.txt", b"one").unwrap();
        output.write("a.txt", b"two").unwrap();
        assert_eq!(fs::read(path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path().join("made")).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_file_never_appears() {
        let dir = tempfile::tempdir().unwrap();
        let output = OutputDir::open(dir.path()).unwrap();
        // The rename fails, because the name belongs to a folder.
        fs::create_dir(dir.path().join("a.txt")).unwrap();
        assert!(matches!(output.write("a.txt", b"one"), Err(Error::Write { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = OutputDir::open(file.join("below")).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "));
    }

    #[test]
    fn an_encoded_picture_decodes_to_the_same_pixels() {
        let pixels: Vec<u8> = (0..3 * 5 * 4).collect();
        let bytes = encode_png(5, 4, &pixels).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut decoded = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut decoded).unwrap();
        assert_eq!((info.width, info.height), (5, 4));
        assert_eq!(decoded, pixels);
    }

    #[test]
    fn an_empty_picture_cannot_be_encoded() {
        assert!(encode_png(0, 5, &[]).is_err());
    }
}
