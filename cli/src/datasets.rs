//! The commands about datasets, and the upload of a directory. An upload sends only what the market does not have, so
//! an upload that broke off goes on where it broke off.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    ops::Range,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use gpubnb_events::{
    dataset::{DatasetFile, DatasetManifest, is_dataset_name, packs},
    text::make_plain,
};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Body, Method};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use crate::{
    api::{Api, REQUEST_TIMEOUT},
    args::DataCommand,
    directory::{Directory, files, size_for_people},
    show::{done, list, text, time},
};

/// Most times that the market may say that contents are missing.
const MAX_ROUNDS: u32 = 3;
/// The slowest connection that is waited for, bytes a second.
const SLOWEST: u64 = 32 << 10;
/// The shortest beginning of an id that names a dataset.
const MIN_PREFIX: usize = 8;
/// Longest time of a request with a manifest: the market looks up every file.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) async fn run(api: &Api, command: DataCommand, json: bool) -> anyhow::Result<u8> {
    match command {
        DataCommand::Push { directory, name } => {
            if let Some(name) = &name {
                ensure!(
                    is_dataset_name(name),
                    "`{name}` is no name of a dataset: a name has up to 64 letters, digits, ., _ and -, and \
                     begins with a letter or a digit"
                );
            }
            let directory = tokio::task::spawn_blocking(move || Directory::of_data(&directory)).await??;
            let stored = push(api, directory, name.as_deref()).await?;
            let id = text(&stored["dataset"]);
            let sentence = format!(
                "The dataset {} is stored until {}. A job reads it with `gpubnb run --data {}`.",
                short(&id),
                time(&stored["kept_until"]),
                name.unwrap_or(id.clone())
            );
            Ok(done(json, &stored, &sentence))
        }
        DataCommand::List => {
            let size = |row: &Value| size_for_people(row["bytes"].as_u64().unwrap_or(0));
            let row = |row: &Value| {
                let name = text(&row["name"]);
                vec![
                    text(&row["dataset"])[..12].to_owned(),
                    name,
                    row["files"].to_string(),
                    size(row),
                    text(&row["kept_until"]),
                ]
            };
            list(api, "/datasets", json, &["DATASET", "NAME", "FILES", "SIZE", "KEPT UNTIL"], row).await
        }
        DataCommand::Info { dataset } => {
            let id = find(api, &dataset).await?;
            let manifest = api.get(&format!("/datasets/{id}")).await?;
            if json {
                outln!("{manifest}");
                return Ok(0);
            }
            let manifest: DatasetManifest = serde_json::from_value(manifest)?;
            outln!("{id}: {} in {}", size_for_people(manifest.bytes()), files(manifest.files.len()));
            for file in &manifest.files {
                outln!("{:>12}  {}", size_for_people(file.bytes), make_plain(&file.path));
            }
            for link in &manifest.links {
                outln!("{:>12}  {} -> {}", "link", make_plain(&link.path), make_plain(&link.target));
            }
            Ok(0)
        }
        DataCommand::Delete { dataset } => {
            let id = find(api, &dataset).await?;
            let path = format!("/datasets/{id}");
            api.send(api.request(Method::DELETE, &path).timeout(MANIFEST_TIMEOUT)).await?;
            // An older dataset may have the same name.
            let sentence = match find(api, &dataset).await {
                Ok(older) => format!("The dataset was deleted. {dataset} now stands for {}.", short(&older)),
                Err(_) => "The dataset was deleted.".to_owned(),
            };
            Ok(done(json, &json!({ "deleted": id }), &sentence))
        }
    }
}

/// The first digits of the id of a dataset.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// The id of the dataset with a name, or with an id that begins so.
async fn find(api: &Api, wanted: &str) -> anyhow::Result<String> {
    let all = api.get("/datasets").await?;
    let rows = all.as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(named) = rows.iter().find(|row| row["name"] == wanted) {
        return Ok(text(&named["dataset"]));
    }
    let ids: BTreeSet<&str> = rows.iter().filter_map(|row| row["dataset"].as_str()).collect();
    let mut matching = ids.into_iter().filter(|id| wanted.len() >= MIN_PREFIX && id.starts_with(wanted));
    match (matching.next(), matching.next()) {
        (Some(id), None) => Ok(id.to_owned()),
        (Some(_), Some(_)) => bail!("several ids begin with {wanted}: give more digits, see `gpubnb data list`"),
        (None, _) => bail!("you have no dataset {wanted}: see `gpubnb data list`"),
    }
}

/// The answer to a manifest.
#[derive(Deserialize)]
struct Upload {
    stored: Option<Value>,
    missing: Vec<Missing>,
}

/// A range of contents that the market does not have.
#[derive(Deserialize)]
struct Missing {
    first: usize,
    count: usize,
}

