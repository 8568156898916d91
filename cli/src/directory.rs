//! A directory on this computer as a dataset: which of its files belong to it, and their hashes.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use gpubnb_events::{
    JobId,
    dataset::{
        DatasetFile, DatasetLink, DatasetManifest, MAX_DATASET_BYTES, MAX_DATASET_FILE_BYTES, MAX_DATASET_FILES,
    },
};
use ignore::{DirEntry, WalkBuilder};

use crate::verify::size_and_hash;

/// The file that names what is left out of a dataset, in the form of `.gitignore`.
const IGNORE_FILE: &str = ".gpubnbignore";
/// Number of directories that a refusal names.
const LARGEST: usize = 3;
/// A directory with more files is not read to its end: it is too large by far.
const MOST_FOUND: usize = 100_000;
/// The names of files with passwords and keys.
const SECRETS: [&str; 7] = [".netrc", ".git-credentials", ".pypirc", ".npmrc", "id_rsa", "id_ecdsa", "id_ed25519"];

/// A directory, and the manifest of its files.
pub(crate) struct Directory {
    pub(crate) root: PathBuf,
    pub(crate) manifest: DatasetManifest,
    /// The files that were left out because they look like secrets.
    pub(crate) secrets: Vec<String>,
}

/// A file or a link that belongs to the dataset, before it is read.
struct Found {
    path: String,
    bytes: u64,
    is_link: bool,
}

impl Directory {
    /// The code of a job. What a `.gitignore` or `.gpubnbignore` in the directory names is left out, and so are the
    /// outputs of earlier jobs, virtual environments of Python, and files that look like secrets.
    pub(crate) fn of_code(root: &Path) -> anyhow::Result<Self> {
        Self::read(root, true)
    }

    /// Data. Only what a `.gpubnbignore` in the directory names is left out: data is often left out of Git.
    pub(crate) fn of_data(root: &Path) -> anyhow::Result<Self> {
        Self::read(root, false)
    }

    /// Single files, in the directory that has all of them. Also returns their paths in this directory, in the given
    /// order. A link is read as the file to which it leads, and keeps its own name.
    pub(crate) fn of_files(paths: &[PathBuf]) -> anyhow::Result<(Self, Vec<String>)> {
        let mut whole = Vec::new();
        for path in paths {
            ensure!(path.is_file(), "{} is not a file", path.display());
            // `a/../b` would be a name that no dataset has.
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let directory = directory.canonicalize().with_context(|| format!("reading {}", path.display()))?;
            whole.push(directory.join(path.file_name().context("a file without a name")?));
        }
        let first = whole.first().context("there are no files")?;
        let holds_all = |directory: &&Path| whole.iter().all(|path| path.starts_with(directory));
        let root = first.ancestors().skip(1).find(holds_all).context("the files are in no directory")?.to_owned();
        let (mut files, mut order) = (BTreeMap::new(), Vec::new());
        for full in &whole {
            let path = full.strip_prefix(&root)?.to_str();
            let path = path.with_context(|| format!("the name of {} is not UTF-8", full.display()))?.to_owned();
            let (bytes, sha256) = size_and_hash(full).with_context(|| format!("reading {}", full.display()))?;
            order.push(path.clone());
            let before = files.insert(path.clone(), DatasetFile { path, bytes, sha256, exec: false });
            ensure!(before.is_none(), "{} is named twice", full.display());
        }
        let found: Vec<Found> =
            files.values().map(|f| Found { path: f.path.clone(), bytes: f.bytes, is_link: false }).collect();
        check_size(&root, &found)?;
        let manifest = DatasetManifest::new(files.into_values().collect(), Vec::new());
        manifest.check().context("the files cannot be a dataset")?;
        Ok((Self { root, manifest, secrets: Vec::new() }, order))
    }

    /// Reads a directory. A directory that is too large is refused before its files are read.
    fn read(root: &Path, is_code: bool) -> anyhow::Result<Self> {
        ensure!(root.is_dir(), "{} is not a directory", root.display());
        let root = root.canonicalize().with_context(|| format!("reading {}", root.display()))?;
        let (found, secrets) = find(&root, is_code)?;
        check_size(&root, &found)?;
        let (mut files, mut links) = (Vec::new(), Vec::new());
        for Found { path, is_link, .. } in found {
            let full = root.join(&path);
            if is_link {
                let target = fs::read_link(&full).with_context(|| format!("reading {}", full.display()))?;
                let target = target.to_str().with_context(|| format!("{}: the target is no text", full.display()))?;
                links.push(DatasetLink { path, target: target.to_owned() });
                continue;
            }
            let read = || anyhow::Ok((size_and_hash(&full)?, fs::metadata(&full)?.permissions().mode()));
            let ((bytes, sha256), mode) = read().with_context(|| format!("reading {}", full.display()))?;
            files.push(DatasetFile { path, bytes, sha256, exec: mode & 0o100 != 0 });
        }
        let manifest = DatasetManifest::new(files, links);
        manifest.check().with_context(|| {
            format!("{} cannot be a dataset; what is named in {IGNORE_FILE} is left out", root.display())
        })?;
        Ok(Self { root, manifest, secrets })
    }
}

