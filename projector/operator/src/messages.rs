//! `tail` and `replay` of the streams other than MARKET: DISPATCH (job messages for machines), TELEMETRY (heartbeats),
//! OUTPUT (the logs of jobs).

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
use gpubnb_query::request::LogPoint;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::config::{Filter, ReplayArgs, TailArgs};
use crate::{print_line, trail::Pace};

/// Time limit for the broker to send the next message.
const NEXT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most characters of a message's body that are printed without `--json`.
const MAX_BODY_CHARS: usize = 160;

pub(crate) async fn tail(log: &Log, args: &TailArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    ensure!(
        args.stream != DISPATCH,
        "machines remove the messages of {DISPATCH}: `replay {DISPATCH}` shows those that wait"
    );
    let (stream, _, last) = open_stream(log, &args.stream, &args.filter).await?;
    let from = Seq((last.0 + 1).saturating_sub(args.lines).max(1));
    print_messages(&stream, start_at(from), None, 0.0, &args.filter, shutdown).await
}

pub(crate) async fn replay(log: &Log, args: &ReplayArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (stream, first, last) = open_stream(log, &args.stream, &args.filter).await?;
    let from = match args.from {
        None => start_at(first),
        Some(LogPoint::Seq(seq)) => start_at(seq.max(first)),
        Some(LogPoint::Time(time)) => {
            DeliverPolicy::ByStartTime { start_time: OffsetDateTime::from_unix_timestamp_nanos(time.nanos())? }
        }
    };
    let end = match args.to {
        None => LogPoint::Seq(last),
        Some(LogPoint::Seq(to)) => LogPoint::Seq(to.min(last)),
        Some(time) => time,
    };
    if last < first || last == Seq::ZERO {
        return Ok(());
    }
    if args.stream == DISPATCH {
        return print_waiting(&stream, (args.from, end), &args.filter, shutdown).await;
    }
    print_messages(&stream, from, Some(end), args.speed, &args.filter, shutdown).await
}

fn start_at(seq: Seq) -> DeliverPolicy {
    DeliverPolicy::ByStartSequence { start_sequence: seq.0 }
}

async fn open_stream(log: &Log, name: &str, filter: &Filter) -> anyhow::Result<(Stream, Seq, Seq)> {
    if ![DISPATCH, TELEMETRY, OUTPUT].contains(&name) {
        bail!("`{name}` is not one of: MARKET, {DISPATCH}, {TELEMETRY}, {OUTPUT}");
    }
    let is_for_market = filter.kind.is_some() || filter.job.is_some();
    ensure!(!is_for_market, "--kind and --job select events of MARKET only: in {name}, use --id");
    let stream = log.jetstream().get_stream(name).await.with_context(|| format!("{name} cannot be read"))?;
    let state = &stream.cached_info().state;
    let (first, last) = (Seq(state.first_sequence), Seq(state.last_sequence));
    Ok((stream, first, last))
}

/// Prints the messages of a stream. With `end`, stops there or after the last message; without `end`, waits for new
/// messages. `speed` is as for `Pace::new`.
async fn print_messages(
    stream: &Stream,
    deliver_policy: DeliverPolicy,
    end: Option<LogPoint>,
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
                // At least one more message exists here (`num_pending` above, `info.pending` below), so a long
                // silence is a failure of the broker. Without `end`, a silence is normal.
                Some(_) => tokio::time::timeout(NEXT_TIMEOUT, messages.next()).await.context("the broker is silent"),
                None => Ok(messages.next().await),
            }
        };
        let Some(next) = shutdown.run_until_cancelled(next).await else { return Ok(()) };
        let Some(message) = next? else { bail!("the broker closed the consumer") };
        let message = message?;
        let info = message.info().map_err(anyhow::Error::from_boxed)?;
        let (seq, at) = (Seq(info.stream_sequence), Timestamp::from_nanos(info.published.unix_timestamp_nanos()));
        let is_within = match end {
            Some(LogPoint::Seq(to)) => seq <= to,
            Some(LogPoint::Time(to)) => at <= to,
            None => true,
        };
        if is_within {
            if shutdown.run_until_cancelled(pace.wait(at)).await.is_none() {
                return Ok(());
            }
            print(seq, at, (&message.subject, message.headers.as_ref(), &message.payload), filter)?;
        }
        let is_last = matches!(end, Some(LogPoint::Seq(to)) if seq >= to) || (end.is_some() && info.pending == 0);
        if !is_within || is_last {
            return Ok(());
        }
    }
}

/// Prints the messages that wait in DISPATCH. Reads them by sequence, because the stream is a work queue and allows
/// each message only one consumer.
async fn print_waiting(
    stream: &Stream,
    (from, end): (Option<LogPoint>, LogPoint),
    filter: &Filter,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut next = match from {
        Some(LogPoint::Seq(seq)) => seq.0,
        _ => 1,
    };
    while !shutdown.is_cancelled() {
        let Ok(found) = stream.get_first_raw_message_by_subject(">", next).await else { return Ok(()) };
        let (seq, at) = (Seq(found.sequence), Timestamp::from_nanos(found.time.unix_timestamp_nanos()));
        next = seq.0 + 1;
        let is_late = match end {
            LogPoint::Seq(to) => seq > to,
            LogPoint::Time(to) => at > to,
        };
        if is_late {
            return Ok(());
        }
        if !matches!(from, Some(LogPoint::Time(from)) if at < from) {
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
    // Remove control characters: text of machines and jobs must not control the terminal.
    let body: String = body.to_string().chars().filter(|c| !c.is_control()).take(MAX_BODY_CHARS).collect();
    print_line(format_args!("{seq:>8}  {at}  {subject}  {body}"))
}
