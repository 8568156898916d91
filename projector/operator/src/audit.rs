//! `audit`: sums each account's postings from the events alone, and checks that the ledger balances after every event.

use std::{collections::BTreeMap, path::Path, time::Instant};

use gpubnb_events::{
    AccountId, Event, MicroUsd, Recorded, Seq,
    ledger::{LedgerAccount, postings},
};
use gpubnb_log::{Log, archive::ArchiveReader};
use gpubnb_projector::ops::invariants::Invariants;
use gpubnb_query::{request::LogPoint, view::ops::Violation};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::AuditArgs;
use crate::{
    STOPPED, print_result, seq_of_point,
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
    /// The balance of the external account, which stands for money outside the market.
    external: MicroUsd,
    /// The sum over all accounts, which must be zero.
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
        self.violations = self.invariants.violations().to_vec();
        if json {
            print_result(&serde_json::to_string(&self)?)?;
        } else {
            print_result(format_args!("{:<38} {:>16} {:>16} {:>16}", "account", "available", "held", "payable"))?;
            for (account, sums) in &self.accounts {
                let [available, held, payable] = [sums.available, sums.held, sums.payable].map(|m| m.to_string());
                print_result(format_args!(
                    "{account:<38} {available:>16} {held:>16} {payable:>16}",
                    account = account.to_string()
                ))?;
            }
            print_result(format_args!("\nfees {}   outside {}   total {}", self.fees, self.external, self.total))?;
            self.violations.iter().try_for_each(|v| print_result(format_args!("event {}: {}", v.seq, v.what)))?;
            print_result(format_args!(
                "{} events, {} settlements, up to event {}",
                self.events, self.settled, self.at
            ))?;
        }
        let balanced = self.total == MicroUsd::ZERO && self.violations.is_empty();
        anyhow::ensure!(balanced, "the ledger breaks its rules");
        Ok(())
    }
}

/// Audits an archive, without a broker.
pub(crate) fn audit_archive(args: &AuditArgs, directory: &Path, stop: &CancellationToken) -> anyhow::Result<()> {
    let reader = ArchiveReader::open(directory)?;
    let is_within = |recorded: &Recorded| match args.at {
        None => true,
        Some(LogPoint::Seq(seq)) => recorded.seq <= seq,
        Some(LogPoint::Time(time)) => recorded.at <= time,
    };
    let (mut ledger, began) = (LedgerAudit::default(), Instant::now());
    'parts: for part in &reader.manifest.parts {
        show_progress(&progress(began, ledger.at, reader.manifest.last));
        for raw in reader.messages(part)? {
            anyhow::ensure!(!stop.is_cancelled(), STOPPED);
            let recorded = raw?.decode();
            if !is_within(&recorded) {
                break 'parts;
            }
            ledger.apply(&recorded);
        }
    }
    ledger.report(args.json)
}

/// Audits the log.
pub(crate) async fn audit_log(log: &Log, args: &AuditArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let until = seq_of_point(log, args.at).await?;
    let mut ledger = LedgerAudit::default();
    fold(log, until, shutdown, async |recorded| {
        ledger.apply(&recorded);
        Ok(())
    })
    .await?;
    ledger.report(args.json)
}