/// The files and links of a directory, without those that are left out. The second list has the files that look like
/// secrets.
fn find(root: &Path, is_code: bool) -> anyhow::Result<(Vec<Found>, Vec<String>)> {
    let mut walk = WalkBuilder::new(root);
    walk.standard_filters(false).git_ignore(is_code).require_git(false).follow_links(false);
    walk.add_custom_ignore_filename(IGNORE_FILE);
    walk.filter_entry(move |entry| !is_left_out(entry, is_code));
    let (mut found, mut secrets) = (Vec::new(), Vec::new());
    for entry in walk.build() {
        let entry = entry.context("reading the directory")?;
        let (Some(kind), Ok(path)) = (entry.file_type(), entry.path().strip_prefix(root)) else { continue };
        if kind.is_dir() {
            continue;
        }
        let name = || entry.path().display().to_string();
        ensure!(kind.is_file() || kind.is_symlink(), "{} is neither a file nor a link: leave it out", name());
        let path = path.to_str().with_context(|| format!("the name of {} is not UTF-8", name()))?.to_owned();
        if is_code && is_secret(&path) {
            secrets.push(path);
            continue;
        }
        let bytes = entry.metadata().with_context(|| format!("reading {}", name()))?.len();
        found.push(Found { path, bytes, is_link: kind.is_symlink() });
        if found.len() > MOST_FOUND {
            break;
        }
    }
    Ok((found, secrets))
}

/// True for Git's own files. In a directory of code also for the outputs of a job, which `gpubnb run` saves in a
/// directory with the job's id, and for a virtual environment of Python, whose links lead out of the directory.
fn is_left_out(entry: &DirEntry, is_code: bool) -> bool {
    if entry.depth() == 0 {
        return false;
    }
    let name = entry.file_name().to_str().unwrap_or_default();
    let is_of_job = || entry.depth() == 1 && name.parse::<JobId>().is_ok();
    let is_directory = entry.file_type().is_some_and(|kind| kind.is_dir());
    name == ".git" || (is_code && is_directory && (is_of_job() || entry.path().join("pyvenv.cfg").exists()))
}

/// True for a file that usually has passwords or keys. Such a file is not sent to the machine of a stranger by
/// accident.
fn is_secret(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let in_directory = |directory: &str| path.split('/').any(|part| part == directory);
    let is_environment = name == ".env" || (name.starts_with(".env.") && !name.ends_with(".example"));
    is_environment || SECRETS.contains(&name) || in_directory(".ssh") || in_directory(".aws")
}

/// Refuses a directory that no dataset may have. The error names the largest parts, which may not be meant.
fn check_size(root: &Path, found: &[Found]) -> anyhow::Result<()> {
    let (bytes, count) = (found.iter().map(|file| file.bytes).sum::<u64>(), found.len());
    let large = found.iter().find(|file| file.bytes > MAX_DATASET_FILE_BYTES);
    if let Some(Found { path, bytes, .. }) = large {
        let (size, most) = (size_for_people(*bytes), size_for_people(MAX_DATASET_FILE_BYTES));
        bail!("{path} has {size}, and a file of a dataset may have {most}: name it in {IGNORE_FILE} to leave it out");
    }
    if bytes <= MAX_DATASET_BYTES && count <= MAX_DATASET_FILES {
        return Ok(());
    }
    let mut parts: HashMap<&str, (u64, usize)> = HashMap::new();
    for file in found {
        let part = parts.entry(file.path.split('/').next().unwrap_or_default()).or_default();
        *part = (part.0 + file.bytes, part.1 + 1);
    }
    let mut parts: Vec<_> = parts.into_iter().collect();
    let is_by_count = count > MAX_DATASET_FILES;
    parts.sort_unstable_by_key(|(_, (bytes, count))| {
        std::cmp::Reverse(if is_by_count { *count as u64 } else { *bytes })
    });
    let part = |(name, (bytes, count)): &(&str, (u64, usize))| {
        format!("{name} ({}, {})", size_for_people(*bytes), files(*count))
    };
    let largest: Vec<_> = parts.iter().take(LARGEST).map(part).collect();
    bail!(
        "{} has {} in {}, and a dataset may have {} in {MAX_DATASET_FILES} files. Most is in {}. Name in {IGNORE_FILE} \
         what the job does not need",
        root.display(),
        size_for_people(bytes),
        files(count),
        size_for_people(MAX_DATASET_BYTES),
        largest.join(", ")
    )
}

