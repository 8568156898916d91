//! `tail` and `replay` of MARKET: events as a table or as JSON lines.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use gpubnb_events::{Event, JobId, Recorded, Seq, Timestamp};
use gpubnb_log::Log;
use gpubnb_query::{request::LogPoint, view::TrailEvent};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::config::{Filter, ReplayArgs, TailArgs};
use crate::{
    print_line, seq_of_point,
    work::{progress, show_progress},
};

/// Events between two updates of the progress.
const SHOWN_EVERY: u64 = 10_000;
/// The longest that `replay` waits between two events.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Fails if a filter can match nothing, such as a mistyped name of an event.
fn check_filter(filter: &Filter) -> anyhow::Result<()> {
    let without_version = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    if let Some(event) = &filter.event {
        let known: Vec<String> = Event::WIRE_NAMES.iter().map(|name| without_version(name)).collect();
        anyhow::ensure!(
            known.contains(&without_version(event)),
            "there is no event `{event}`; there are {}",
            known.join(", ")
        );
    }
    if let Some(kind) = &filter.kind {
        let known = ["account", "machine", "job"];
        anyhow::ensure!(known.contains(&kind.as_str()), "`{kind}` is not one of {}", known.join(", "));
    }
    for id in [&filter.job, &filter.id].into_iter().flatten() {
        id.parse::<JobId>()?;
    }
    Ok(())
}

pub(crate) async fn tail(log: &Log, args: &TailArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    check_filter(&args.filter)?;
    let last = log.last_seq().await?;
    let from = Seq(last.0.saturating_sub(args.lines.saturating_sub(1)).max(1));
    let from = if args.lines == 0 { last.next() } else { from };
    for_each_message(log, from, Seq(u64::MAX), shutdown, async |recorded| print(&recorded, &args.filter)).await
}

pub(crate) async fn replay(log: &Log, args: &ReplayArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    check_filter(&args.filter)?;
    let to = seq_of_point(log, args.to).await?;
    let from = match args.from {
        None => Seq(1),
        Some(LogPoint::Seq(seq)) => seq,
        // The first event at this time or after it.
        Some(LogPoint::Time(time)) => log.seq_at(time.previous_instant(), log.last_seq().await?).await?.next(),
    };
    anyhow::ensure!(from <= to.next(), "the range ends, at {to}, before it begins, at {from}");
    let mut pace = Pace::new(args.speed);
    for_each_message(log, from, to, shutdown, async |recorded: Recorded| {
        pace.wait(recorded.at).await;
        print(&recorded, &args.filter)
    })
    .await
}

/// Waits between messages, to replay them at the original speed or faster.
pub(crate) struct Pace {
    speed: f64,
    previous: Option<Timestamp>,
}

impl Pace {
    /// `speed` is the factor by which the pauses are shortened; 0 means no pauses.
    pub(crate) fn new(speed: f64) -> Self {
        Self { speed, previous: None }
    }

    /// Waits for the pause before a message that was recorded at `at`.
    pub(crate) async fn wait(&mut self, at: Timestamp) {
        if let (Some(previous), true) = (self.previous, self.speed > 0.0) {
            let seconds = at.since(previous).duration().as_secs_f64() / self.speed;
            let pause = Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_PAUSE);
            tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
        }
        self.previous = Some(at);
    }
}

/// Calls `take` with each message from `from` to `to`, both included.
pub(crate) async fn for_each_message(
    log: &Log,
    from: Seq,
    to: Seq,
    shutdown: CancellationToken,
    mut take: impl AsyncFnMut(Recorded) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if from > to {
        return Ok(());
    }
    let mut follower = log.follow(from);
    loop {
        let batch = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            batch = follower.next_batch() => batch,
        };
        for recorded in batch {
            let seq = recorded.seq;
            if seq <= to {
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    taken = take(recorded) => taken?,
                }
            }
            if seq >= to {
                return Ok(());
            }
        }
    }
}

/// Calls `take` with each message up to `until`, and shows the progress. Fails if `shutdown` interrupts the fold,
/// because a partial fold is no result.
pub(crate) async fn fold(
    log: &Log,
    until: Seq,
    shutdown: CancellationToken,
    mut take: impl AsyncFnMut(Recorded) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (began, stopped) = (Instant::now(), shutdown.clone());
    for_each_message(log, Seq(1), until, shutdown, async |recorded: Recorded| {
        if recorded.seq.0.is_multiple_of(SHOWN_EVERY) {
            show_progress(&progress(began, recorded.seq, until));
        }
        take(recorded).await
    })
    .await?;
    anyhow::ensure!(!stopped.is_cancelled(), "stopped before the whole log was folded: there is no answer");
    Ok(())
}

/// Prints an event if it passes the filter. A quarantined message (one that is no valid event) is always printed.
pub(crate) fn print(recorded: &Recorded, filter: &Filter) -> anyhow::Result<()> {
    let line = match (&recorded.entry, filter.json) {
        (Ok((_, event)), _) if !passes(event, filter) => return Ok(()),
        (Ok(_), true) => {
            serde_json::to_string(&TrailEvent::from_recorded(recorded).context("an event that cannot be written")?)?
        }
        (Ok((envelope, event)), false) => {
            let aggregate = event.aggregate().to_string();
            let actor = envelope.actor.to_string();
            format!("{:>8}  {}  {:<20} {aggregate:<45} {actor}", recorded.seq.0, recorded.at, event.name())
        }
        (Err(why), true) => {
            json!({ "seq": recorded.seq, "at": recorded.at, "quarantined": why.to_string() }).to_string()
        }
        (Err(why), false) => format!("{:>8}  {}  {why}", recorded.seq.0, recorded.at),
    };
    print_line(&line)
}

fn passes(event: &Event, filter: &Filter) -> bool {
    let aggregate = event.aggregate().to_string();
    let (kind, id) = aggregate.split_once(' ').unwrap_or_default();
    filter.kind.as_deref().is_none_or(|wanted| wanted == kind)
        && filter.id.as_deref().is_none_or(|wanted| wanted == id)
        && filter.event.as_deref().is_none_or(|wanted| wanted == event.name() || wanted == event.wire_name())
        && filter.job.as_deref().is_none_or(|wanted| event.job().is_some_and(|job| job.to_string() == wanted))
}
