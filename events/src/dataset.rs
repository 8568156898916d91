//! A dataset: a directory of files that jobs read, such as training data or the code of a job. A dataset never changes,
//! and its id is a hash of its content.
//!
//! Belongs here: the manifest (the list of a dataset's files), its canonical form, and what a manifest must keep. Must
//! not come here: where the bytes are stored.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::text::{DistinctPaths, MAX_PATH, is_plain, is_plain_path, is_sha256_hex};

/// Most files and links of a dataset.
pub const MAX_DATASET_FILES: usize = 10_000;

/// Most directories of a dataset.
pub const MAX_DATASET_DIRECTORIES: usize = 10_000;
/// Most parts of a path, and most bytes of one part: no file system takes a longer name.
const MAX_PARTS: usize = 32;
const MAX_PART: usize = 255;
/// Most bytes of all files of a dataset together.
pub const MAX_DATASET_BYTES: u64 = 2 << 30;
/// Most bytes of one file of a dataset.
pub const MAX_DATASET_FILE_BYTES: u64 = 1 << 30;

/// Most contents, and most bytes, of one request that uploads or downloads several contents.
pub const MAX_PACK_FILES: usize = 500;
/// Most bytes of such a request. A larger content has a request of its own.
pub const MAX_PACK_BYTES: u64 = 16 << 20;

/// Groups contents into packs: ranges that are sent by one request each. `indices` are in order, and `bytes` is the
/// size of the content with an index.
pub fn packs(indices: impl IntoIterator<Item = usize>, bytes: impl Fn(usize) -> u64) -> Vec<Range<usize>> {
    let mut packs: Vec<Range<usize>> = Vec::new();
    let mut size = 0_u64;
    for index in indices {
        size = size.saturating_add(bytes(index));
        match packs.last_mut() {
            Some(pack) if pack.end == index && pack.len() < MAX_PACK_FILES && size <= MAX_PACK_BYTES => pack.end += 1,
            _ => {
                size = bytes(index);
                packs.push(index..index + 1);
            }
        }
    }
    packs
}

/// The id of a dataset: the SHA-256 of its manifest in canonical form, 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatasetId(String);

/// A text that is not the id of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a dataset has 64 hexadecimal digits")]
pub struct InvalidDatasetId;

impl DatasetId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits of the id, for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl TryFrom<String> for DatasetId {
    type Error = InvalidDatasetId;

    fn try_from(text: String) -> Result<Self, InvalidDatasetId> {
        if is_sha256_hex(&text) { Ok(Self(text)) } else { Err(InvalidDatasetId) }
    }
}

impl FromStr for DatasetId {
    type Err = InvalidDatasetId;

    fn from_str(text: &str) -> Result<Self, InvalidDatasetId> {
        Self::try_from(text.to_owned())
    }
}

impl From<DatasetId> for String {
    fn from(id: DatasetId) -> Self {
        id.0
    }
}

impl fmt::Display for DatasetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// True for the name of a dataset, and for the name of the directory at which a job finds the dataset: at most 64
/// letters, digits, `.`, `_` and `-`, of which the first is a letter or a digit.
pub fn is_dataset_name(name: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    name.len() <= 64 && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(is_inner)
}

/// A file of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetFile {
    /// Path below the directory, with `/` between its parts.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in hex.
    pub sha256: String,
    /// True if the file is a program.
    pub exec: bool,
}

/// A symbolic link in a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetLink {
    /// Path below the directory.
    pub path: String,
    /// The path to which the link leads, from the link's own directory. It stays inside the dataset.
    pub target: String,
}

/// The list of all files and links of a dataset. The canonical form is this value as JSON without spaces, with the
/// fields in the order of the types, and with the files and the links each in the order of the bytes of their paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetManifest {
    /// The files. Directories have no entries: each exists because of the files in it.
    pub files: Vec<DatasetFile>,
    /// The symbolic links.
    #[serde(default)]
    pub links: Vec<DatasetLink>,
}

/// The rule that a manifest breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// No file at all.
    #[error("the dataset has no files")]
    Empty,
    /// Too many files and links.
    #[error("the dataset has {0} files and links, and may have {MAX_DATASET_FILES}")]
    TooMany(usize),
    /// Too many directories.
    #[error("the dataset has {0} directories, and may have {MAX_DATASET_DIRECTORIES}")]
    TooManyDirectories(usize),
    /// A path that is not safe, too long, or not in order.
    #[error(
        "the path {0:?} is not a plain relative path of at most 32 parts of at most 255 bytes, is there twice, or is \
         not in order"
    )]
    Path(String),
    /// A path below a file or a link.
    #[error("{0:?} is a file or a link, and the directory of another path, too")]
    NoDirectory(String),
    /// A hash that is none, or two sizes for one hash.
    #[error("the hash or the size of {0:?} is not valid")]
    Content(String),
    /// A link out of the dataset.
    #[error("the link {0:?} leads out of the dataset")]
    Link(String),
}