/// A number of files for people.
pub(crate) fn files(count: usize) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

/// A size for people.
pub(crate) fn size_for_people(bytes: u64) -> String {
    match bytes {
        1 => "1 byte".to_owned(),
        0..10_240 => format!("{bytes} bytes"),
        10_240..10_485_760 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_files_are_left_out_and_hidden_files_links_and_programs_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        write(".gitignore", "*.pyc\n/venv/\n");
        write(".gpubnbignore", "data/\n!keep.pyc\n");
        write("train.py", "print()");
        write("lib/a.pyc", "x");
        write("keep.pyc", "x");
        write("venv/bin/python", "x");
        write("data/large.bin", "x");
        write(".git/config", "x");
        write(".config/settings", "x");
        write("run.sh", "#!/bin/sh");
        fs::set_permissions(root.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("train.py", root.join("latest")).unwrap();
        let manifest = Directory::of_code(root).unwrap().manifest;
        let paths: Vec<_> = manifest.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [".config/settings", ".gitignore", ".gpubnbignore", "keep.pyc", "run.sh", "train.py"]);
        // Data is taken as it is, except what the directory's own list names.
        let data = Directory::of_data(root).unwrap().manifest;
        assert!(data.files.iter().any(|file| file.path == "lib/a.pyc") && data.files.len() > manifest.files.len());
        assert!(!data.files.iter().any(|file| file.path == "data/large.bin"));
        let programs: Vec<_> = manifest.files.iter().filter(|file| file.exec).map(|file| file.path.as_str()).collect();
        assert_eq!(programs, ["run.sh"]);
        assert_eq!(manifest.links, [DatasetLink { path: "latest".to_owned(), target: "train.py".to_owned() }]);
    }

    #[test]
    fn secrets_results_and_environments_stay_at_home_and_the_rules_of_directories_above_do_not_count() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(".gitignore"), "*").unwrap();
        let root = directory.path().join("project");
        let job = JobId::generate().to_string();
        for path in [
            "main.py",
            ".env",
            ".env.local",
            ".env.example",
            "keys/id_rsa",
            ".aws/credentials",
            ".git/config",
            "venv/pyvenv.cfg",
            "venv/lib/x.py",
            &format!("{job}/model.bin"),
            &format!("deep/{job}/kept.bin"),
        ] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), path).unwrap();
        }
        std::os::unix::fs::symlink("/usr/bin/python3", root.join("venv/python")).unwrap();
        std::os::unix::fs::symlink(&root, directory.path().join("link")).unwrap();
        let read = Directory::of_code(&directory.path().join("link")).unwrap();
        let paths: Vec<_> = read.manifest.files.iter().map(|file| file.path.clone()).collect();
        assert_eq!(paths, [".env.example".to_owned(), format!("deep/{job}/kept.bin"), "main.py".to_owned()]);
        let mut secrets = read.secrets;
        secrets.sort_unstable();
        assert_eq!(secrets, [".aws/credentials", ".env", ".env.local", "keys/id_rsa"]);
    }

    #[test]
    fn a_directory_that_is_too_large_is_refused_by_its_largest_parts_before_it_is_read() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            // Sparse files: they take no room, and reading them would take long.
            fs::File::create(directory.path().join(name).join("f")).unwrap().set_len(1 << 30).unwrap();
        }
        let refusal = Directory::of_code(directory.path()).err().unwrap().to_string();
        assert!(refusal.contains("3072 MiB in 3 files") && refusal.contains("may have 2048 MiB"), "{refusal}");
        assert!(refusal.contains("(1024 MiB, 1 file)") && refusal.contains(".gpubnbignore"), "{refusal}");
        fs::File::create(directory.path().join("big")).unwrap().set_len((1 << 30) + 1).unwrap();
        let refusal = Directory::of_code(directory.path()).err().unwrap().to_string();
        assert!(refusal.starts_with("big has 1025 MiB"), "{refusal}");
    }
}
