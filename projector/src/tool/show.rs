//! `show`: one job, machine or account at a sequence, folded from the log alone, with its trail.

use anyhow::{Context as _, bail};
use gpubnb_events::{Aggregate, Log, Recorded, Seq};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    point,
    trail::{self, print},
};
use crate::{
    config::{Filter, ShowArgs},
    model::{
        Projection,
        jobs::{self, Jobs},
        ledger::{self, Ledger},
        machines::{self, Machines},
        touched,
    },
    query::trail_event,
    store::{self, Rows},
};

pub(super) async fn show(log: &Log, args: &ShowArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let aggregate = match args.kind.as_str() {
        "job" => Aggregate::Job(args.id.parse()?),
        "machine" => Aggregate::Machine(args.id.parse()?),
        "account" => Aggregate::Account(args.id.parse()?),
        other => bail!("`{other}` is not one of: job, machine, account"),
    };
    let until = point(log, args.at).await?;
    let (row, trail) = fold(log, aggregate, until, shutdown).await?;
    let row = row.with_context(|| format!("there is no {aggregate} at sequence {until}"))?;
    if args.json {
        let trail: Vec<_> = trail.iter().filter_map(trail_event).collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "at": until, "row": row, "trail": trail }))?);
        return Ok(());
    }
    println!("{aggregate} at sequence {until}");
    print_fields(&row, 1);
    println!("\nevents");
    trail.iter().try_for_each(|recorded| print(recorded, &Filter::default()))
}

/// Folds the log up to a sequence, in a temporary database that is gone afterwards.
async fn fold(
    log: &Log,
    aggregate: Aggregate,
    until: Seq,
    shutdown: CancellationToken,
) -> anyhow::Result<(Option<Value>, Vec<Recorded>)> {
    let db = sled::Config::new().temporary(true).cache_capacity(64 << 20).open()?;
    let (projection, key): (Box<dyn Projection>, _) = match aggregate {
        Aggregate::Job(id) => (Box::new(Jobs), jobs::row_key(id)),
        Aggregate::Machine(id) => (Box::new(Machines), machines::row_key(id)),
        Aggregate::Account(id) => (Box::new(Ledger), ledger::balance_key(id)),
    };
    let tree = store::tree(&db, projection.name(), projection.version())?;
    let mut trail = Vec::new();
    trail::fold(log, until, shutdown, async |recorded: Recorded| {
        if let Some(event) = recorded.event() {
            let mut rows = Rows::new(&tree);
            projection.apply(&mut rows, &recorded, event)?;
            rows.commit(recorded.seq)?;
            if touched(event).contains(&aggregate) {
                trail.push(recorded);
            }
        }
        Ok(())
    })
    .await?;
    Ok((store::get(&tree, &key)?, trail))
}

fn print_fields(value: &Value, depth: usize) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        match value {
            Value::Object(_) => {
                println!("{}{name}", "  ".repeat(depth));
                print_fields(value, depth + 1);
            }
            Value::Null => {}
            Value::String(text) => println!("{}{name:<20} {text}", "  ".repeat(depth)),
            other => println!("{}{name:<20} {other}", "  ".repeat(depth)),
        }
    }
}
