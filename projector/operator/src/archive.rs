//! `export` writes the log as an archive of files. `verify --archive` checks that such an archive is the log as it was
//! signed; it needs no broker.

use std::{collections::VecDeque, path::Path, time::Instant};

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::kv;
use gpubnb_events::{Seq, message::Hash};
use gpubnb_log::{
    Log, Raw,
    archive::{ArchiveManifest, ArchivePart, ArchiveReader, ArchiveWriter, sha256},
    stream::CHECKPOINTS,
};
use gpubnb_model::merkle::{EVERY, places};
use gpubnb_projector::{
    ops::invariants::Invariants,
    tree_head::{self, LATEST},
};
use gpubnb_proof::{SignedTreeHead, merkle::GrowingTree};
use gpubnb_query::view::ops::{Progress, Violation};
use tokio_util::sync::CancellationToken;

use crate::config::{ExportArgs, VerifyArgs};
use crate::{
    STOPPED, tell,
    work::{progress, show_progress},
};

/// A longer run of missing events is reported as one: the manifest of a damaged archive may claim any number.
const MOST_MISSING: u64 = 1_000_000;
/// Most findings that are reported.
const MOST_REPORTED: usize = 100;

pub(crate) async fn export(log: &Log, args: &ExportArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    // The newest head is read before the end of the log, so that every event that it covers is in the archive.
    let bucket = log.jetstream().get_key_value(CHECKPOINTS).await.context("the signed heads cannot be read")?;
    let latest = tree_head::get(&bucket, LATEST).await?;
    let last = log.last_seq().await?;
    let (to, stop) = (args.to.clone(), shutdown.clone());
    let mut writer = tokio::task::spawn_blocking(move || ArchiveWriter::create(&to, || stop.is_cancelled())).await??;
    let kept = writer.last();
    if kept > Seq::ZERO {
        let here = log.get_raw(kept).await?.map(|raw| raw.leaf());
        ensure!(here == writer.last_leaf(), "{} holds part of an archive of another log", args.to.display());
        eprintln!("continuing after event {kept}");
    }
    let (mut follower, began, mut at) = (log.follow(kept.next()), Instant::now(), kept);
    while at < last {
        let batch = tokio::select! {
            () = shutdown.cancelled() => bail!("stopped: run the same command again to continue"),
            batch = follower.next_raw_batch() => batch,
        };
        let batch: Vec<Raw> = batch.into_iter().take_while(|raw| raw.seq <= last).collect();
        at = batch.last().map_or(at, |raw| raw.seq);
        writer =
            tokio::task::spawn_blocking(move || batch.iter().try_for_each(|raw| writer.write(raw)).map(|()| writer))
                .await??;
        show_progress(&Progress::since(began.elapsed(), kept, at, last));
    }
    let manifest = writer.finish(signed(&bucket, last, latest).await?)?;
    if args.json {
        tell(&serde_json::to_string(&manifest)?)?;
        return Ok(());
    }
    tell(format_args!(
        "{} events in {} parts, {} signed heads",
        manifest.last,
        manifest.parts.len(),
        manifest.heads.len()
    ))?;
    if manifest.heads.is_empty() {
        tell("no head of the log is signed yet: nothing proves later that this archive was not changed")?;
    }
    Ok(())
}

/// The signed heads of the first `last` messages or fewer, by size; among them `latest`, the newest.
async fn signed(bucket: &kv::Store, last: Seq, latest: Option<SignedTreeHead>) -> anyhow::Result<Vec<SignedTreeHead>> {
    let mut found = Vec::new();
    for n in 1..=last.0 / EVERY {
        found.extend(tree_head::get(bucket, &tree_head::name(n * EVERY)).await?);
    }
    found.extend(latest.filter(|head| head.size <= last.0));
    found.sort_by_key(|head| head.size);
    found.dedup_by_key(|head| head.size);
    Ok(found)
}

/// The result of checking an archive.
#[derive(serde::Serialize)]
struct ArchiveReport {
    clean: bool,
    events: u64,
    /// The number of signed heads that agree with the archive.
    heads: u64,
    /// The public keys that signed these heads.
    keys: Vec<String>,
    /// The newest event that a signed head covers.
    vouched: Seq,
    violations: Vec<Violation>,
}

pub(crate) fn verify(directory: &Path, args: &VerifyArgs, stop: &CancellationToken) -> anyhow::Result<()> {
    let reader = ArchiveReader::open(directory)?;
    let checked = ArchiveCheck::new(&reader.manifest, args.key.as_deref()).all(&reader, stop)?;
    if args.json {
        tell(&serde_json::to_string(&checked)?)?;
    } else {
        checked.violations.iter().try_for_each(|x| tell(format_args!("event {}: {}", x.seq, x.what)))?;
        let (heads, by, vouched) = (checked.heads, checked.keys.join(", "), checked.vouched);
        tell(format_args!("{heads} signed heads agree, up to event {vouched}; signed by {by}"))?;
        tell(format_args!("{} after {} events", if checked.clean { "clean" } else { "NOT clean" }, checked.events))?;
    }
    anyhow::ensure!(checked.clean, "the archive is not what the log was");
    Ok(())
}

/// The check of an archive, part by part.
struct ArchiveCheck {
    invariants: Invariants,
    table: GrowingTree,
    heads: VecDeque<SignedTreeHead>,
    /// The only key that is trusted; any key, where none was named.
    key: Option<String>,
    checked: ArchiveReport,
    /// Messages that do not have the leaf that the archive names: the sequence, the message's leaf, the named leaf.
    changed: Vec<(Seq, Hash, Hash)>,
    at: Seq,
    /// The size of the last head that was compared, whether it agreed or not.
    looked_at: Seq,
}

