//! The files from which `--each-line` and `--from-json` take the tasks of a batch.

use std::{collections::BTreeMap, fs, io::Read as _, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// The largest file of lines or of JSON, bytes. The market takes less.
const MAX_LIST_BYTES: u64 = 16 << 20;

/// Reads a file, or the standard input for `-`.
fn read_list(path: &Path) -> anyhow::Result<String> {
    let mut list = String::new();
    let read = |from: &mut dyn std::io::Read, list: &mut String| from.take(MAX_LIST_BYTES + 1).read_to_string(list);
    let bytes = if path == Path::new("-") {
        read(&mut std::io::stdin().lock(), &mut list)
    } else {
        fs::File::open(path).and_then(|mut file| read(&mut file, &mut list))
    };
    let bytes = bytes.with_context(|| format!("reading {}", path.display()))?;
    ensure!(bytes as u64 <= MAX_LIST_BYTES, "{} has more than {} MiB", path.display(), MAX_LIST_BYTES >> 20);
    Ok(list)
}

/// The lines of a file that are not blank.
pub(crate) fn read_lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let list = read_list(path)?;
    let lines: Vec<String> = list.lines().filter(|line| !line.trim().is_empty()).map(ToOwned::to_owned).collect();
    ensure!(!lines.is_empty(), "{} has no lines: there is nothing to do", path.display());
    Ok(lines)
}

/// The objects of a JSON list, or one object in each line.
pub(crate) fn read_objects(path: &Path) -> anyhow::Result<Vec<BTreeMap<String, String>>> {
    let list = read_list(path)?;
    let objects: Vec<serde_json::Map<String, Value>> = if list.trim_start().starts_with('[') {
        serde_json::from_str(&list)
    } else {
        serde_json::Deserializer::from_str(&list).into_iter().collect()
    }
    .with_context(|| format!("{} is no list of JSON objects", path.display()))?;
    ensure!(!objects.is_empty(), "{} has no objects: there is nothing to do", path.display());
    let as_text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(objects.into_iter().map(|object| object.into_iter().map(|(name, v)| (name, as_text(v))).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_objects_are_read_from_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let write = |content: &str| fs::write(&path, content).unwrap();
        write("a\n\n b \n");
        assert_eq!(read_lines(&path).unwrap(), ["a", " b "]);
        write(" \n");
        assert!(read_lines(&path).is_err());
        for list in
            [r#"[{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}]"#, "{\"a\": 1, \"b\": \"x\"}\n{\"a\": 2.5, \"b\": \"y\"}\n"]
        {
            write(list);
            let objects = read_objects(&path).unwrap();
            assert_eq!(
                (objects[0]["a"].as_str(), objects[1]["a"].as_str(), objects[1]["b"].as_str()),
                ("1", "2.5", "y")
            );
        }
        write("[1]");
        assert!(read_objects(&path).is_err());
    }
}
