//! `export` writes the log as an archive of files. `verify --archive` checks an archive against the signed heads in it,
//! without a broker.
//!
//! A leaf is the hash of one message. A head is the signed root of the Merkle tree over the leaves of the first
//! messages of the log: a head of 5,000 messages *covers* the events 1 to 5,000. An event is *vouched for* if a head
//! that covers the event agrees with the archive and is signed by a key that the user trusts (`--key`).

use std::{
    collections::VecDeque,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::kv;
use gpubnb_events::{Seq, message::Hash};
use gpubnb_log::{
    Log, RawMessage,
    archive::{ArchiveManifest, ArchivePart, ArchiveReader, ArchiveWriter, sha256},
    stream::CHECKPOINTS,
};
use gpubnb_model::merkle::{ROOT_INTERVAL, find_swaps};
use gpubnb_projector::{
    ops::invariants::Invariants,
    tree_head::{self, LATEST},
};
use gpubnb_proof::{EXIT_NO_TRUSTED_KEY, SignedTreeHead, merkle::GrowingTree};
use gpubnb_query::view::ops::{Progress, Violation};
use tokio_util::sync::CancellationToken;

use crate::config::{ExportArgs, VerifyArgs};
use crate::{
    STOPPED, print_result,
    work::{progress, show_progress},
};

/// If more events than this are missing in a row, they are reported as one finding, because a damaged manifest may
/// claim any number of events.
const MAX_MISSING: u64 = 1_000_000;
/// The error message of an export that was stopped by a signal.
const STOPPED_EXPORT: &str = "stopped: run the same command again to continue";
/// The longest time that an export waits for a signed head of all events. The projector signs one every two seconds.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// The pause before an export looks again for a new head.
const HEAD_PAUSE: Duration = Duration::from_millis(200);
/// Most findings that are reported.
const MAX_REPORTED: usize = 100;

pub(crate) async fn export(log: &Log, args: &ExportArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let bucket = log.jetstream().get_key_value(CHECKPOINTS).await.context("the signed heads cannot be read")?;
    let last = log.last_seq().await?;
    let waiting = shutdown.run_until_cancelled(head_covering(&bucket, last));
    let latest = waiting.await.context(STOPPED_EXPORT)??;
    // If the newest head covers later events, these are exported too: then the head covers exactly the archive.
    let last = latest.as_ref().map_or(last, |head| last.max(Seq(head.size)));
    let (to, stop) = (args.to.clone(), shutdown.clone());
    let mut writer = tokio::task::spawn_blocking(move || ArchiveWriter::create(&to, || stop.is_cancelled())).await??;
    let resumed_at = writer.last();
    if resumed_at > Seq::ZERO {
        let leaf = log.get_raw(resumed_at).await?.map(|raw| raw.leaf());
        ensure!(leaf == writer.last_leaf(), "{} holds part of an archive of another log", args.to.display());
        eprintln!("continuing after event {resumed_at}");
    }
    let (mut follower, began, mut at) = (log.follow(resumed_at.next()), Instant::now(), resumed_at);
    while at < last {
        let batch = tokio::select! {
            () = shutdown.cancelled() => bail!(STOPPED_EXPORT),
            batch = follower.next_raw_batch() => batch,
        };
        let batch: Vec<RawMessage> = batch.into_iter().take_while(|raw| raw.seq <= last).collect();
        at = batch.last().map_or(at, |raw| raw.seq);
        writer =
            tokio::task::spawn_blocking(move || batch.iter().try_for_each(|raw| writer.write(raw)).map(|()| writer))
                .await??;
        show_progress(&Progress::since(began.elapsed(), resumed_at, at, last));
    }
    let manifest = writer.finish(signed_heads(&bucket, last, latest).await?)?;
    if args.json {
        print_result(&serde_json::to_string(&manifest)?)?;
        return Ok(());
    }
    print_result(format_args!(
        "{} events in {} parts, {} signed heads",
        manifest.last,
        manifest.parts.len(),
        manifest.heads.len()
    ))?;
    let vouched = manifest.heads.last().map_or(0, |head| head.size);
    if vouched < manifest.last.0 {
        print_result(format_args!(
            "no signed head covers the events after {vouched}: nothing can prove that they were not changed. Export \
             again when the projector runs"
        ))?;
    }
    Ok(())
}

/// The newest signed head, if possible one that covers the event `last`. Waits for such a head for a bounded time.
async fn head_covering(bucket: &kv::Store, last: Seq) -> anyhow::Result<Option<SignedTreeHead>> {
    let deadline = Instant::now() + HEAD_WAIT;
    loop {
        let latest = tree_head::get(bucket, LATEST).await?;
        if latest.as_ref().is_some_and(|head| head.size >= last.0) || Instant::now() >= deadline {
            return Ok(latest);
        }
        tokio::time::sleep(HEAD_PAUSE).await;
    }
}

/// The signed heads that cover at most `last` messages, sorted by size. `latest` is the newest head.
async fn signed_heads(
    bucket: &kv::Store,
    last: Seq,
    latest: Option<SignedTreeHead>,
) -> anyhow::Result<Vec<SignedTreeHead>> {
    let mut found = Vec::new();
    for n in 1..=last.0 / ROOT_INTERVAL {
        found.extend(tree_head::get(bucket, &tree_head::bucket_key(n * ROOT_INTERVAL)).await?);
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
    /// The last event that an agreeing head covers.
    vouched: Seq,
    /// True if the user named a key, and heads of that key cover every event.
    is_vouched: bool,
    violations: Vec<Violation>,
}

pub(crate) fn verify(directory: &Path, args: &VerifyArgs, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let reader = ArchiveReader::open(directory)?;
    let report = ArchiveCheck::new(&reader.manifest, &args.keys).run(&reader, stop)?;
    if args.json {
        print_result(&serde_json::to_string(&report)?)?;
    } else {
        report.violations.iter().try_for_each(|x| print_result(format_args!("event {}: {}", x.seq, x.what)))?;
        let (heads, by, vouched) = (report.heads, report.keys.join(", "), report.vouched);
        print_result(format_args!("{heads} signed heads agree, up to event {vouched}; signed by {by}"))?;
        print_result(verdict(&report, !args.keys.is_empty()))?;
    }
    anyhow::ensure!(report.clean, "the archive is not what the log was");
    Ok(if report.is_vouched { ExitCode::SUCCESS } else { EXIT_NO_TRUSTED_KEY.into() })
}

/// The last line of a report.
fn verdict(report: &ArchiveReport, has_key: bool) -> String {
    let events = report.events;
    if !report.clean {
        return format!("NOT clean after {events} events");
    }
    if report.is_vouched {
        return format!("clean after {events} events");
    }
    let unvouched = if has_key { report.vouched.next() } else { Seq(1) };
    let advice = if has_key { "" } else { ": name the market's key with --key" };
    format!("consistent after {events} events; nobody vouches for the events from {unvouched} on{advice}")
}

/// The check of an archive, part by part.
struct ArchiveCheck {
    invariants: Invariants,
    tree: GrowingTree,
    heads: VecDeque<SignedTreeHead>,
    /// The trusted keys. If there are none, heads of any key are compared, and nobody vouches for the archive.
    keys: Vec<String>,
    report: ArchiveReport,
    /// Messages whose leaf differs from the archive's list of leaves: sequence, leaf of the message, leaf in the list.
    changed: Vec<(Seq, Hash, Hash)>,
    /// The last sequence that was checked.
    at: Seq,
    /// The size of the last head that was compared, agreeing or not.
    compared_to: Seq,
}

impl ArchiveCheck {
    fn new(manifest: &ArchiveManifest, keys: &[String]) -> Self {
        let report = ArchiveReport {
            clean: false,
            events: 0,
            heads: 0,
            keys: Vec::new(),
            vouched: Seq::ZERO,
            is_vouched: false,
            violations: Vec::new(),
        };
        let (invariants, tree) = (Invariants::default(), GrowingTree::default());
        let (heads, keys) = (manifest.heads.iter().cloned().collect(), keys.to_vec());
        Self { invariants, tree, heads, keys, report, changed: Vec::new(), at: Seq::ZERO, compared_to: Seq::ZERO }
    }

    fn add_violation(&mut self, seq: Seq, what: impl Into<String>) {
        if self.report.violations.len() < MAX_REPORTED {
            self.report.violations.push(Violation { seq, what: what.into() });
        }
    }

    fn run(mut self, reader: &ArchiveReader, stop: &CancellationToken) -> anyhow::Result<ArchiveReport> {
        let (mut leaves, last, began) = (reader.leaves()?, reader.manifest.last, Instant::now());
        for part in &reader.manifest.parts {
            self.check_part(reader, part, &mut leaves, stop)?;
            show_progress(&progress(began, self.at, last));
        }
        self.report_missing(last.next(), &mut leaves);
        if self.at > last {
            self.add_violation(last.next(), "comes after the last event that the archive says it has");
        }
        self.report_changed();
        if leaves.next().is_some() {
            self.add_violation(self.at.next(), "the archive has hashes of more events than it has events");
        }
        if let Some(head) = self.heads.front() {
            let what = format!("a head of {} events was signed, and the archive ends before", head.size);
            self.add_violation(self.at.next(), what);
        }
        if !self.keys.is_empty() && self.report.heads == 0 {
            self.add_violation(Seq(1), "no head in this archive is signed by a key that you named");
        }
        self.report.violations.extend(self.invariants.violations().iter().cloned());
        self.report.violations.sort_by_key(|v| v.seq);
        self.report.clean = self.report.violations.is_empty();
        self.report.is_vouched = self.report.clean && !self.keys.is_empty() && self.report.vouched >= last.max(self.at);
        Ok(self.report)
    }

    fn check_part(
        &mut self,
        reader: &ArchiveReader,
        part: &ArchivePart,
        leaves: &mut impl Iterator<Item = Hash>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        if sha256(&reader.file(part))? != part.sha256 {
            self.add_violation(
                part.first,
                format!("{} is not the file that was written; the findings about its events follow", part.file),
            );
        }
        for raw in reader.messages(part)? {
            ensure!(!stop.is_cancelled(), STOPPED);
            match raw {
                Ok(raw) => self.check_message(&raw, leaves),
                Err(e) => {
                    let what = "cannot be read, and neither can the later events in its file";
                    self.add_violation(self.at.next(), format!("{what}: {:#}", anyhow::Error::from(e)));
                    break;
                }
            }
        }
        self.report_missing(part.last.next(), leaves);
        Ok(())
    }

    /// Reports the missing events before `next`.
    fn report_missing(&mut self, next: Seq, leaves: &mut impl Iterator<Item = Hash>) {
        if next.0.saturating_sub(self.at.0) > MAX_MISSING {
            self.add_violation(self.at.next(), format!("is missing, and so are all later events before {next}"));
            self.at = Seq(next.0.saturating_sub(1));
            return;
        }
        while self.at.next() < next {
            self.at = self.at.next();
            self.add_violation(self.at, "is missing");
            // If the leaf is missing as well, no later head can agree, and the next head is reported.
            self.add_leaf(leaves.next().unwrap_or_default());
        }
    }

    fn check_message(&mut self, raw: &RawMessage, leaves: &mut impl Iterator<Item = Hash>) {
        if raw.seq <= self.at {
            self.add_violation(raw.seq, "comes after a later event, or twice");
            return;
        }
        self.report_missing(raw.seq, leaves);
        self.at = raw.seq;
        self.report.events += 1;
        let (recorded, expected) = (raw.decode(), leaves.next());
        match expected {
            Some(expected) if expected != recorded.leaf => {
                // This limits the report only: the archive is not clean in any case.
                if self.changed.len() < MAX_REPORTED {
                    self.changed.push((raw.seq, recorded.leaf, expected));
                }
            }
            Some(_) => {}
            None => self.add_violation(raw.seq, "has no hash in the archive"),
        }
        if let Some(event) = recorded.event() {
            self.invariants.apply(raw.seq, event);
        }
        // Compare the heads with the archive's list of leaves. A changed message is then reported once, and not again
        // by every later head.
        self.add_leaf(expected.unwrap_or(recorded.leaf));
    }

    fn add_leaf(&mut self, leaf: Hash) {
        self.tree.push(leaf);
        while self.heads.front().is_some_and(|head| head.size <= self.tree.size()) {
            let Some(head) = self.heads.pop_front() else { break };
            let is_trusted = self.keys.is_empty() || self.keys.contains(&head.key);
            if is_trusted
                && head.is_signed()
                && head.size == self.tree.size()
                && head.root == gpubnb_events::hex(self.tree.root())
            {
                self.report.heads += 1;
                self.report.vouched = Seq(head.size);
                if !self.report.keys.contains(&head.key) {
                    self.report.keys.push(head.key);
                }
            } else {
                let from = self.compared_to.next();
                self.add_violation(
                    from,
                    format!("from here to {}, the leaves are not those whose head was signed", head.size),
                );
            }
            self.compared_to = Seq(head.size);
        }
    }

    /// Reports the changed messages, and those that changed places.
    fn report_changed(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        for (seq, other) in find_swaps(&changed) {
            let what = other.map_or_else(
                || "is not what it was: it was changed".to_owned(),
                |other| format!("has changed places with event {other}"),
            );
            self.add_violation(seq, what);
        }
    }
}