impl DatasetManifest {
    /// A manifest of these files and links, in canonical order.
    pub fn new(mut files: Vec<DatasetFile>, mut links: Vec<DatasetLink>) -> Self {
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        links.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Self { files, links }
    }

    /// The canonical form.
    pub fn canonical(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The id of the dataset.
    pub fn id(&self) -> Result<DatasetId, serde_json::Error> {
        Ok(DatasetId(crate::hex(Sha256::digest(self.canonical()?))))
    }

    /// The sum of the sizes of all files, bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Why the dataset is too large for the market; `None` if it is not.
    pub fn too_large(&self) -> Option<String> {
        let (bytes, mib) = (self.bytes(), |bytes: u64| bytes.div_ceil(1 << 20));
        if bytes > MAX_DATASET_BYTES {
            let most = mib(MAX_DATASET_BYTES);
            return Some(format!("The files have {} MiB together, and a dataset may have {most} MiB.", mib(bytes)));
        }
        let large = self.files.iter().find(|file| file.bytes > MAX_DATASET_FILE_BYTES)?;
        let most = mib(MAX_DATASET_FILE_BYTES);
        Some(format!("{} has {} MiB, and a file of a dataset may have {most} MiB.", large.path, mib(large.bytes)))
    }

    /// The different contents of the files, in the order of the files: the first file with each content.
    pub fn contents(&self) -> Vec<&DatasetFile> {
        let mut seen = HashSet::new();
        self.files.iter().filter(|file| seen.insert(file.sha256.as_str())).collect()
    }

    /// Checks that the paths are safe, different and in order, that no path is below a file, and that no link leads out
    /// of the dataset. Market and machine both check every manifest.
    pub fn check(&self) -> Result<(), InvalidManifest> {
        let count = self.files.len() + self.links.len();
        if count == 0 {
            return Err(InvalidManifest::Empty);
        }
        if count > MAX_DATASET_FILES {
            return Err(InvalidManifest::TooMany(count));
        }
        let in_order = |previous: &mut Option<String>, path: &str| {
            let is_later = previous.as_deref().is_none_or(|previous| previous < path);
            *previous = Some(path.to_owned());
            is_later
        };
        let (mut distinct, mut file, mut link) = (DistinctPaths::default(), None, None);
        let mut sizes = HashMap::new();
        for DatasetFile { path, bytes, sha256, .. } in &self.files {
            if !is_path(path) || !in_order(&mut file, path) || !distinct.add(path) {
                return Err(InvalidManifest::Path(path.clone()));
            }
            if !is_sha256_hex(sha256) || sizes.insert(sha256.as_str(), *bytes).is_some_and(|other| other != *bytes) {
                return Err(InvalidManifest::Content(path.clone()));
            }
        }
        for DatasetLink { path, target } in &self.links {
            if !is_path(path) || !in_order(&mut link, path) || !distinct.add(path) {
                return Err(InvalidManifest::Path(path.clone()));
            }
            if !stays_inside(path, target) {
                return Err(InvalidManifest::Link(path.clone()));
            }
        }
        self.check_directories()
    }

    /// Refuses a path below another path, which is a file or a link: through a link, it could lead out of the dataset.
    fn check_directories(&self) -> Result<(), InvalidManifest> {
        let paths = || self.files.iter().map(|file| &file.path).chain(self.links.iter().map(|link| &link.path));
        let all: HashSet<&str> = paths().map(String::as_str).collect();
        let mut directories = HashSet::new();
        for path in paths() {
            // A directory that is known already has known directories above it.
            for (end, _) in path.rmatch_indices('/') {
                let directory = &path[..end];
                if all.contains(directory) {
                    return Err(InvalidManifest::NoDirectory(directory.to_owned()));
                }
                if !directories.insert(directory) {
                    break;
                }
            }
        }
        if directories.len() > MAX_DATASET_DIRECTORIES {
            return Err(InvalidManifest::TooManyDirectories(directories.len()));
        }
        Ok(())
    }
}

/// True for a path that a dataset may have.
fn is_path(path: &str) -> bool {
    is_plain_path(path) && path.split('/').count() <= MAX_PARTS && path.split('/').all(|part| part.len() <= MAX_PART)
}

/// True if a link at this path with this target leads to a place inside the dataset.
fn stays_inside(path: &str, target: &str) -> bool {
    if target.is_empty() || target.len() > MAX_PATH || target.starts_with('/') || !target.chars().all(is_plain) {
        return false;
    }
    let mut depth = path.matches('/').count();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => match depth.checked_sub(1) {
                Some(above) => depth = above,
                None => return false,
            },
            _ => depth += 1,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::ops::Add as _;

    use super::*;

    fn file(path: &str, content: &str) -> DatasetFile {
        let sha256 = crate::hex(Sha256::digest(content));
        DatasetFile { path: path.to_owned(), bytes: content.len() as u64, sha256, exec: false }
    }

    fn link(path: &str, target: &str) -> DatasetLink {
        DatasetLink { path: path.to_owned(), target: target.to_owned() }
    }

    #[test]
    fn the_id_is_the_hash_of_the_documented_form() {
        let manifest = DatasetManifest::new(vec![file("b.txt", "b"), file("a/é.txt", "")], vec![link("l", "b.txt")]);
        let [empty, b] = ["", "b"].map(|text| crate::hex(Sha256::digest(text)));
        let first = format!(r#"{{"path":"a/é.txt","bytes":0,"sha256":"{empty}","exec":false}}"#);
        let second = format!(r#"{{"path":"b.txt","bytes":1,"sha256":"{b}","exec":false}}"#);
        let links = r#"[{"path":"l","target":"b.txt"}]"#;
        let text = format!(r#"{{"files":[{first},{second}],"links":{links}}}"#);
        assert_eq!(String::from_utf8(manifest.canonical().unwrap()).unwrap(), text);
        assert_eq!(manifest.id().unwrap().as_str(), crate::hex(Sha256::digest(text)));
        assert_eq!(manifest.check(), Ok(()));
    }

    #[test]
    fn equal_contents_are_listed_once() {
        let manifest = DatasetManifest::new(vec![file("a", "x"), file("b", "yy"), file("c", "x")], Vec::new());
        assert_eq!(manifest.contents().iter().map(|content| content.bytes).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(manifest.bytes(), 4);
    }

    #[test]
    fn a_manifest_with_a_dangerous_path_or_link_is_refused() {
        let refused = |files: Vec<DatasetFile>, links| DatasetManifest::new(files, links).check().unwrap_err();
        assert_eq!(refused(Vec::new(), Vec::new()), InvalidManifest::Empty);
        for path in [
            "",
            "/etc/passwd",
            "../a",
            "a/../b",
            "a//b",
            "./a",
            "a/",
            "a\0",
            "a\u{202e}b",
            &"x".repeat(256),
            &"d/".repeat(40).add("f"),
        ] {
            assert_eq!(refused(vec![file(path, "")], Vec::new()), InvalidManifest::Path(path.to_owned()));
        }
        for target in ["", "/etc/passwd", "..", "../x", "a/../../x", "x\0"] {
            assert_eq!(refused(Vec::new(), vec![link("l", target)]), InvalidManifest::Link("l".to_owned()));
        }
        assert_eq!(DatasetManifest::new(Vec::new(), vec![link("d/l", "../x")]).check(), Ok(()));
        let below = refused(vec![file("l/x", "")], vec![link("l", "d")]);
        assert_eq!(below, InvalidManifest::NoDirectory("l".to_owned()));
        let twice = DatasetManifest { files: vec![file("a", ""), file("a", "")], links: Vec::new() };
        assert_eq!(twice.check(), Err(InvalidManifest::Path("a".to_owned())));
        let unsorted = DatasetManifest { files: vec![file("b", ""), file("a", "")], links: Vec::new() };
        assert_eq!(unsorted.check(), Err(InvalidManifest::Path("a".to_owned())));
        assert_eq!(
            refused(vec![file("e\u{301}", ""), file("é", "")], Vec::new()),
            InvalidManifest::Path("é".to_owned())
        );
        let mut wrong = file("b", "x");
        wrong.bytes = 9;
        assert_eq!(refused(vec![file("a", "x"), wrong], Vec::new()), InvalidManifest::Content("b".to_owned()));
        let deep = (0..400).map(|n| file(&format!("{n:03}{}/f", "/d".repeat(29)), "")).collect();
        assert_eq!(refused(deep, Vec::new()), InvalidManifest::TooManyDirectories(400 * 30));
        let many = (0..=MAX_DATASET_FILES).map(|n| file(&format!("{n:05}"), "")).collect();
        assert_eq!(refused(many, Vec::new()), InvalidManifest::TooMany(MAX_DATASET_FILES + 1));
    }

    #[test]
    fn a_name_is_one_plain_word() {
        assert!(["mnist", "a.b-c_d", "7"].iter().all(|name| is_dataset_name(name)));
        assert!(["", ".", "..", "a/b", "-a", "ä", "a b", &"x".repeat(65)].iter().all(|name| !is_dataset_name(name)));
    }

    #[test]
    fn small_neighbours_come_in_packs_and_large_contents_alone() {
        let sizes = [10, 20, 17 << 20, 5, 0, 15 << 20, 2 << 20];
        assert_eq!(packs(0..sizes.len(), |index| sizes[index]), [0..2, 2..3, 3..6, 6..7]);
        assert_eq!(packs([0, 3, 4], |index| sizes[index]), [0..1, 3..5]);
        assert_eq!(packs(0..=MAX_PACK_FILES, |_| 1), [0..MAX_PACK_FILES, MAX_PACK_FILES..MAX_PACK_FILES + 1]);
    }
}
