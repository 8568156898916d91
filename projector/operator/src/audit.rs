//! `audit`: sums the ledger, account by account, from the events alone, and checks that it balances after every event.

use std::{collections::BTreeMap, path::Path, time::Instant};

use gpubnb_events::{
    AccountId, Event, MicroUsd, Recorded, Seq,
    ledger::{LedgerAccount, postings},
};
use gpubnb_log::{Log, archive::ArchiveReader};
use gpubnb_projector::ops::invariants::Invariants;
use gpubnb_query::{request::Point, view::ops::Violation};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::AuditArgs;
use crate::{
    STOPPED, point, tell,
    trail::fold,
    work::{progress, show_progress},
};

/// The sums of an account's postings.
#[derive(Default, Serialize)]
struct AccountSums {
    available: MicroUsd,
    held: MicroUsd,
    payable: MicroUsd,
}

/// The audit of a ledger. With `--json`, these fields are printed.
#[derive(Default, Serialize)]
struct LedgerAudit {
    at: Seq,
    events: u64,
    settled: u64,
    accounts: BTreeMap<AccountId, AccountSums>,
    fees: MicroUsd,
    /// The balance of the world outside: the other sums together, negated.
    external: MicroUsd,
    /// The sum of everything, which must be zero.
    total: MicroUsd,
    violations: Vec<Violation>,
    #[serde(skip)]
    invariants: Invariants,
}

impl LedgerAudit {
    fn apply(&mut self, recorded: &Recorded) {
        (self.at, self.events) = (recorded.seq, self.events + 1);
        let Some(event) = recorded.event() else { return };
        self.invariants.apply(recorded.seq, event);
        self.settled += u64::from(matches!(event, Event::Settled(_)));
        for posting in postings(event) {
            *(match posting.account {
                LedgerAccount::Available(id) => &mut self.accounts.entry(id).or_default().available,
                LedgerAccount::Held(id) => &mut self.accounts.entry(id).or_default().held,
                LedgerAccount::Payable(id) => &mut self.accounts.entry(id).or_default().payable,
                LedgerAccount::Fees => &mut self.fees,
                LedgerAccount::External => &mut self.external,
            }) += posting.amount;
            self.total += posting.amount;
        }
    }

    fn report(mut self, json: bool) -> anyhow::Result<()> {
        self.violations = self.invariants.found().to_vec();
        if json {
            tell(&serde_json::to_string(&self)?)?;
        } else {
            tell(format_args!("{:<38} {:>16} {:>16} {:>16}", "account", "available", "held", "payable"))?;
            for (account, sums) in &self.accounts {
                let [available, held, payable] = [sums.available, sums.held, sums.payable].map(|m| m.to_string());
                tell(format_args!(
                    "{account:<38} {available:>16} {held:>16} {payable:>16}",
                    account = account.to_string()
                ))?;
            }
            tell(format_args!("\nfees {}   outside {}   total {}", self.fees, self.external, self.total))?;
            self.violations.iter().try_for_each(|v| tell(format_args!("event {}: {}", v.seq, v.what)))?;
            tell(format_args!("{} events, {} settlements, up to event {}", self.events, self.settled, self.at))?;
        }
        let balanced = self.total == MicroUsd::ZERO && self.violations.is_empty();
        anyhow::ensure!(balanced, "the ledger is not what it must be");
        Ok(())
    }
}

/// Audits an archive, without a broker.
pub(crate) fn archive(args: &AuditArgs, directory: &Path, stop: &CancellationToken) -> anyhow::Result<()> {
    let reader = ArchiveReader::open(directory)?;
    let within = |recorded: &Recorded| match args.at {
        None => true,
        Some(Point::Seq(seq)) => recorded.seq <= seq,
        Some(Point::Time(time)) => recorded.at <= time,
    };
    let (mut ledger, began) = (LedgerAudit::default(), Instant::now());
    'parts: for part in &reader.manifest.parts {
        show_progress(&progress(began, ledger.at, reader.manifest.last));
        for raw in reader.lines(part)? {
            anyhow::ensure!(!stop.is_cancelled(), STOPPED);
            let recorded = raw?.read();
            if !within(&recorded) {
                break 'parts;
            }
            ledger.apply(&recorded);
        }
    }
    ledger.report(args.json)
}

/// Audits the log.
pub(crate) async fn log(log: &Log, args: &AuditArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let until = point(log, args.at).await?;
    let mut ledger = LedgerAudit::default();
    fold(log, until, shutdown, async |recorded| {
        ledger.apply(&recorded);
        Ok(())
    })
    .await?;
    ledger.report(args.json)
}
