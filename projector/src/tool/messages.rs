//! `tail` and `replay` of the streams beside MARKET: what waits for machines, what they say of themselves, what jobs print.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull::OrderedConfig},
    stream::Stream,
};
use futures_util::StreamExt as _;
use gpubnb_events::{
    Log, Seq, Timestamp,
    log::header,
    stream::{DISPATCH, OUTPUT, TELEMETRY},
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::trail::{Pace, print_line};
use crate::{
    client::Point,
    config::{Filter, ReplayArgs, TailArgs},
};

/// Longest silence of the broker while there is more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Characters of a body that a person is shown.
const SHOWN: usize = 160;

pub(super) async fn tail(log: &Log, args: &TailArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (stream, _, last) = open(log, &args.stream, &args.filter).await?;
    let from = Seq((last.0 + 1).saturating_sub(args.lines).max(1));
    read(&stream, start(from), None, 0.0, &args.filter, shutdown).await
}

pub(super) async fn replay(log: &Log, args: &ReplayArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
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
    read(&stream, from, Some((end, last)), args.speed, &args.filter, shutdown).await
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

/// Prints from somewhere on: up to an end, or as messages come. `end` is where to stop, and the last message there is.
async fn read(
    stream: &Stream,
    deliver_policy: DeliverPolicy,
    end: Option<(Point, Seq)>,
    speed: f64,
    filter: &Filter,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let consumer = stream.create_consumer(OrderedConfig { deliver_policy, ..Default::default() }).await?;
    let mut messages = consumer.messages().await?;
    let mut pace = Pace::new(speed);
    loop {
        let next = async {
            match end {
                // Whether there is nothing to come, the last message says: where there is one, it is waited for.
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
            Some((Point::Seq(to), _)) => seq <= to,
            Some((Point::Time(to), _)) => at <= to,
            None => true,
        };
        if within {
            if shutdown.run_until_cancelled(pace.wait(at)).await.is_none() {
                return Ok(());
            }
            print(seq, at, &message, filter)?;
        }
        let over = matches!(end, Some((Point::Seq(to), _)) if seq >= to);
        if !within || over || end.is_some_and(|(_, last)| seq >= last) {
            return Ok(());
        }
    }
}

fn print(seq: Seq, at: Timestamp, message: &jetstream::Message, filter: &Filter) -> anyhow::Result<()> {
    let wire_name = message.headers.as_ref().and_then(|h| h.get(header::TYPE)).map_or("", |name| name.as_str());
    let name = wire_name.split('.').next().unwrap_or_default();
    let passes = filter.id.as_deref().is_none_or(|id| message.subject.split('.').any(|part| part == id))
        && filter.event.as_deref().is_none_or(|wanted| wanted == name);
    if !passes {
        return Ok(());
    }
    let body: Value = serde_json::from_slice(&message.payload)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&message.payload).into_owned()));
    if filter.json {
        let line = json!({ "seq": seq, "recorded_at": at, "subject": message.subject.as_str(), "type": wire_name, "body": body });
        return print_line(&line.to_string());
    }
    // What machines and jobs say is not to move a terminal's cursor.
    let body: String = body.to_string().chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    print_line(&format!("{seq:>8}  {at}  {}  {body}", message.subject))
}