impl ArchiveCheck {
    fn new(manifest: &ArchiveManifest, key: Option<&str>) -> Self {
        let checked = ArchiveReport {
            clean: false,
            events: 0,
            heads: 0,
            keys: Vec::new(),
            vouched: Seq::ZERO,
            violations: Vec::new(),
        };
        let (invariants, table) = (Invariants::default(), GrowingTree::default());
        let (heads, key) = (manifest.heads.iter().cloned().collect(), key.map(ToOwned::to_owned));
        Self { invariants, table, heads, key, checked, changed: Vec::new(), at: Seq::ZERO, looked_at: Seq::ZERO }
    }

    fn wrong(&mut self, seq: Seq, what: impl Into<String>) {
        if self.checked.violations.len() < MOST_REPORTED {
            self.checked.violations.push(Violation { seq, what: what.into() });
        }
    }

    fn all(mut self, reader: &ArchiveReader, stop: &CancellationToken) -> anyhow::Result<ArchiveReport> {
        let (mut leaves, last, began) = (reader.leaves()?, reader.manifest.last, Instant::now());
        for part in &reader.manifest.parts {
            self.part(reader, part, &mut leaves, stop)?;
            show_progress(&progress(began, self.at, last));
        }
        self.missing(last.next(), &mut leaves);
        self.moved();
        if leaves.next().is_some() {
            self.wrong(self.at.next(), "the archive has hashes of more events than it has events");
        }
        if let Some(head) = self.heads.front() {
            let what = format!("a head of {} events was signed, and the archive ends before", head.size);
            self.wrong(self.at.next(), what);
        }
        if self.key.is_some() && self.checked.heads == 0 {
            self.wrong(Seq(1), "no head in this archive is signed by the key that you named");
        }
        self.checked.violations.extend(self.invariants.found().iter().cloned());
        self.checked.violations.sort_by_key(|v| v.seq);
        self.checked.clean = self.checked.violations.is_empty();
        Ok(self.checked)
    }

    fn part(
        &mut self,
        reader: &ArchiveReader,
        part: &ArchivePart,
        leaves: &mut impl Iterator<Item = Hash>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        if sha256(&reader.file(part))? != part.sha256 {
            self.wrong(part.first, format!("{} is not the file that was written; its events follow", part.file));
        }
        for raw in reader.lines(part)? {
            ensure!(!stop.is_cancelled(), STOPPED);
            match raw {
                Ok(raw) => self.message(&raw, leaves),
                Err(e) => {
                    let what = "cannot be read, nor can the events after it in its file";
                    self.wrong(self.at.next(), format!("{what}: {:#}", anyhow::Error::from(e)));
                    break;
                }
            }
        }
        self.missing(part.last.next(), leaves);
        Ok(())
    }

    /// Notes the events before `next` that are missing.
    fn missing(&mut self, next: Seq, leaves: &mut impl Iterator<Item = Hash>) {
        if next.0.saturating_sub(self.at.0) > MOST_MISSING {
            self.wrong(self.at.next(), format!("is missing, and all that follow, up to {next}"));
            self.at = Seq(next.0.saturating_sub(1));
            return;
        }
        while self.at.next() < next {
            self.at = self.at.next();
            self.wrong(self.at, "is missing");
            // Where the leaf is missing as well, no head can agree from here on, and the next head is reported.
            self.grow(leaves.next().unwrap_or_default());
        }
    }

    fn message(&mut self, raw: &Raw, leaves: &mut impl Iterator<Item = Hash>) {
        if raw.seq <= self.at {
            self.wrong(raw.seq, "comes after a later one, or twice");
            return;
        }
        self.missing(raw.seq, leaves);
        self.at = raw.seq;
        self.checked.events += 1;
        let (recorded, expected) = (raw.read(), leaves.next());
        match expected {
            Some(expected) if expected != recorded.leaf => {
                // Further changed messages are still found by the heads.
                if self.changed.len() < MOST_REPORTED {
                    self.changed.push((raw.seq, recorded.leaf, expected));
                }
            }
            Some(_) => {}
            None => self.wrong(raw.seq, "has no hash in the archive"),
        }
        if let Some(event) = recorded.event() {
            self.invariants.apply(raw.seq, event);
        }
        // The heads are compared with the leaves that the archive names. A changed message is reported by itself, and
        // not once more by every head that follows.
        self.grow(expected.unwrap_or(recorded.leaf));
    }

    fn grow(&mut self, leaf: Hash) {
        self.table.push(leaf);
        while self.heads.front().is_some_and(|head| head.size <= self.table.size()) {
            let Some(head) = self.heads.pop_front() else { break };
            let believed = self.key.as_ref().is_none_or(|key| *key == head.key);
            if believed
                && head.is_signed()
                && head.size == self.table.size()
                && head.root == gpubnb_events::hex(self.table.root())
            {
                self.checked.heads += 1;
                self.checked.vouched = Seq(head.size);
                if !self.checked.keys.contains(&head.key) {
                    self.checked.keys.push(head.key);
                }
            } else {
                let from = self.looked_at.next();
                self.wrong(from, format!("from here to {}, the leaves are not those whose head was signed", head.size));
            }
            self.looked_at = Seq(head.size);
        }
    }

    /// Reports the changed messages, and which of them changed places.
    fn moved(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        for (seq, other) in places(&changed) {
            let what = other.map_or_else(
                || "is not what it was: it was changed".to_owned(),
                |other| format!("has changed places with event {other}"),
            );
            self.wrong(seq, what);
        }
    }
}
