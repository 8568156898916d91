//! `what-if`: folds an archive of the log with other prices, another fee or another strategy of placement. Prints how
//! the sums of this simulated market differ from those of the real market. Decides no command and appends no event.
//!
//! Two assumptions: a job runs equally long on every machine, and consumers submit the same jobs at any price.

use std::{collections::BTreeMap, io::IsTerminal as _, path::PathBuf};

use clap::Args;
use gpubnb_domain::{Settings, World, placement};
use gpubnb_events::{
    Event, HourlyRate, JobId, MachineId, MicroUsd, Recorded, Seq,
    event::{JobAssigned, Settled},
    spec::{Placement, Strategy, Terms},
};
use gpubnb_log::archive::ArchiveReader;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// Options of `what-if`.
#[derive(Debug, Clone, Args)]
pub struct WhatIfArgs {
    /// Directory of the archive, as `gpubnb-projector export` writes it.
    #[arg(value_name = "DIR")]
    pub archive: PathBuf,
    /// The platform's share, in ten-thousandths. Default: the real share.
    #[arg(long, value_name = "BASIS_POINTS")]
    pub fee: Option<u32>,
    /// All prices, in percent of the real prices.
    #[arg(long, value_name = "PERCENT", default_value_t = 100)]
    pub price: u32,
    /// The strategy of placement for jobs that named no machine. Default: the strategy that each job asked for.
    #[arg(long, value_name = "STRATEGY")]
    pub placement: Option<Strategy>,
    /// Prints one JSON object, for programs.
    #[arg(long)]
    pub json: bool,
}

/// The sums over all settlements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SettlementTotals {
    /// The money that consumers paid.
    pub cost: MicroUsd,
    /// The money that the platform kept.
    pub fee: MicroUsd,
    /// The money that providers earned.
    pub earned: MicroUsd,
}

impl SettlementTotals {
    fn add(&mut self, cost: MicroUsd, fee: MicroUsd) {
        self.cost += cost;
        self.fee += fee;
        self.earned += cost - fee;
    }
}

/// The difference between the real market and the simulated market.
#[derive(Debug, Default, Serialize)]
pub struct Difference {
    /// The number of settlements.
    pub settled: u64,
    /// The sums in the real market.
    pub then: SettlementTotals,
    /// The sums in the simulated market.
    pub now: SettlementTotals,
    /// The number of assignments.
    pub assigned: u64,
    /// The number of assignments to another machine than in the real market.
    pub moved: u64,
    /// The number of jobs that would have ended earlier, because their budget was used up.
    pub cut_short: u64,
    /// The number of attempts that each machine would have had more (positive) or less (negative).
    pub attempts: BTreeMap<MachineId, i64>,
}

/// The fold of the real market, and the simulated market beside it.
struct Replay<'a> {
    args: &'a WhatIfArgs,
    world: World,
    settings: Settings,
    /// The terms of each job in the simulated market, until the job is settled.
    terms: BTreeMap<JobId, Terms>,
    difference: Difference,
}

