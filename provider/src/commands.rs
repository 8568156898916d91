//! The commands that query or control the running worker: `status`, `open`, `pause`, `resume`, `drain` and `logs`.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{self, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use gpubnb_events::{Clock as _, SystemClock, telemetry::WorkerState, text::make_plain};

use crate::{
    config::{DrainArgs, LogsArgs, OpenArgs, OutputArgs, PauseArgs},
    control::{ControlAnswer, ControlRequest, Status, send_request},
    identity, journal,
    owner::Pause,
};

/// Time between two checks of a draining worker or of its log.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The error for an answer to another request.
const NOT_UNDERSTOOD: &str = "the worker's answer is not understood: is the worker of another version?";

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
        ControlAnswer::Done | ControlAnswer::Page(_) => bail!(NOT_UNDERSTOOD),
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
        WorkerState::Paused if s.why.is_none() => "is paused by you, and takes no new jobs",
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
        ControlAnswer::Status(_) | ControlAnswer::Page(_) => bail!(NOT_UNDERSTOOD),
    }
}

/// Opens the page of the worker in the browser, or prints its link.
pub async fn open(state: &Path, args: OpenArgs) -> anyhow::Result<()> {
    let uid = browser_user();
    let link = match send_request(state, ControlRequest::Open(uid)).await? {
        ControlAnswer::Page(link) => link,
        ControlAnswer::Problem(problem) => bail!(problem),
        ControlAnswer::Done | ControlAnswer::Status(_) => bail!(NOT_UNDERSTOOD),
    };
    println!("{link}");
    let has_desktop = ["WAYLAND_DISPLAY", "DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    // A browser does not run as root. Whoever became root with sudo opens the link in a browser of their own.
    if args.print || !has_desktop || rustix::process::getuid().is_root() {
        eprintln!("Open this link in a browser on this computer. The link works once, within two minutes.");
        return Ok(());
    }
    let opener = process::Command::new("xdg-open").arg(&link).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if let Err(e) = opener {
        eprintln!(
            "No browser could be started ({e}): open this link in a browser on this computer, within two minutes."
        );
    }
    Ok(())
}

/// The user whose browser shows the page: the one who became root with sudo, else the user of this process.
fn browser_user() -> u32 {
    let own = rustix::process::getuid();
    let before_sudo = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    before_sudo.filter(|_| own.is_root()).unwrap_or(own.as_raw())
}

/// Lets the machine take no new jobs, for a time or until `resume`, and stops the running jobs if the owner wants that.
pub async fn pause(state: &Path, args: PauseArgs) -> anyhow::Result<()> {
    let PauseArgs { until, stop_jobs } = args;
    if until.is_none() && !stop_jobs {
        send_command(state, ControlRequest::Pause).await?;
        println!("Paused: no new jobs. Running jobs go on; `gpubnb-provider drain` waits for them.");
        return Ok(());
    }
    let pause = Pause { until, stops_jobs: stop_jobs };
    send_command(state, ControlRequest::PauseFor(pause)).await?;
    let jobs = if stop_jobs { "Its jobs stop, and start again elsewhere" } else { "Running jobs go on" };
    println!("The machine takes no new jobs: {pause}. {jobs}; `gpubnb-provider resume` ends the pause.");
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
