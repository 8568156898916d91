//! The commands that query or control the running worker: `status`, `pause`, `resume`, `drain` and `logs`.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail};
use gpubnb_events::{Clock as _, SystemClock, telemetry::WorkerState, text::make_plain};

use crate::{
    config::{DrainArgs, LogsArgs, OutputArgs},
    control::{ControlAnswer, ControlRequest, Status, send_request},
    identity, journal,
};

/// Time between two checks of a draining worker or of its log.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Prints the worker's status. Fails if no worker runs.
pub async fn status(state: &Path, output: OutputArgs) -> anyhow::Result<()> {
    let status = ask_status(state).await.with_context(|| match identity::machine_of(state) {
        Some(machine) => format!("machine {machine} does not work now"),
        None => "this machine is not enrolled".to_owned(),
    })?;
    if output.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        for line in describe(&status).lines() {
            println!("{}", make_plain(line));
        }
    }
    Ok(())
}

async fn ask_status(state: &Path) -> anyhow::Result<Status> {
    match send_request(state, ControlRequest::Status).await? {
        ControlAnswer::Status(status) => Ok(*status),
        ControlAnswer::Problem(problem) => bail!(problem),
        ControlAnswer::Done => bail!("the worker's answer is not understood: is the worker of another version?"),
    }
}

/// The number of jobs that the worker runs; 0 if no worker runs.
pub(crate) async fn running_jobs(state: &Path) -> usize {
    ask_status(state).await.map_or(0, |status| status.jobs.len())
}

/// The status as text for people.
fn describe(s: &Status) -> String {
    let state = match s.state {
        WorkerState::Ready => "takes jobs",
        WorkerState::Paused => "takes no new jobs",
        WorkerState::Draining => "takes no new jobs, and finishes its running jobs",
    };
    let why = s.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let mut text = format!("{} ({}) {state}{why}\n", s.name, s.machine);
    let age = |at| SystemClock.now().since(at).0 / 1_000;
    let broker = if s.connected { "connected" } else { "NOT connected: retrying, and running jobs go on" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "market   {} ({broker})", s.market);
    let _ = writeln!(text, "worker   version {}, pid {}, for {} s", s.version, s.pid, age(s.since));
    let _ = writeln!(text, "jobs     {} of {}", s.jobs.len(), s.slots);
    for job in &s.jobs {
        let _ = writeln!(text, "  {}  lease {}  for {} s  {}", job.job, job.lease, age(job.since), job.gpus.join(" "));
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

/// Sends the worker a request whose answer carries no data.
async fn send_command(state: &Path, request: ControlRequest) -> anyhow::Result<()> {
    match send_request(state, request).await? {
        ControlAnswer::Done => Ok(()),
        ControlAnswer::Problem(problem) => bail!(problem),
        ControlAnswer::Status(_) => bail!("the worker's answer is not understood: is the worker of another version?"),
    }
}

/// Lets the machine take no new jobs.
pub async fn pause(state: &Path) -> anyhow::Result<()> {
    send_command(state, ControlRequest::Pause).await?;
    println!("Paused: no new jobs. Running jobs go on; `gpubnb-provider drain` waits for them.");
    Ok(())
}

/// Lets the machine take jobs after a pause or a drain.
pub async fn resume(state: &Path) -> anyhow::Result<()> {
    send_command(state, ControlRequest::Resume).await?;
    println!("The machine takes jobs again.");
    Ok(())
}

/// Lets the machine take no new jobs, and waits until the running jobs have ended.
pub async fn drain(state: &Path, args: DrainArgs) -> anyhow::Result<()> {
    send_command(state, ControlRequest::Drain).await?;
    let mut last_jobs = usize::MAX;
    loop {
        let jobs = ask_status(state).await?.jobs.len();
        if jobs == 0 {
            break;
        }
        if jobs < last_jobs {
            println!("Draining: {jobs} still run.");
            last_jobs = jobs;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    println!("Nothing runs any more.");
    if args.stop {
        send_command(state, ControlRequest::Stop).await?;
        println!("The worker stops. `gpubnb-provider resume` lets the machine take jobs again once it is started.");
    }
    Ok(())
}

/// Prints the last lines of the worker's log. With `args.follow`, also prints each new line, until interrupted.
pub async fn logs(state: &Path, args: LogsArgs) -> anyhow::Result<()> {
    let path = journal::path(state);
    let mut file = fs::File::open(&path)
        .with_context(|| format!("{} does not exist: no worker has run with this --state", path.display()))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(journal::MAX_FILE_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let skip = lines.len().saturating_sub(args.lines as usize);
    let mut out = std::io::stdout();
    for line in lines.iter().skip(skip) {
        writeln!(out, "{}", make_plain(line))?;
    }
    if !args.follow {
        return Ok(());
    }
    // The beginning of a line that the worker has not written to its end.
    let mut begun = Vec::new();
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        // When the worker has rotated its log, the path has a new file. The last lines of the former file come first.
        let current = fs::File::open(&path).ok();
        file.read_to_end(&mut begun)?;
        if let Some(current) = current
            && current.metadata()?.ino() != file.metadata()?.ino()
        {
            file = current;
            file.read_to_end(&mut begun)?;
        }
        let complete = begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines: Vec<u8> = begun.drain(..complete).collect();
        for line in String::from_utf8_lossy(&lines).lines() {
            writeln!(out, "{}", make_plain(line))?;
        }
        out.flush()?;
    }
}
