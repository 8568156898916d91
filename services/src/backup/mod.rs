//! `backup` and `restore`: every stream of the market as files in a directory. Both use the credential `bootstrap`, the
//! only one that may change streams.
//!
//! Belongs here: the order in which streams are saved, and the rebuild of DISPATCH after a restore. Must not come here:
//! a change of an event.

mod transfer;

use std::{
    fs,
    io::IsTerminal as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use gpubnb_domain::Settings;
use gpubnb_events::{Clock as _, Millis, Seq, SystemClock, Timestamp, subject::SERVICES_INBOX};
use gpubnb_log::{
    Log,
    stream::{self, MARKET, StreamOptions},
};
use gpubnb_runtime::nats::{NatsArgs, jetstream};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::transfer::StreamSnapshot;
use crate::redispatch;

/// Options of `backup` and `restore`.
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub nats: NatsArgs,
    /// Directory of the backup. Streams that are already complete are skipped.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

const MANIFEST: &str = "backup.json";

/// An interrupted backup can be resumed for this long after it began: its streams must be saved at about the same time.
const RESUME_LIMIT: Millis = Millis(6 * 3_600_000);

/// The contents of a backup.
#[derive(Serialize, Deserialize)]
struct BackupManifest {
    /// The time at which the backup began.
    began: Timestamp,
    streams: Vec<StreamSnapshot>,
}

impl BackupManifest {
    fn read(directory: &Path) -> anyhow::Result<Self> {
        match fs::read(directory.join(MANIFEST)) {
            Ok(text) => serde_json::from_slice(&text).context("the backup's manifest cannot be read"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self { began: SystemClock.now(), streams: Vec::new() })
            }
            Err(e) => Err(e.into()),
        }
    }

    fn contains(&self, stream: &str) -> bool {
        self.streams.iter().any(|s| s.stream == stream)
    }

    fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let partial = directory.join("backup.partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        Ok(fs::rename(partial, directory.join(MANIFEST))?)
    }
}

fn snapshot_path(directory: &Path, stream: &str) -> PathBuf {
    directory.join(format!("{stream}.snapshot"))
}

/// Shows the progress, if standard error is a terminal.
fn show_progress(stream: &str, began: Instant, progress: BackupProgress) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let (done, total, unit) = match progress {
        BackupProgress::Bytes(done, total) => (done >> 10, total.max(done) >> 10, "KiB"),
        BackupProgress::Events(done, total) => (done, total.max(done), "events"),
    };
    let per_second = done.saturating_mul(1_000) / u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    let left = (total - done).checked_div(per_second).map(|s| format!(", {s} s left")).unwrap_or_default();
    eprint!("\r{stream}: {done} of {total} {unit}, {per_second} a second{left}   \r");
}

/// The amount of work that is done, and the total.
enum BackupProgress {
    Bytes(u64, u64),
    Events(u64, u64),
}

/// Saves every stream that cannot be made from another stream.
pub async fn backup(args: &BackupArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = args.nats.connect("bootstrap", SERVICES_INBOX).await?;
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&args.directory);
    created.with_context(|| args.directory.display().to_string())?;
    let mut manifest = BackupManifest::read(&args.directory)?;
    let (path, began) = (args.directory.display(), manifest.began);
    ensure!(
        !stream::backup_streams().iter().all(|stream| manifest.contains(stream)),
        "{path} already holds a complete backup, begun {began}: choose a new directory for a new backup"
    );
    ensure!(
        SystemClock.now().since(began) <= RESUME_LIMIT,
        "{path} holds part of a backup, begun {began}, which is too old to resume: name a new directory"
    );
    for stream in stream::backup_streams() {
        if manifest.contains(&stream) {
            println!("{stream:<16} is here already");
            continue;
        }
        let (file, started) = (snapshot_path(&args.directory, &stream), Instant::now());
        let saving = transfer::save(&client, &stream, &file, |bytes, of| {
            show_progress(&stream, started, BackupProgress::Bytes(bytes, of));
        });
        let snapshot = tokio::select! {
            () = shutdown.cancelled() => bail!("stopped: repeat the command to go on"),
            saved = saving => saved.with_context(|| format!("saving {stream}"))?,
        };
        println!("{stream:<16} {:>10} messages, up to {}", snapshot.messages(), snapshot.last());
        manifest.streams.push(snapshot);
        manifest.write(&args.directory)?;
    }
    println!("saved. Try the restore as well: see docs/operating.md, \"When the broker's disk is lost\"");
    Ok(())
}

/// Restores the streams of a backup into a broker that has no streams, and rebuilds DISPATCH from MARKET.
pub async fn restore(
    args: &BackupArgs,
    options: &StreamOptions,
    settings: &Settings,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let client = args.nats.connect("bootstrap", SERVICES_INBOX).await?;
    let manifest = BackupManifest::read(&args.directory)?;
    let missing: Vec<_> = stream::backup_streams().into_iter().filter(|stream| !manifest.contains(stream)).collect();
    ensure!(
        missing.is_empty(),
        "{} is not a complete backup: it lacks {}",
        args.directory.display(),
        missing.join(", ")
    );
    for snapshot in &manifest.streams {
        match transfer::last_sequence(&client, &snapshot.stream).await? {
            Some(last) if last == snapshot.last() => println!("{:<16} is there already", snapshot.stream),
            Some(last) => bail!(
                "the broker has a {} with {last} events; the backup has {}. Nothing is overwritten: restore into a \
                 broker without streams",
                snapshot.stream,
                snapshot.last()
            ),
            None => {
                let (file, started) = (snapshot_path(&args.directory, &snapshot.stream), Instant::now());
                let loading = transfer::load(&client, snapshot, options.replicas, &file, |bytes, of| {
                    show_progress(&snapshot.stream, started, BackupProgress::Bytes(bytes, of));
                });
                tokio::select! {
                    () = shutdown.cancelled() => bail!("stopped: repeat the command to go on"),
                    loaded = loading => loaded.with_context(|| format!("restoring {}", snapshot.stream))?,
                }
                println!("{:<16} {:>10} messages, up to {}", snapshot.stream, snapshot.messages(), snapshot.last());
            }
        }
    }
    let log = Log::open(jetstream(args.nats.connect("append", SERVICES_INBOX).await?)).await?;
    let started = Instant::now();
    let progress = |folded: Seq, last: Seq| show_progress(MARKET, started, BackupProgress::Events(folded.0, last.0));
    let owner = jetstream(client);
    let rebuilding = redispatch::rebuild(&log, &owner, options, settings, progress);
    let (from, machines) =
        Box::pin(shutdown.run_until_cancelled(rebuilding)).await.context("stopped: repeat the command to go on")??;
    println!("{:<16} from event {from} on, {machines} machines", stream::DISPATCH);
    println!("restored. Start the services, the projector and the web server; then: gpubnb-projector verify");
    Ok(())
}
