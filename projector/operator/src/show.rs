//! `show`: the state of a job, a machine, an account or the whole market after an event. The running projector answers;
//! with `--from-log`, this command folds the log itself.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use gpubnb_events::{Actor, Aggregate, Event, Recorded, Seq};
use gpubnb_log::Log;
use gpubnb_model::{Projection, affected_aggregates};
use gpubnb_projector::ops::{background::Background, travel::PastStates};
use gpubnb_query::{
    QueryClient,
    request::{LogPoint, TrailOf},
    view::{
        TrailEvent,
        ops::{TimeTravel, fields},
    },
};
use gpubnb_runtime::rpc::Caller;
use gpubnb_store::{self, Database, Table, WriteBatch};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::{ShowArgs, ShowKind};
use crate::{print_line, seq_of_point, trail, until_stopped, work::show_progress};

/// The cache of the temporary database, MiB.
const CACHE_MIB: u64 = 64;
const OPERATOR: Actor = Actor::Operator(None);
/// The pause between two requests for the progress.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Events that are folded in one batch.
const BATCH: usize = 5_000;

/// The state of an aggregate or of the market after an event.
struct StateAt {
    at: Seq,
    row: Option<Value>,
    trail: Vec<TrailEvent>,
}

pub(crate) async fn show(
    client: Client,
    log: &Log,
    args: &ShowArgs,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let aggregate = target(args)?;
    let name = aggregate.map_or_else(|| "market".to_owned(), |aggregate| aggregate.to_string());
    let queries = QueryClient::new(Caller::new(client));
    let at = async |to: Option<LogPoint>| {
        let seq = seq_of_point(log, to).await?;
        match aggregate {
            Some(aggregate) if args.from_log => fold_aggregate(log, aggregate, seq, shutdown.clone()).await,
            Some(aggregate) => fetch_aggregate(&queries, aggregate, seq).await,
            None if args.from_log => until_stopped(&shutdown, fold_market(log, seq, shutdown.clone())).await,
            None => fetch_market(&queries, seq, &shutdown).await,
        }
    };
    let found = at(args.at).await?;
    let row = found.row.as_ref().with_context(|| format!("there is no {name} at sequence {}", found.at))?;
    let later = match args.with {
        Some(with) => Some(at(Some(with)).await?),
        None => None,
    };
    if args.json {
        let mut all = json!({ "at": found.at, "row": row, "trail": found.trail });
        if let Some(later) = &later {
            all["with"] = json!({ "at": later.at, "row": later.row });
            all["changed"] = changed_fields(row, later).into_iter().map(|(f, a, b)| json!([f, a, b])).collect();
        }
        return print_line(&serde_json::to_string_pretty(&all)?);
    }
    if let Some(later) = &later {
        print_line(format_args!("{name} at sequence {}, and the changes until sequence {}", found.at, later.at))?;
        let width = changed_fields(row, later).iter().map(|(field, ..)| field.len()).max().unwrap_or(0);
        let mut lines = changed_fields(row, later).into_iter();
        return lines.try_for_each(|(field, a, b)| print_line(format_args!("  {field:<width$}  {a} → {b}")));
    }
    print_line(format_args!("{name} at sequence {}", found.at))?;
    print_fields(row, 1)?;
    if !found.trail.is_empty() {
        print_line("\nevents")?;
    }
    found
        .trail
        .iter()
        .try_for_each(|e| print_line(format_args!("{:>8}  {}  {:<20} {}", e.seq, e.recorded_at, e.event, e.actor)))
}

/// The aggregate to show; `None` for the market.
fn target(args: &ShowArgs) -> anyhow::Result<Option<Aggregate>> {
    let id = args.id.as_deref().unwrap_or_default();
    let not_an_id = || format!("`{id}` is not an id");
    Ok(match args.kind {
        ShowKind::Job => Some(Aggregate::Job(id.parse().with_context(not_an_id)?)),
        ShowKind::Machine => Some(Aggregate::Machine(id.parse().with_context(not_an_id)?)),
        ShowKind::Account => Some(Aggregate::Account(id.parse().with_context(not_an_id)?)),
        ShowKind::Batch => Some(Aggregate::Batch(id.parse().with_context(not_an_id)?)),
        ShowKind::Market => None,
    })
}

/// The fields that differ: name, value before, value after.
fn changed_fields(before: &Value, later: &StateAt) -> Vec<(String, String, String)> {
    let (before, after) = (fields(Some(before)), fields(later.row.as_ref()));
    let value_of = |all: &[(String, String)], name: &str| {
        all.iter().find(|(other, _)| other == name).map_or_else(|| "–".to_owned(), |(_, value)| value.clone())
    };
    let gone = before.iter().filter(|(name, _)| after.iter().all(|(other, _)| other != name));
    let names = after.iter().chain(gone).map(|(name, _)| name);
    let all = names.map(|name| (name.clone(), value_of(&before, name), value_of(&after, name)));
    all.filter(|(_, before, after)| before != after).collect()
}

