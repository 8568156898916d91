//! The commands that talk to the running worker, as people and programs see them.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail};
use gpubnb_events::{Clock as _, SystemClock, telemetry::WorkerState};

use crate::{
    config::{DrainArgs, LogsArgs, OutputArgs},
    control::{Answer, Ask, Status, ask},
    identity, journal,
};

const POLL: Duration = Duration::from_millis(500);

/// How the worker fares. Fails where none runs.
pub async fn status(state: &Path, output: OutputArgs) -> anyhow::Result<()> {
    let status = ask_status(state).await.with_context(|| match identity::known(state) {
        Some(machine) => format!("machine {machine} does not work now"),
        None => "this machine is not enrolled".to_owned(),
    })?;
    if output.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", shown(&status));
    }
    Ok(())
}

async fn ask_status(state: &Path) -> anyhow::Result<Status> {
    match ask(state, Ask::Status).await? {
        Answer::Status(status) => Ok(*status),
        Answer::Problem(problem) => bail!(problem),
        Answer::Done => bail!("the worker answered something else: is it of another version?"),
    }
}

/// How many jobs the worker has in hand; none, where none runs.
pub(crate) async fn in_hand(state: &Path) -> usize {
    ask_status(state).await.map_or(0, |status| status.jobs.len())
}

fn shown(s: &Status) -> String {
    let state = match s.state {
        WorkerState::Ready => "takes jobs",
        WorkerState::Paused => "takes no new jobs",
        WorkerState::Draining => "finishes what it has",
    };
    let why = s.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let mut text = format!("{} ({}) {state}{why}\n", s.name, s.machine);
    let ago = |at| SystemClock.now().since(at).0 / 1_000;
    let broker = if s.connected { "connected" } else { "NOT connected: trying again, and what runs goes on" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "market   {} ({broker})", s.market);
    let _ = writeln!(text, "worker   version {}, pid {}, for {} s", s.version, s.pid, ago(s.since));
    let _ = writeln!(text, "jobs     {} of {}", s.jobs.len(), s.slots);
    for job in &s.jobs {
        let _ = writeln!(text, "  {}  lease {}  for {} s  {}", job.job, job.lease, ago(job.since), job.gpus.join(" "));
    }
    for gpu in &s.gpus {
        let trouble = gpu.trouble.map(|t| format!("  {}", t.description())).unwrap_or_default();
        let _ = writeln!(
            text,
            "gpu      {}  {} %  {} MiB  {} C  {} W  {} processes{trouble}",
            gpu.uuid, gpu.utilisation_percent, gpu.memory_used.0, gpu.celsius, gpu.watts, gpu.processes
        );
    }
    text
}

async fn told(state: &Path, what: Ask) -> anyhow::Result<()> {
    match ask(state, what).await? {
        Answer::Done => Ok(()),
        Answer::Problem(problem) => bail!(problem),
        Answer::Status(_) => bail!("the worker answered something else: is it of another version?"),
    }
}

/// Takes no new jobs.
pub async fn pause(state: &Path) -> anyhow::Result<()> {
    told(state, Ask::Pause).await?;
    println!("Paused: no new jobs. What runs goes on; `gpubnb-provider drain` waits for it.");
    Ok(())
}

/// Takes jobs again.
pub async fn resume(state: &Path) -> anyhow::Result<()> {
    told(state, Ask::Resume).await?;
    println!("The machine takes jobs again.");
    Ok(())
}

/// Takes no new jobs and waits until what runs has ended.
pub async fn drain(state: &Path, args: DrainArgs) -> anyhow::Result<()> {
    told(state, Ask::Drain).await?;
    let mut left = usize::MAX;
    loop {
        let jobs = ask_status(state).await?.jobs.len();
        if jobs == 0 {
            break;
        }
        if jobs < left {
            println!("Draining: {jobs} still run.");
            left = jobs;
        }
        tokio::time::sleep(POLL).await;
    }
    println!("Nothing runs any more.");
    if args.stop {
        told(state, Ask::Stop).await?;
        println!("The worker stops. `gpubnb-provider resume` lets the machine take jobs again once it is started.");
    }
    Ok(())
}

/// What the worker said last, and on.
pub async fn logs(state: &Path, args: LogsArgs) -> anyhow::Result<()> {
    let path = journal::path(state);
    let mut file = fs::File::open(&path)
        .with_context(|| format!("{} is not there: no worker has run with this --state", path.display()))?;
    let mut text = String::new();
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(journal::MOST)))?;
    file.read_to_string(&mut text)?;
    let lines: Vec<&str> = text.lines().collect();
    let skip = lines.len().saturating_sub(args.lines as usize);
    let mut out = std::io::stdout();
    for line in lines.iter().skip(skip) {
        writeln!(out, "{line}")?;
    }
    if !args.follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(POLL).await;
        // It begins anew when it has grown too long.
        if fs::metadata(&path)?.len() < file.stream_position()? {
            file = fs::File::open(&path)?;
        }
        let mut more = String::new();
        file.read_to_string(&mut more)?;
        out.write_all(more.as_bytes())?;
        out.flush()?;
    }
}
