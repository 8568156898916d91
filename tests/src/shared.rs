//! One market for all those tests of a module that change only accounts, jobs and machines of their own.
//!
//! A separate process (`gpubnb-test-market`) holds the shared market, because a test binary can run nothing after its
//! last test. The first test that opens the market starts that process, and the process starts the market. The process
//! ends the market when the pipe from the test binary breaks. The pipe breaks when the test binary ends or is killed.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    history,
    jobs::noop,
    market::Market,
    parts::binary,
    system::{Options, System},
};

/// The description of a shared market as its first test finds the market.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The settings of the market's processes.
    pub options: Options,
    /// The name and the command-line arguments of each worker.
    workers: Vec<(String, Vec<String>)>,
    /// The number of jobs that have run.
    jobs: u32,
    /// The number of invented events in the log, if there are any.
    history: Option<u64>,
}

impl Plan {
    /// Plans a market whose processes have these settings.
    #[must_use]
    pub fn with(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// Adds a worker, with arguments for its command line.
    #[must_use]
    pub fn worker(mut self, name: &str, arguments: &[&str]) -> Self {
        self.workers.push((name.to_owned(), arguments.iter().map(ToString::to_string).collect()));
        self
    }

    /// Lets the market's consumer run this number of jobs, one after the other. Each job does nothing and ends.
    #[must_use]
    pub fn jobs(mut self, jobs: u32) -> Self {
        self.jobs = jobs;
        self
    }

    /// Adds a history of this number of invented events to the log. The services are stopped before, so that they add
    /// no event of their own.
    #[must_use]
    pub fn history(mut self, events: u64) -> Self {
        self.history = Some(events);
        self
    }

    /// Starts the market of this plan.
    async fn start(self) -> anyhow::Result<System> {
        let mut system = System::start_at_once(self.options, None).await?;
        system.appoint_operator().await?;
        for (name, arguments) in &self.workers {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            system.start_worker(name, &arguments).await?;
        }
        for _ in 0..self.jobs {
            let job = system.web.submit(&noop()).await?;
            system.web.settled(&job).await?;
        }
        if let Some(events) = self.history {
            // This stops the services.
            system.services.clear();
            history::write(&system, events).await?;
        }
        Ok(system)
    }
}

/// A market that the tests of a module share.
pub struct Shared {
    plan: fn() -> Plan,
    host: OnceLock<Result<Host, String>>,
}

/// The process that holds the market.
struct Host {
    /// The [`Market`] as JSON, as the process has described it.
    market: String,
    _child: Child,
    /// The pipe to the process, which ends the market when this pipe closes.
    _pipe: ChildStdin,
}

impl Shared {
    /// A market that is started by the first test that opens it, after the plan that `plan` returns.
    #[must_use]
    pub const fn new(plan: fn() -> Plan) -> Self {
        Self { plan, host: OnceLock::new() }
    }

    /// Opens the market for one test, with a new consumer, who belongs to this test and has $100 of play money.
    pub async fn open(&self) -> anyhow::Result<Market> {
        let mut market = self.open_as_is()?;
        market.web = market.newcomer().await?;
        Ok(market)
    }

    /// Opens the market with the consumer that the market was started with. A test needs this if each further event
    /// would disturb other tests, or if the services are stopped and cannot open an account for another consumer.
    pub fn open_as_is(&self) -> anyhow::Result<Market> {
        let started = || Host::start(&(self.plan)()).map_err(|e| format!("{e:#}"));
        let host = self.host.get_or_init(started).as_ref().map_err(|why| anyhow::anyhow!("no shared market: {why}"))?;
        Ok(serde_json::from_str(&host.market)?)
    }
}

impl Host {
    /// Starts the process, and waits until its market is ready.
    fn start(plan: &Plan) -> anyhow::Result<Self> {
        let mut child = Command::new(binary("gpubnb-test-market")?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting gpubnb-test-market")?;
        let mut pipe = child.stdin.take().context("a pipe to the shared market")?;
        let output = child.stdout.take().context("a pipe from the shared market")?;
        writeln!(pipe, "{}", serde_json::to_string(plan)?)?;
        let mut market = String::new();
        BufReader::new(output).read_line(&mut market)?;
        ensure!(!market.is_empty(), "gpubnb-test-market ended early; the output of the tests tells the reason");
        Ok(Self { market, _child: child, _pipe: pipe })
    }
}

/// The main function of `gpubnb-test-market`. Reads the [`Plan`] of a market from the standard input, starts the
/// market, prints the [`Market`] as one line of JSON, and ends the market when the input ends.
pub async fn host() -> anyhow::Result<()> {
    let mut input = std::io::stdin().lock();
    let mut plan = String::new();
    input.read_line(&mut plan)?;
    let plan: Plan = serde_json::from_str(&plan).context("reading the plan of the market")?;
    let system = plan.start().await?;
    println!("{}", serde_json::to_string(&*system)?);
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut input, &mut rest)?;
    drop(system);
    Ok(())
}