impl Replay<'_> {
    fn apply(&mut self, recorded: &Recorded) {
        match recorded.event() {
            // Choose the machine from the state before this event, as the market did.
            Some(Event::JobAssigned(e)) => self.simulate_assignment(e, recorded),
            Some(Event::Settled(e)) => self.simulate_settlement(e),
            _ => {}
        }
        self.world.apply(recorded, &self.settings);
    }

    fn simulate_assignment(&mut self, e: &JobAssigned, recorded: &Recorded) {
        self.difference.assigned += 1;
        let other = self.args.placement.and_then(|strategy| {
            let job = self.world.job(e.job)?;
            // A job that named a machine keeps this machine.
            let wanted = Placement { strategy, ..job.placement.clone() };
            let request = placement::Request { placement: &wanted, not_before: None, ..placement::Request::of(job) };
            let machine = placement::choose(&self.world, &request, recorded.at).machine?;
            let offer = self.world.machine(machine)?;
            (machine != e.machine)
                .then(|| (machine, Terms { price: offer.offer.price, provider: offer.owner, ..e.terms.clone() }))
        });
        let mut terms = e.terms.clone();
        if let Some((machine, new_terms)) = other {
            self.difference.moved += 1;
            *self.difference.attempts.entry(machine).or_default() += 1;
            *self.difference.attempts.entry(e.machine).or_default() -= 1;
            terms = new_terms;
        }
        let percent = |amount: MicroUsd| amount.share(self.args.price.saturating_mul(100));
        terms.price = HourlyRate(percent(terms.price.0));
        terms.fee_basis_points = self.args.fee.unwrap_or(terms.fee_basis_points);
        self.terms.insert(e.job, terms);
    }

    fn simulate_settlement(&mut self, e: &Settled) {
        self.difference.settled += 1;
        self.difference.then.add(e.cost, e.fee);
        let (Some(terms), Some(metering)) = (self.terms.remove(&e.job), &e.metering) else { return };
        // The run time without the limit of the budget: the budget limits the cost below.
        let run_time = [Some(metering.broker), metering.worker, Some(metering.limit)].into_iter().flatten().min();
        let hold = self.world.job(e.job).map_or(e.cost, |job| job.hold);
        let full_cost = terms.price.cost_of(run_time.unwrap_or(metering.billed));
        if full_cost > hold && metering.budget.is_none_or(|budget| metering.billed < budget) {
            self.difference.cut_short += 1;
        }
        let cost = full_cost.min(hold);
        self.difference.now.add(cost, cost.share(terms.fee_basis_points));
    }
}

/// Shows the progress, if standard error is a terminal.
fn show_progress(at: Seq, last: Seq) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{:>3} %   \r", (at.0 * 100).checked_div(last.0).unwrap_or(100));
    }
}

/// Runs `what-if` and prints the difference.
pub fn what_if(args: &WhatIfArgs, stop: &CancellationToken) -> anyhow::Result<()> {
    anyhow::ensure!(args.fee.is_none_or(|fee| fee <= 10_000), "the platform's share is at most 10000 ten-thousandths");
    let reader = ArchiveReader::open(&args.archive)?;
    let (world, settings) = (World::default(), Settings::default());
    let mut replay = Replay { args, world, settings, terms: BTreeMap::new(), difference: Difference::default() };
    let mut leaves = reader.leaves()?;
    for part in &reader.manifest.parts {
        show_progress(replay.world.applied(), reader.manifest.last);
        for raw in reader.messages(part)? {
            anyhow::ensure!(!stop.is_cancelled(), "stopped");
            let recorded = raw?.decode();
            // A changed archive is not the real history: stop.
            anyhow::ensure!(
                leaves.next() == Some(recorded.leaf),
                "event {} is not what was exported: see `gpubnb-projector verify --archive`",
                recorded.seq
            );
            replay.apply(&recorded);
        }
    }
    let d = replay.difference;
    if args.json {
        println!("{}", serde_json::to_string(&d)?);
        return Ok(());
    }
    println!("{:<10} {:>16} {:>16} {:>16}", "", "as it was", "what if", "difference");
    let line = |name: &str, then: MicroUsd, now: MicroUsd| {
        println!("{name:<10} {:>16} {:>16} {:>16}", then.to_string(), now.to_string(), (now - then).to_string());
    };
    line("paid", d.then.cost, d.now.cost);
    line("fees", d.then.fee, d.now.fee);
    line("earned", d.then.earned, d.now.earned);
    println!(
        "{} settlements; {} of {} assignments elsewhere; {} jobs that their budget would have cut short",
        d.settled, d.moved, d.assigned, d.cut_short
    );
    for (machine, attempts) in d.attempts.iter().filter(|(_, attempts)| **attempts != 0) {
        println!("{machine} {attempts:+} attempts");
    }
    Ok(())
}
