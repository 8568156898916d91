//! One market for all tests of a module that change nothing but what is their own.
//!
//! A process of its own (`gpubnb-test-market`) holds such a market, because a test binary has no moment after its last
//! test. The process starts the market when the first test opens it, and ends it when the pipe to the test binary breaks:
//! at the end of that binary, however it came.

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

/// The things that a shared market has when its first test opens it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The settings of its processes.
    pub options: Options,
    workers: Vec<(String, Vec<String>)>,
    jobs: u32,
    history: Option<u64>,
}

impl Plan {
    /// A market whose processes have these settings.
    #[must_use]
    pub fn with(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// Adds a worker.
    #[must_use]
    pub fn worker(mut self, name: &str, arguments: &[&str]) -> Self {
        self.workers.push((name.to_owned(), arguments.iter().map(ToString::to_string).collect()));
        self
    }

    /// Runs so many jobs of the consumer that end at once.
    #[must_use]
    pub fn jobs(mut self, jobs: u32) -> Self {
        self.jobs = jobs;
        self
    }

    /// Writes a log of so many events, in which the services decide nothing more.
    #[must_use]
    pub fn history(mut self, events: u64) -> Self {
        self.history = Some(events);
        self
    }

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

/// The process that holds the market, and the market as that process described it.
struct Host {
    market: String,
    _child: Child,
    /// The pipe whose end is the end of the market.
    _pipe: ChildStdin,
}

impl Shared {
    /// A market that is started as planned when the first test opens it.
    #[must_use]
    pub const fn new(plan: fn() -> Plan) -> Self {
        Self { plan, host: OnceLock::new() }
    }

    /// Opens the market for one test. Its consumer is the test's own, and has $100 of play money.
    pub async fn open(&self) -> anyhow::Result<Market> {
        let mut market = self.open_as_is()?;
        market.web = market.newcomer().await?;
        Ok(market)
    }

    /// Opens the market with the consumer that it was started with: where every event would disturb other tests, or where
    /// no service is left to take in another consumer.
    pub fn open_as_is(&self) -> anyhow::Result<Market> {
        let started = || Host::start(&(self.plan)()).map_err(|e| format!("{e:#}"));
        let host = self.host.get_or_init(started).as_ref().map_err(|why| anyhow::anyhow!("no shared market: {why}"))?;
        Ok(serde_json::from_str(&host.market)?)
    }
}

impl Host {
    fn start(plan: &Plan) -> anyhow::Result<Self> {
        let mut child = Command::new(binary("gpubnb-test-market")?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting gpubnb-test-market")?;
        let mut pipe = child.stdin.take().context("a pipe to the shared market")?;
        let said = child.stdout.take().context("a pipe from the shared market")?;
        writeln!(pipe, "{}", serde_json::to_string(plan)?)?;
        let mut market = String::new();
        BufReader::new(said).read_line(&mut market)?;
        ensure!(!market.is_empty(), "it ended before it was ready; the reason stands in the output of the tests");
        Ok(Self { market, _child: child, _pipe: pipe })
    }
}

/// Holds a market for another process: reads its [`Plan`] from the standard input, starts and describes the market, and
/// ends it when the input ends.
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