/// Asks the running projector for the state of an aggregate.
async fn fetch_aggregate(queries: &QueryClient, aggregate: Aggregate, seq: Seq) -> anyhow::Result<StateAt> {
    let trail_of = match aggregate {
        Aggregate::Job(id) => TrailOf::Job(id),
        Aggregate::Machine(id) => TrailOf::Machine(id),
        Aggregate::Account(id) => TrailOf::Account(id),
        Aggregate::Batch(id) => TrailOf::Batch(id),
    };
    let past = queries.past_row(OPERATOR, trail_of, LogPoint::Seq(seq)).await?;
    anyhow::ensure!(past.seq >= seq, "the projector is at {} and not yet at {seq}: wait, or use --from-log", past.seq);
    Ok(StateAt { at: past.seq, row: past.row, trail: past.trail })
}

/// Asks the running projector for the state of the market. Waits until the projector has folded the log to `seq`.
async fn fetch_market(queries: &QueryClient, seq: Seq, shutdown: &CancellationToken) -> anyhow::Result<StateAt> {
    loop {
        match queries.past_market(OPERATOR, LogPoint::Seq(seq)).await? {
            TimeTravel::There(past) => {
                return Ok(StateAt { at: past.seq, row: Some(serde_json::to_value(past)?), trail: Vec::new() });
            }
            TimeTravel::Folding(progress) => show_progress(&progress),
        }
        let waited = shutdown.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await;
        waited.context("stopped waiting: the projector continues; run the same command again later")?;
    }
}

/// Folds the state of the market from the log.
async fn fold_market(log: &Log, seq: Seq, shutdown: CancellationToken) -> anyhow::Result<StateAt> {
    let directory = tempfile::tempdir()?;
    let background = Background::new(TaskTracker::new(), shutdown);
    let past_states = PastStates::open(log.clone(), directory.path(), background)?;
    let watched = past_states.clone();
    let watching = tokio::spawn(async move {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            if let Some(progress) = watched.progress() {
                show_progress(&progress);
            }
        }
    });
    let past = past_states.market(seq).await;
    watching.abort();
    Ok(StateAt { at: seq, row: Some(serde_json::to_value(past?)?), trail: Vec::new() })
}

/// Folds the state of an aggregate from the log, in a temporary database.
async fn fold_aggregate(
    log: &Log,
    aggregate: Aggregate,
    until: Seq,
    shutdown: CancellationToken,
) -> anyhow::Result<StateAt> {
    let db = Database::temporary(CACHE_MIB)?;
    let (projection, _) = gpubnb_model::model_of_aggregate(aggregate);
    let table = db.current_table(projection.model_version())?;
    let (mut trail, mut batch) = (Vec::new(), Vec::new());
    trail::fold(log, until, shutdown, async |recorded: Recorded| {
        // The second submission of a job's id is lost (ADR 0003).
        let is_lost = matches!(recorded.event(), Some(Event::JobSubmitted(e))
            if Aggregate::Job(e.job) == aggregate && !trail.is_empty());
        if !is_lost && recorded.event().is_some_and(|event| affected_aggregates(event).contains(&aggregate)) {
            trail.extend(TrailEvent::from_recorded(&recorded));
        }
        batch.push(recorded);
        if batch.len() >= BATCH {
            apply_batch(projection.as_ref(), &table, &mut batch)?;
        }
        Ok(())
    })
    .await?;
    apply_batch(projection.as_ref(), &table, &mut batch)?;
    Ok(StateAt { at: until, row: gpubnb_model::view_of_row(&table, aggregate)?, trail })
}

/// Applies a batch of events to the table, and empties the batch.
fn apply_batch(projection: &dyn Projection, table: &Table, batch: &mut Vec<Recorded>) -> anyhow::Result<()> {
    let Some(last) = batch.last().map(|recorded| recorded.seq) else { return Ok(()) };
    let mut rows = WriteBatch::new(table);
    for (recorded, event) in batch.iter().filter_map(|r| Some((r, r.event()?))) {
        projection.apply(&mut rows, recorded, event)?;
    }
    rows.commit(last)?;
    batch.clear();
    Ok(())
}

fn print_fields(value: &Value, depth: usize) -> anyhow::Result<()> {
    let Value::Object(fields) = value else { return Ok(()) };
    let indent = "  ".repeat(depth);
    for (name, value) in fields {
        match value {
            Value::Object(_) => {
                print_line(format_args!("{indent}{name}"))?;
                print_fields(value, depth + 1)?;
            }
            Value::Null => {}
            Value::String(text) => print_line(format_args!("{indent}{name:<20} {text}"))?,
            other => print_line(format_args!("{indent}{name:<20} {other}"))?,
        }
    }
    Ok(())
}
