//! `lag`, `stuck`, `rebuild` and `verify`. The running projector answers and does the work.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use gpubnb_events::{Actor, Millis, ProjectorId, Seq};
use gpubnb_query::{
    QueryClient,
    view::ops::{Platform, Progress, Verification},
};
use gpubnb_runtime::rpc::Caller;
use tokio_util::sync::CancellationToken;

use super::print_result;
use crate::config::{AskArgs, LagArgs, RebuildArgs, VerifyArgs};

/// The pause between two requests for the progress.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
const OPERATOR: Actor = Actor::Operator(None);

pub(crate) async fn lag(client: async_nats::Client, args: &LagArgs) -> anyhow::Result<()> {
    let platform = QueryClient::new(Caller::new(client)).pinned_to(args.projector).platform(OPERATOR).await?;
    if args.json {
        print_result(&serde_json::to_string_pretty(&platform)?)?;
        return Ok(());
    }
    if let Some(projector) = platform.projector {
        print_result(format_args!("projector {projector}\n"))?;
    }
    print_result(format_args!(
        "{:<10} {:>12} {:>14} {:>14} {:>9} {:>10} {:>10}",
        "stream", "messages", "bytes", "may grow to", "kept for", "first", "last"
    ))?;
    for s in &platform.streams {
        let most = s.max_bytes.map_or_else(|| "no limit".to_owned(), |most| format!("{} MiB", most >> 20));
        let age = s.max_age.map_or_else(|| "ever".to_owned(), format_age);
        print_result(format_args!(
            "{:<10} {:>12} {:>14} {most:>14} {age:>9} {:>10} {:>10}",
            s.name, s.messages, s.bytes, s.first.0, s.last.0
        ))?;
    }
    if let Some(g) = platform.growth {
        let (thousand, year) = (g.per_thousand >> 10, g.per_year >> 20);
        print_result(format_args!(
            "\nMARKET is never trimmed: {thousand} KiB for 1,000 jobs, {year} MiB a year at the pace so far"
        ))?;
    }
    print_result(format_args!("\n{:<14} {:>12} {:>10}  state", "model", "checkpoint", "lag"))?;
    for m in &platform.models {
        let state = m.stopped.as_deref().unwrap_or("folding");
        print_result(format_args!("{:<14} {:>12} {:>10}  {state}", m.name, m.checkpoint.0, m.lag(platform.last)))?;
    }
    Ok(())
}

/// A time in days, such as `30 d`, or in minutes below two days, such as `60 min`.
fn format_age(age: Millis) -> String {
    match age.0 / 60_000 {
        minutes if minutes >= 2 * 24 * 60 => format!("{} d", minutes / (24 * 60)),
        minutes => format!("{minutes} min"),
    }
}

/// Lists stuck jobs. Fails if there are any, so that a monitoring job notices.
pub(crate) async fn stuck(client: async_nats::Client, args: &AskArgs) -> anyhow::Result<()> {
    let stuck = QueryClient::new(Caller::new(client)).stuck(OPERATOR).await?;
    if args.json {
        print_result(&serde_json::to_string_pretty(&stuck)?)?;
    } else {
        print_result(format_args!("{:<36} {:<10} {:<24}  likely cause; what to do", "job", "state", "since"))?;
        for s in &stuck {
            print_result(format_args!(
                "{:<36} {:<10} {:<24}  {}; {}",
                s.job,
                s.state.name(),
                s.since.to_string(),
                s.cause,
                s.remedy
            ))?;
        }
    }
    anyhow::ensure!(stuck.is_empty(), "{} jobs have been in one state for too long", stuck.len());
    Ok(())
}

/// A client that asks only one projector, because a rebuild or a verification exists only in the projector that runs
/// it.
async fn single_projector(client: async_nats::Client, projector: Option<ProjectorId>) -> anyhow::Result<QueryClient> {
    let queries = QueryClient::new(Caller::new(client)).pinned_to(projector);
    let answering = queries.platform(OPERATOR).await?.projector;
    Ok(queries.pinned_to(answering))
}

pub(crate) async fn rebuild(
    client: async_nats::Client,
    args: &RebuildArgs,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let queries = single_projector(client, args.projector).await?;
    queries.rebuild(OPERATOR, &args.model).await?;
    let rebuild = |p: &Platform| p.models.iter().find(|m| m.name == args.model).and_then(|m| m.rebuild.clone());
    loop {
        let rebuild = rebuild(&queries.platform(OPERATOR).await?).context("there is no such rebuild")?;
        if let Some(why) = rebuild.failed {
            bail!("the rebuild failed: {why}");
        }
        if rebuild.swapped_at.is_some() {
            if args.json {
                print_result(serde_json::json!({ "model": args.model, "rebuild": rebuild }))?;
            } else {
                print_result(format_args!("{} is rebuilt and in use", args.model))?;
            }
            return Ok(());
        }
        show_progress(&rebuild.progress);
        if !wait_to_poll(&shutdown).await {
            bail!("stopped waiting: the rebuild goes on in the projector");
        }
    }
}

/// Starts a verification and waits for its end. Fails if a row differs from the log, or the log breaks an invariant.
pub(crate) async fn verify(
    client: async_nats::Client,
    args: &VerifyArgs,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let queries = single_projector(client, args.projector).await?;
    queries.verify(OPERATOR).await?;
    loop {
        let verification = queries.platform(OPERATOR).await?.verification.context("no verification runs")?;
        if verification.ended_at.is_some() {
            return report_verification(&verification, args.json);
        }
        show_progress(&verification.progress);
        if !wait_to_poll(&shutdown).await {
            bail!("stopped waiting: the verification goes on in the projector");
        }
    }
}

fn report_verification(v: &Verification, json: bool) -> anyhow::Result<()> {
    let clean = v.is_clean();
    if json {
        print_result(&serde_json::to_string(&serde_json::json!({ "clean": clean, "verification": v }))?)?;
    } else {
        print_result(format_args!("{:<14} {:>12}  rows that differ", "model", "rows"))?;
        for m in &v.models {
            let differing = if m.differing.is_empty() { "none".to_owned() } else { m.differing.join(" ") };
            print_result(format_args!("{:<14} {:>12}  {differing}", m.name, m.rows))?;
        }
        v.violations.iter().try_for_each(|x| print_result(format_args!("event {}: {}", x.seq, x.what)))?;
        v.quarantined
            .iter()
            .try_for_each(|seq| print_result(format_args!("event {seq}: not an event of the market")))?;
        print_result(format_args!("{} signed heads agree", v.heads))?;
        print_result(format_args!("{} after {} events", if clean { "clean" } else { "NOT clean" }, v.progress.at))?;
    }
    if let Some(why) = &v.failed {
        bail!("the verification could not be finished: {why}");
    }
    anyhow::ensure!(clean, "the read models or the log are not clean");
    Ok(())
}

/// The progress of a command that reads the log from its first event.
pub(crate) fn progress(began: Instant, at: Seq, until: Seq) -> Progress {
    Progress::since(began.elapsed(), Seq::ZERO, at, until)
}

/// Shows the progress on one line that is overwritten, if standard error is a terminal.
pub(crate) fn show_progress(p: &Progress) {
    if std::io::stderr().is_terminal() {
        let left = p.seconds_left().map(|s| format!(", {s} s left")).unwrap_or_default();
        eprint!("\r{:>3} %  {} of {} events, {} a second{left}   \r", p.percent(), p.at, p.until, p.per_second);
    }
}

/// Waits before the next request for the progress. Returns false if a signal stops the command.
async fn wait_to_poll(shutdown: &CancellationToken) -> bool {
    shutdown.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await.is_some()
}
