//! `what-if`: folds an archive of the log with other prices, another fee or another rule of placement, and computes the
//! difference to what happened. No command is decided and no event is appended.
//!
//! Everything that cannot be known stays as it was: a job runs as long on another machine as it did on its own, and
//! consumers submit the same jobs at any price.

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
    /// The platform's share, in ten-thousandths. Default: as it was.
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

/// The difference between the real market and the other one.
#[derive(Debug, Default, Serialize)]
pub struct Difference {
    /// The number of settlements.
    pub settled: u64,
    /// The sums in the real market.
    pub then: SettlementTotals,
    /// The sums in the other market.
    pub now: SettlementTotals,
    /// The number of assignments.
    pub assigned: u64,
    /// The number of assignments that would have gone to another machine.
    pub moved: u64,
    /// Jobs that their budget would have ended earlier.
    pub cut_short: u64,
    /// The difference in the number of attempts of each machine.
    pub attempts: BTreeMap<MachineId, i64>,
}

/// Folds the log and computes the other market beside it.
struct Replay<'a> {
    args: &'a WhatIfArgs,
    world: World,
    settings: Settings,
    /// The terms that each job would have had.
    terms: BTreeMap<JobId, Terms>,
    difference: Difference,
}

impl Replay<'_> {
    fn apply(&mut self, recorded: &Recorded) {
        match recorded.event() {
            // The machine was chosen from the state before this event.
            Some(Event::JobAssigned(e)) => self.assigned(e, recorded),
            Some(Event::Settled(e)) => self.settled(e),
            _ => {}
        }
        self.world.apply(recorded, &self.settings);
    }

    fn assigned(&mut self, e: &JobAssigned, recorded: &Recorded) {
        self.difference.assigned += 1;
        let other = self.args.placement.and_then(|strategy| {
            let job = self.world.job(e.job)?;
            // Who named a machine goes on to have it.
            let asked = Placement { strategy, ..job.placement.clone() };
            let request = placement::Request { spec: &job.spec, placement: &asked, avoid: &job.avoid };
            let machine = placement::choose(&self.world, &request, recorded.at).machine?;
            let offer = self.world.machine(machine)?;
            (machine != e.machine)
                .then(|| (machine, Terms { price: offer.offer.price, provider: offer.owner, ..e.terms.clone() }))
        });
        let mut terms = e.terms.clone();
        if let Some((machine, theirs)) = other {
            self.difference.moved += 1;
            *self.difference.attempts.entry(machine).or_default() += 1;
            *self.difference.attempts.entry(e.machine).or_default() -= 1;
            terms = theirs;
        }
        let percent = |amount: MicroUsd| amount.share(self.args.price.saturating_mul(100));
        terms.price = HourlyRate(percent(terms.price.0));
        terms.fee_basis_points = self.args.fee.unwrap_or(terms.fee_basis_points);
        self.terms.insert(e.job, terms);
    }

    fn settled(&mut self, e: &Settled) {
        self.difference.settled += 1;
        self.difference.then.add(e.cost, e.fee);
        let (Some(terms), Some(metering)) = (self.terms.remove(&e.job), &e.metering) else { return };
        // The time that the job ran, without the limit of its budget: the budget limits the cost below.
        let ran = [Some(metering.broker), metering.worker, Some(metering.limit)].into_iter().flatten().min();
        let hold = self.world.job(e.job).map_or(e.cost, |job| job.hold);
        let whole = terms.price.cost_of(ran.unwrap_or(metering.billed));
        if whole > hold && metering.budget.is_none_or(|budget| metering.billed < budget) {
            self.difference.cut_short += 1;
        }
        let cost = whole.min(hold);
        self.difference.now.add(cost, cost.share(terms.fee_basis_points));
    }
}

/// Shows the progress, if a person looks on.
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
    let mut other = Replay { args, world, settings, terms: BTreeMap::new(), difference: Difference::default() };
    let mut leaves = reader.leaves()?;
    for part in &reader.manifest.parts {
        show_progress(other.world.applied(), reader.manifest.last);
        for raw in reader.lines(part)? {
            anyhow::ensure!(!stop.is_cancelled(), "stopped");
            let recorded = raw?.read();
            // An archive that was changed is no history: nothing can be learnt from it.
            anyhow::ensure!(
                leaves.next() == Some(recorded.leaf),
                "event {} is not what was exported: see `gpubnb-projector verify --archive`",
                recorded.seq
            );
            other.apply(&recorded);
        }
    }
    let d = other.difference;
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
