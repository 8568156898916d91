//! `tail` and `replay` of the other streams: DISPATCH (job messages for machines), TELEMETRY (heartbeats), OUTPUT (the
//! logs of jobs).

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::{
    HeaderMap,
    jetstream::{
        consumer::{DeliverPolicy, pull::OrderedConfig},
        stream::Stream,
    },
};
use futures_util::StreamExt as _;
use gpubnb_events::{Seq, Timestamp, message::header};
use gpubnb_log::{
    Log,
    stream::{DISPATCH, OUTPUT, TELEMETRY},
};
use gpubnb_query::request::Point;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::config::{Filter, ReplayArgs, TailArgs};
use crate::{print_line, trail::Pace};

/// The longest silence of the broker while there are more messages.
const PATIENCE: Duration = Duration::from_secs(10);
/// Characters of a body in a line for people.
const SHOWN: usize = 160;

pub(crate) async fn tail(log: &Log, args: &TailArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    ensure!(args.stream != DISPATCH, "what waits in {DISPATCH} is taken by machines: `replay {DISPATCH}` shows it");
    let (stream, _, last) = open(log, &args.stream, &args.filter).await?;
    let from = Seq((last.0 + 1).saturating_sub(args.lines).max(1));
    read(&stream, start(from), None, 0.0, &args.filter, shutdown).await
}

pub(crate) async fn replay(log: &Log, args: &ReplayArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (stream, first, last) = open(log, &args.stream, &args.filter).await?;
    let from = match args.from {
        None => start(first),
        Some(Point::Seq(seq)) => start(seq.max(first)),
        Some(Point::Time(time)) => {
            DeliverPolicy::ByStartTime { start_time: OffsetDateTime::from_unix_timestamp_nanos(time.nanos())? }
        }
    };
    let end = match args.to {
        None => Point::Seq(last),
        Some(Point::Seq(to)) => Point::Seq(to.min(last)),
        Some(time) => time,
    };
    if last < first || last == Seq::ZERO {
        return Ok(());
    }
    if args.stream == DISPATCH {
        return waiting(&stream, (args.from, end), &args.filter, shutdown).await;
    }
    read(&stream, from, Some(end), args.speed, &args.filter, shutdown).await
}

fn start(seq: Seq) -> DeliverPolicy {
    DeliverPolicy::ByStartSequence { start_sequence: seq.0 }
}

async fn open(log: &Log, name: &str, filter: &Filter) -> anyhow::Result<(Stream, Seq, Seq)> {
    if ![DISPATCH, TELEMETRY, OUTPUT].contains(&name) {
        bail!("`{name}` is not one of: MARKET, {DISPATCH}, {TELEMETRY}, {OUTPUT}");
    }
    let of_market = filter.kind.is_some() || filter.job.is_some();
    ensure!(!of_market, "--kind and --job tell events of MARKET apart: here, --id is looked for in the subject");
    let stream = log.jetstream().get_stream(name).await.with_context(|| format!("{name} cannot be read"))?;
    let state = &stream.cached_info().state;
    let (first, last) = (Seq(state.first_sequence), Seq(state.last_sequence));
    Ok((stream, first, last))
}

/// Prints the messages of a stream from a start. With an end, it stops there or after the last message; without one, it
/// goes on as messages come.
async fn read(
    stream: &Stream,
    deliver_policy: DeliverPolicy,
    end: Option<Point>,
    speed: f64,
    filter: &Filter,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut consumer = stream.create_consumer(OrderedConfig { deliver_policy, ..Default::default() }).await?;
    if end.is_some() && consumer.info().await?.num_pending == 0 {
        return Ok(());
    }
    let mut messages = consumer.messages().await?;
    let mut pace = Pace::new(speed);
    loop {
        let next = async {
            match end {
                // Each message says how many follow: another one is awaited only where there is one.
                Some(_) => tokio::time::timeout(PATIENCE, messages.next()).await.context("the broker is silent"),
                None => Ok(messages.next().await),
            }
        };
        let Some(next) = shutdown.run_until_cancelled(next).await else { return Ok(()) };
        let Some(message) = next? else { bail!("the broker ended the reading") };
        let message = message?;
        let info = message.info().map_err(anyhow::Error::from_boxed)?;
        let (seq, at) = (Seq(info.stream_sequence), Timestamp::from_nanos(info.published.unix_timestamp_nanos()));
        let within = match end {
            Some(Point::Seq(to)) => seq <= to,
            Some(Point::Time(to)) => at <= to,
            None => true,
        };
        if within {
            if shutdown.run_until_cancelled(pace.wait(at)).await.is_none() {
                return Ok(());
            }
            print(seq, at, (&message.subject, message.headers.as_ref(), &message.payload), filter)?;
        }
        let over = matches!(end, Some(Point::Seq(to)) if seq >= to) || (end.is_some() && info.pending == 0);
        if !within || over {
            return Ok(());
        }
    }
}

/// Prints the messages that wait in DISPATCH, one by one by sequence: the stream is a work queue and allows no second
/// consumer.
async fn waiting(
    stream: &Stream,
    (from, end): (Option<Point>, Point),
    filter: &Filter,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut next = match from {
        Some(Point::Seq(seq)) => seq.0,
        _ => 1,
    };
    while !shutdown.is_cancelled() {
        let Ok(found) = stream.get_first_raw_message_by_subject(">", next).await else { return Ok(()) };
        let (seq, at) = (Seq(found.sequence), Timestamp::from_nanos(found.time.unix_timestamp_nanos()));
        next = seq.0 + 1;
        let late = match end {
            Point::Seq(to) => seq > to,
            Point::Time(to) => at > to,
        };
        if late {
            return Ok(());
        }
        if !matches!(from, Some(Point::Time(from)) if at < from) {
            print(seq, at, (&found.subject, Some(&found.headers), &found.payload), filter)?;
        }
    }
    Ok(())
}

fn print(
    seq: Seq,
    at: Timestamp,
    (subject, headers, payload): (&str, Option<&HeaderMap>, &[u8]),
    filter: &Filter,
) -> anyhow::Result<()> {
    let wire_name = headers.and_then(|h| h.get(header::TYPE)).map_or("", |name| name.as_str());
    let name = wire_name.split('.').next().unwrap_or_default();
    let passes = filter.id.as_deref().is_none_or(|id| subject.split('.').any(|part| part == id))
        && filter.event.as_deref().is_none_or(|wanted| wanted == name);
    if !passes {
        return Ok(());
    }
    let body: Value = serde_json::from_slice(payload)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(payload).into_owned()));
    if filter.json {
        let line = json!({ "seq": seq, "recorded_at": at, "subject": subject, "type": wire_name, "body": body });
        return print_line(line);
    }
    // Text of machines and jobs must not move the terminal's cursor.
    let body: String = body.to_string().chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    print_line(format_args!("{seq:>8}  {at}  {subject}  {body}"))
}
