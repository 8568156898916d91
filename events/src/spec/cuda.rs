//! The version of CUDA, NVIDIA's interface to its GPUs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A CUDA version, such as 12.4. A driver that supports 12.4 also runs programs for older versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CudaVersion {
    major: u16,
    minor: u16,
}

/// The error for a text that is not a CUDA version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a CUDA version such as 12.4")]
pub struct BadCudaVersion(String);

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for CudaVersion {
    type Err = BadCudaVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let version = text
            .split_once('.')
            .and_then(|(major, minor)| Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? }));
        // Only one text is accepted for each version: neither `+12.4` nor `12.04`.
        version.filter(|version| version.to_string() == text).ok_or_else(|| BadCudaVersion(text.to_owned()))
    }
}

impl TryFrom<String> for CudaVersion {
    type Error = BadCudaVersion;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CudaVersion> for String {
    fn from(version: CudaVersion) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number_and_have_one_text() {
        let version = |text: &str| text.parse::<CudaVersion>();
        assert!(version("12.10").unwrap() > version("12.4").unwrap());
        assert!(version("13.0").unwrap() > version("12.9").unwrap());
        for wrong in ["", "12", "12.", ".4", "12.04", "+12.4", "12.4.1", "12.x"] {
            assert!(version(wrong).is_err(), "{wrong}");
        }
    }
}
