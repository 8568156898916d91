//! One market for several tests of a module. Such a test changes only its own accounts, jobs and machines.
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
    jobs::noop_job,
    market::Market,
    programs::binary,
    system::{MarketSettings, System},
};

/// The state of a shared market when its first test opens it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The settings of the market's processes.
    pub settings: MarketSettings,
    /// The name and the command-line arguments of each worker.
    workers: Vec<(String, Vec<String>)>,
    /// The number of jobs that the consumer has run.
    jobs: u32,
    /// The number of events up to which the log is filled with invented events. `None` if none are invented.
    history: Option<u64>,
}

impl Plan {
    /// Plans a market whose processes have these settings.
    #[must_use]
    pub fn with_settings(settings: MarketSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Adds a worker, with arguments for its command line.
    #[must_use]
    pub fn with_worker(mut self, name: &str, arguments: &[&str]) -> Self {
        self.workers.push((name.to_owned(), arguments.iter().map(ToString::to_string).collect()));
        self
    }

    /// Lets the market's consumer run this number of jobs, one after the other. Each job does nothing and ends.
    #[must_use]
    pub fn with_jobs(mut self, jobs: u32) -> Self {
        self.jobs = jobs;
        self
    }

    /// Fills the log with invented events up to this number. The services are stopped before, and stay stopped.
    #[must_use]
    pub fn with_history(mut self, events: u64) -> Self {
        self.history = Some(events);
        self
    }

    /// Starts the market of this plan.
    async fn start(self) -> anyhow::Result<System> {
        let mut system = System::start_with_slot(self.settings, None).await?;
        system.sign_up_shared_operator().await?;
        for (name, arguments) in &self.workers {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            system.start_worker(name, &arguments).await?;
        }
        for _ in 0..self.jobs {
            let job = system.consumer.submit(&noop_job()).await?;
            system.consumer.wait_until_settled(&job).await?;
        }
        if let Some(events) = self.history {
            // The processes of the services stop when they are dropped.
            system.services.clear();
            history::write(&system, events).await?;
        }
        Ok(system)
    }
}

/// A market that the tests of a module share.
pub struct SharedMarket {
    plan: fn() -> Plan,
    host: OnceLock<Result<Host, String>>,
}

/// The process that holds the market.
struct Host {
    /// The [`Market`] as JSON, which the process printed.
    market: String,
    _child: Child,
    /// The pipe to the process, which ends the market when this pipe closes.
    _pipe: ChildStdin,
}

impl SharedMarket {
    /// Declares a market. The first test that opens the market starts it with the plan that `plan` returns.
    #[must_use]
    pub const fn new(plan: fn() -> Plan) -> Self {
        Self { plan, host: OnceLock::new() }
    }

    /// Opens the market for one test. `Market::consumer` is a new consumer, who has $100 of play money and belongs to
    /// this test.
    pub async fn open(&self) -> anyhow::Result<Market> {
        let mut market = self.open_with_first_consumer()?;
        market.consumer = market.new_consumer().await?;
        Ok(market)
    }

    /// Opens the market without a new consumer: `Market::consumer` is the consumer that the market was started with. A
    /// test needs this if a new account would disturb other tests, or if the services are stopped and cannot open an
    /// account.
    pub fn open_with_first_consumer(&self) -> anyhow::Result<Market> {
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
        ensure!(!market.is_empty(), "gpubnb-test-market ended early; see its messages in the output of the tests");
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