/// Uploads a directory. Returns the dataset as the market describes it.
pub(crate) async fn push(api: &Api, directory: Directory, name: Option<&str>) -> anyhow::Result<Value> {
    let (count, bytes) = (directory.manifest.files.len() + directory.manifest.links.len(), directory.manifest.bytes());
    if !directory.secrets.is_empty() {
        let names: Vec<_> = directory.secrets.iter().map(|path| make_plain(path)).collect();
        let advice = "store a secret with `gpubnb secrets set`, and name it with --secrets";
        errln!("Left out, because they may have passwords or keys: {}. Instead, {advice}.", names.join(", "));
    }
    errln!("{} has {}, {}.", directory.root.display(), files(count), size_for_people(bytes));
    let manifest = directory.manifest.canonical()?;
    let name = name.map_or_else(String::new, |name| format!("?name={name}"));
    let path = format!("/datasets/{}{name}", directory.manifest.id()?);
    let put = || {
        let request = api.request(Method::PUT, &path).timeout(MANIFEST_TIMEOUT);
        request.header("content-type", "application/json").body(manifest.clone())
    };
    let mut upload: Upload = api.send_repeatedly(put).await?.json().await?;
    for _ in 0..MAX_ROUNDS {
        if let Some(stored) = upload.stored {
            return Ok(stored);
        }
        upload_all(api, &directory, &upload.missing).await?;
        upload = api.send_repeatedly(put).await?.json().await?;
    }
    upload.stored.context("the market misses files that were sent: try again")
}

/// A bar in bytes, which only a terminal shows.
fn progress_bar(bytes: u64) -> ProgressBar {
    let template = "Uploading [{bar:30}] {bytes} of {total_bytes}, {eta} left";
    let style = ProgressStyle::with_template(template).map(|style| style.progress_chars("=> "));
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

/// The packs in which missing contents are sent.
fn packs_of(contents: &[&DatasetFile], missing: &[Missing]) -> anyhow::Result<Vec<Range<usize>>> {
    let mut indices = Vec::new();
    for Missing { first, count } in missing {
        let range = *first..first.saturating_add(*count);
        ensure!(contents.get(range.clone()).is_some(), "the market asks for files that the directory does not have");
        indices.extend(range);
    }
    Ok(packs(indices, |index| contents[index].bytes))
}

/// Uploads what is missing. A request that fails is repeated, because it may be sent twice without harm.
async fn upload_all(api: &Api, directory: &Directory, missing: &[Missing]) -> anyhow::Result<()> {
    let contents = directory.manifest.contents();
    let packs = packs_of(&contents, missing)?;
    let bar = progress_bar(packs.iter().flat_map(|pack| &contents[pack.clone()]).map(|file| file.bytes).sum());
    let dataset = directory.manifest.id()?;
    for pack in packs {
        let files = &contents[pack.clone()];
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let path = format!("/datasets/{dataset}/contents?first={}&count={}", pack.start, pack.len());
        let timeout = REQUEST_TIMEOUT + Duration::from_secs(bytes / SLOWEST);
        let put = || api.request(Method::PUT, &path).header("content-length", bytes).timeout(timeout);
        let before = bar.position();
        let sent = match files {
            [file] => {
                check_unchanged(directory, file)?;
                let path = directory.root.join(&file.path);
                api.send_repeatedly(|| put().body(stream_of(path.clone(), file.bytes, bar.clone(), before))).await
            }
            files => {
                let body = Bytes::from(read_all(directory, files)?);
                api.send_repeatedly(|| put().body(body.clone())).await
            }
        };
        sent.with_context(|| match files {
            [file] => format!("uploading {}", make_plain(&file.path)),
            files => format!("uploading {} and {} more", make_plain(&files[0].path), files.len() - 1),
        })?;
        bar.set_position(before + bytes);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Fails if a file has another size than when the directory was read.
fn check_unchanged(directory: &Directory, file: &DatasetFile) -> anyhow::Result<()> {
    let path = directory.root.join(&file.path);
    let bytes = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len();
    ensure!(bytes == file.bytes, "{} changes while it is uploaded: try again when it does not", path.display());
    Ok(())
}

/// The bytes of small files, one after the other.
fn read_all(directory: &Directory, files: &[&DatasetFile]) -> anyhow::Result<Vec<u8>> {
    let mut all = Vec::new();
    for file in files {
        check_unchanged(directory, file)?;
        let path = directory.root.join(&file.path);
        let before = all.len() as u64;
        let read = fs::File::open(&path).and_then(|opened| opened.take(file.bytes).read_to_end(&mut all));
        read.with_context(|| format!("reading {}", path.display()))?;
        ensure!(all.len() as u64 - before == file.bytes, "{} has become shorter: try again", path.display());
    }
    Ok(all)
}

/// The bytes of a file. The bar, which stands at `sent`, counts them.
fn stream_of(path: PathBuf, bytes: u64, bar: ProgressBar, mut sent: u64) -> Body {
    let opened = async move { Ok::<_, io::Error>(ReaderStream::new(tokio::fs::File::open(path).await?.take(bytes))) };
    let pieces = stream::once(opened).try_flatten();
    Body::wrap_stream(pieces.inspect_ok(move |piece| {
        sent += piece.len() as u64;
        bar.set_position(sent);
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_market_that_asks_for_other_files_is_not_believed() {
        let file = DatasetFile { path: String::new(), bytes: 1, sha256: String::new(), exec: false };
        let contents = [&file, &file, &file];
        let packs = |first, count| packs_of(&contents, &[Missing { first, count }]);
        assert_eq!(packs(0, 3).unwrap().len(), 1);
        for (first, count) in [(2, 2), (4, 0), (1, usize::MAX)] {
            assert!(packs(first, count).is_err(), "{first} {count}");
        }
    }
}
