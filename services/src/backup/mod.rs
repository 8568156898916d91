//! `backup` and `restore`: every stream of the market as files in a directory. Both use the one credential that may
//! change streams.
//!
//! Belongs here: the order in which streams are saved, and the streams that are made again after a restore. Must not
//! come here: a change of an event.

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
    /// Directory of the backup. Streams that are whole are neither saved nor restored again.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

const MANIFEST: &str = "backup.json";

/// How long after its beginning a backup that was cut off may go on: its streams must fit together.
const RESUMED_WITHIN: Millis = Millis(6 * 3_600_000);

/// The contents of a backup.
#[derive(Serialize, Deserialize)]
struct BackupManifest {
    /// When the backup was begun.
    began: Timestamp,
    streams: Vec<StreamSnapshot>,
}

impl BackupManifest {
    fn read(directory: &Path) -> anyhow::Result<Self> {
        match fs::read(directory.join(MANIFEST)) {
            Ok(text) => serde_json::from_slice(&text).context("the backup's list cannot be read"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self { began: SystemClock.now(), streams: Vec::new() })
            }
            Err(e) => Err(e.into()),
        }
    }

    fn has(&self, stream: &str) -> bool {
        self.streams.iter().any(|s| s.stream == stream)
    }

    fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let partial = directory.join("backup.partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        Ok(fs::rename(partial, directory.join(MANIFEST))?)
    }
}

fn file(directory: &Path, stream: &str) -> PathBuf {
    directory.join(format!("{stream}.snapshot"))
}

/// Shows the progress, if a person looks on.
fn show_progress(what: &str, began: Instant, done: BackupProgress) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let (at, of, unit) = match done {
        BackupProgress::Bytes(at, of) => (at >> 10, of.max(at) >> 10, "KiB"),
        BackupProgress::Events(at, of) => (at, of.max(at), "events"),
    };
    let per_second = at.saturating_mul(1_000) / u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    let left = (of - at).checked_div(per_second).map(|s| format!(", {s} s left")).unwrap_or_default();
    eprint!("\r{what}: {at} of {of} {unit}, {per_second} a second{left}   \r");
}

/// How much is done, and how much there is to do.
enum BackupProgress {
    Bytes(u64, u64),
    Events(u64, u64),
}

/// Saves every stream that cannot be made from another stream.
pub async fn backup(args: &BackupArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = args.nats.connect("bootstrap", SERVICES_INBOX).await?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&args.directory);
    made.with_context(|| args.directory.display().to_string())?;
    let mut manifest = BackupManifest::read(&args.directory)?;
    let (here, began) = (args.directory.display(), manifest.began);
    ensure!(
        !stream::backed_up().iter().all(|stream| manifest.has(stream)),
        "{here} holds a whole backup, begun {began}: name a new directory for another one"
    );
    ensure!(
        SystemClock.now().since(began) <= RESUMED_WITHIN,
        "{here} holds part of a backup, begun {began}, which is too old to go on with: name a new directory"
    );
    for stream in stream::backed_up() {
        if manifest.has(&stream) {
            println!("{stream:<16} is here already");
            continue;
        }
        let (file, begun) = (file(&args.directory, &stream), Instant::now());
        let saving = transfer::save(&client, &stream, &file, |bytes, of| {
            show_progress(&stream, begun, BackupProgress::Bytes(bytes, of));
        });
        let snapshot = tokio::select! {
            () = shutdown.cancelled() => bail!("stopped: repeat the command to go on"),
            saved = saving => saved.with_context(|| format!("saving {stream}"))?,
        };
        println!("{stream:<16} {:>10} messages, up to {}", snapshot.messages(), snapshot.last());
        manifest.streams.push(snapshot);
        manifest.write(&args.directory)?;
    }
    println!("saved. A backup is worth what its restore is: see docs/operating.md, \"When the broker's disk is lost\"");
    Ok(())
}

/// Restores the streams of a backup into a broker that has no streams, and makes DISPATCH from them.
pub async fn restore(
    args: &BackupArgs,
    options: &StreamOptions,
    settings: &Settings,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let client = args.nats.connect("bootstrap", SERVICES_INBOX).await?;
    let manifest = BackupManifest::read(&args.directory)?;
    let lacks: Vec<_> = stream::backed_up().into_iter().filter(|stream| !manifest.has(stream)).collect();
    ensure!(lacks.is_empty(), "{} is no whole backup: it lacks {}", args.directory.display(), lacks.join(", "));
    for snapshot in &manifest.streams {
        match transfer::last_of(&client, &snapshot.stream).await? {
            Some(last) if last == snapshot.last() => println!("{:<16} is there already", snapshot.stream),
            Some(last) => bail!(
                "the broker has a {} with {last} events; the backup's has {}. Nothing is overwritten: restore into a \
                 broker without streams",
                snapshot.stream,
                snapshot.last()
            ),
            None => {
                let (file, begun) = (file(&args.directory, &snapshot.stream), Instant::now());
                let loading = transfer::load(&client, snapshot, options.replicas, &file, |bytes, of| {
                    show_progress(&snapshot.stream, begun, BackupProgress::Bytes(bytes, of));
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
    let begun = Instant::now();
    let folded = |at: Seq, last: Seq| show_progress(MARKET, begun, BackupProgress::Events(at.0, last.0));
    let owner = jetstream(client);
    let making = redispatch::make(&log, &owner, options, settings, folded);
    let (from, machines) =
        Box::pin(shutdown.run_until_cancelled(making)).await.context("stopped: repeat the command to go on")??;
    println!("{:<16} from event {from} on, {machines} machines", stream::DISPATCH);
    println!("restored. Start the services, the projector and the web server; then: gpubnb-projector verify");
    Ok(())
}
