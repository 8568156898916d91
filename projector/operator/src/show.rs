//! `show`: a job, a machine, an account or the whole market, as it was after an event. The answer comes from the
//! running projector or, with `--from-log`, is folded here from the log alone.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use gpubnb_events::{Actor, Aggregate, Recorded, Seq};
use gpubnb_log::Log;
use gpubnb_model::{Projection, touched};
use gpubnb_projector::ops::{background::Background, travel::Traveller};
use gpubnb_query::{
    QueryClient,
    request::{Point, TrailOf},
    view::{
        TrailEvent,
        ops::{Travel, fields},
    },
};
use gpubnb_runtime::rpc::Caller;
use gpubnb_store::{self, Database, Table, WriteBatch};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::{ShowArgs, ShowKind};
use crate::{point, print_line, trail, until_stopped, work::show_progress};

/// The cache of the temporary database, MiB.
const CACHE_MIB: u64 = 64;
const ME: Actor = Actor::Operator(None);
/// How often the progress is asked for.
const LOOK: Duration = Duration::from_millis(250);
/// Events that are folded in one batch.
const BATCH: usize = 5_000;

/// The state of the thing after an event.
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
    let of = target(args)?;
    let name = of.map_or_else(|| "market".to_owned(), |of| of.to_string());
    let queries = QueryClient::new(Caller::new(client));
    let at = async |to: Option<Point>| {
        let seq = point(log, to).await?;
        match of {
            Some(of) if args.from_log => fold(log, of, seq, shutdown.clone()).await,
            Some(of) => asked(&queries, of, seq).await,
            None if args.from_log => until_stopped(&shutdown, folded_market(log, seq, shutdown.clone())).await,
            None => market(&queries, seq, &shutdown).await,
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
            all["changed"] = changed(row, later).into_iter().map(|(f, a, b)| json!([f, a, b])).collect();
        }
        return print_line(&serde_json::to_string_pretty(&all)?);
    }
    if let Some(later) = &later {
        print_line(format_args!("{name} at sequence {}, and what is another at {}", found.at, later.at))?;
        let width = changed(row, later).iter().map(|(field, ..)| field.len()).max().unwrap_or(0);
        let mut lines = changed(row, later).into_iter();
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
    let unreadable = || format!("`{id}` is no id");
    Ok(match args.kind {
        ShowKind::Job => Some(Aggregate::Job(id.parse().with_context(unreadable)?)),
        ShowKind::Machine => Some(Aggregate::Machine(id.parse().with_context(unreadable)?)),
        ShowKind::Account => Some(Aggregate::Account(id.parse().with_context(unreadable)?)),
        ShowKind::Market => None,
    })
}

/// The fields that differ: name, value before, value after.
fn changed(before: &Value, later: &StateAt) -> Vec<(String, String, String)> {
    let (before, after) = (fields(Some(before)), fields(later.row.as_ref()));
    let of = |all: &[(String, String)], name: &str| {
        all.iter().find(|(other, _)| other == name).map_or_else(|| "–".to_owned(), |(_, value)| value.clone())
    };
    let gone = before.iter().filter(|(name, _)| after.iter().all(|(other, _)| other != name));
    let names = after.iter().chain(gone).map(|(name, _)| name);
    let all = names.map(|name| (name.clone(), of(&before, name), of(&after, name)));
    all.filter(|(_, before, after)| before != after).collect()
}

/// The state of an aggregate, from the running projector.
async fn asked(queries: &QueryClient, of: Aggregate, seq: Seq) -> anyhow::Result<StateAt> {
    let of = match of {
        Aggregate::Job(id) => TrailOf::Job(id),
        Aggregate::Machine(id) => TrailOf::Machine(id),
        Aggregate::Account(id) => TrailOf::Account(id),
    };
    let then = queries.then(ME, of, Point::Seq(seq)).await?;
    anyhow::ensure!(then.seq >= seq, "the projector is at {} and not yet at {seq}: wait, or use --from-log", then.seq);
    Ok(StateAt { at: then.seq, row: then.row, trail: then.trail })
}

/// The market, from the running projector. Waits until the projector has folded it.
async fn market(queries: &QueryClient, seq: Seq, shutdown: &CancellationToken) -> anyhow::Result<StateAt> {
    loop {
        match queries.travel(ME, Point::Seq(seq)).await? {
            Travel::There(then) => {
                return Ok(StateAt { at: then.seq, row: Some(serde_json::to_value(then)?), trail: Vec::new() });
            }
            Travel::Folding(progress) => show_progress(&progress),
        }
        let waited = shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await;
        waited.context("stopped waiting: the projector goes on folding, and is there when asked again")?;
    }
}

/// The market, folded here from the log.
async fn folded_market(log: &Log, seq: Seq, shutdown: CancellationToken) -> anyhow::Result<StateAt> {
    let directory = tempfile::tempdir()?;
    let background = Background::new(TaskTracker::new(), shutdown);
    let traveller = Traveller::open(log.clone(), directory.path(), background)?;
    let watched = traveller.clone();
    let watching = tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(progress) = watched.progress() {
                show_progress(&progress);
            }
        }
    });
    let then = traveller.market(seq).await;
    watching.abort();
    Ok(StateAt { at: seq, row: Some(serde_json::to_value(then?)?), trail: Vec::new() })
}

/// The state of an aggregate, folded here from the log in a temporary database.
async fn fold(log: &Log, of: Aggregate, until: Seq, shutdown: CancellationToken) -> anyhow::Result<StateAt> {
    let db = Database::temporary(CACHE_MIB)?;
    let (projection, _) = gpubnb_model::of_aggregate(of);
    let table = db.model(projection.model_version())?;
    let (mut trail, mut batch) = (Vec::new(), Vec::new());
    trail::fold(log, until, shutdown, async |recorded: Recorded| {
        if recorded.event().is_some_and(|event| touched(event).contains(&of)) {
            trail.extend(TrailEvent::of(&recorded));
        }
        batch.push(recorded);
        if batch.len() >= BATCH {
            taken_in(projection.as_ref(), &table, &mut batch)?;
        }
        Ok(())
    })
    .await?;
    taken_in(projection.as_ref(), &table, &mut batch)?;
    Ok(StateAt { at: until, row: gpubnb_model::answer(&table, of)?, trail })
}

fn taken_in(projection: &dyn Projection, table: &Table, batch: &mut Vec<Recorded>) -> anyhow::Result<()> {
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
