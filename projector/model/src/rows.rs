//! The rows of the models, which are stored as JSON, and their conversion into views (`gpubnb_query::view`), the
//! answers to queries.
//!
//! A change of a row needs a new version of the projection that writes the row. A change of a view does not. Each
//! conversion names every field of the row and of the view, so the compiler reports a missing field.

#![allow(missing_docs, reason = "each field is documented in the view of the same row")]

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, BatchId, HourlyRate, JobId, Lease, MachineId, MicroUsd, Millis, Seq, Timestamp,
    event::{Check, Fault, Reason, Settled},
    signed_log::SignedLog,
    spec::{
        Artifact, JobSpec, LeftOut, Limits, MachineSettings, Offer, Placement, PlacementExplanation, Terms, Traffic,
    },
};
use gpubnb_query::view::{
    AttemptView, Balance, Day, Figures, JobState, JobView, LastFault, ListedMachine, MachineState, MarketDay,
    ModelHour, Receipt, StatementLine, ops::LedgerSums,
};
use serde::{Deserialize, Serialize};

/// The stored form of [`JobView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    pub job: JobId,
    pub account: AccountId,
    pub spec: JobSpec,
    pub placement: Placement,
    pub limits: Limits,
    pub hold: MicroUsd,
    pub state: JobState,
    pub settled: bool,
    pub cancel_requested: bool,
    pub reason: Option<Reason>,
    pub fault: Option<Fault>,
    #[serde(default)]
    pub detail: String,
    pub attempts: Vec<AttemptRow>,
    #[serde(default)]
    pub outputs: Vec<Artifact>,
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    #[serde(default)]
    pub traffic: Option<Traffic>,
    pub signature: Option<String>,
    #[serde(default)]
    pub log: Option<SignedLog>,
    pub submitted_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub exited_at: Option<Timestamp>,
    pub retry_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub cost: Option<MicroUsd>,
    pub fee: Option<MicroUsd>,
    pub earned: Option<MicroUsd>,
    pub seq: Seq,
}

/// The stored form of [`AttemptView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRow {
    pub lease: Lease,
    pub machine: MachineId,
    pub terms: Terms,
    pub placement: PlacementExplanation,
    pub assigned_at: Timestamp,
    #[serde(default)]
    pub image_digest: Option<String>,
    #[serde(default)]
    pub ended: Option<String>,
}

/// The stored form of [`ListedMachine`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRow {
    pub machine: MachineId,
    pub owner: AccountId,
    pub public_keys: Vec<String>,
    pub offer: Offer,
    /// The settings that the owner asked for, while the machine has not taken them.
    #[serde(default)]
    pub requested: Option<MachineSettings>,
    pub wanted: MachineState,
    #[serde(default)]
    pub away: bool,
    #[serde(default)]
    pub trouble: Option<FaultRow>,
    pub presence: MachineState,
    #[serde(default)]
    pub checks: Vec<Check>,
    pub listed_at: Timestamp,
    pub running: Vec<JobId>,
    pub successes: u32,
    pub faults: BTreeMap<String, u32>,
    pub earned: MicroUsd,
    pub metered: Millis,
    pub seq: Seq,
}

/// The stored form of [`LastFault`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRow {
    pub job: JobId,
    pub reason: Reason,
    pub detail: String,
    pub at: Timestamp,
    pub seq: Seq,
}

/// The stored form of [`StatementLine`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementRow {
    pub seq: Seq,
    pub at: Timestamp,
    pub event: String,
    pub job: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    pub available: MicroUsd,
    pub held: MicroUsd,
    pub balance: MicroUsd,
}

/// The stored form of [`Balance`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceRow {
    pub available: MicroUsd,
    pub held: MicroUsd,
    pub payable: MicroUsd,
    pub spent: MicroUsd,
    pub earned: MicroUsd,
    #[serde(default)]
    pub suspended: bool,
}

/// The stored form of [`Day`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayRow {
    pub day: u32,
    pub spent: MicroUsd,
    pub earned: MicroUsd,
    pub metered: Millis,
    pub jobs: u32,
}

/// The stored form of [`Receipt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptRow {
    pub seq: Seq,
    pub at: Timestamp,
    pub terms: Option<Terms>,
    #[serde(flatten)]
    pub settled: Settled,
}

/// The stored form of [`Figures`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiguresRow {
    pub machines: u32,
    pub gpus: u32,
    pub queued: u32,
    pub active: u32,
    pub settled: u64,
    pub cost: MicroUsd,
    pub fees: MicroUsd,
    pub metered: Millis,
    pub cheapest: Option<HourlyRate>,
}

/// The stored form of [`ModelHour`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelHourRow {
    pub hour: u32,
    pub machines: u32,
    pub free: u32,
    pub lowest: Option<HourlyRate>,
    pub median: Option<HourlyRate>,
}

impl From<ModelHourRow> for ModelHour {
    fn from(row: ModelHourRow) -> Self {
        let ModelHourRow { hour, machines, free, lowest, median } = row;
        Self { hour, machines, free, lowest, median }
    }
}

/// The stored form of [`MarketDay`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarketDayRow {
    pub day: u32,
    pub submitted: u32,
    pub assigned: u32,
    pub waited: Millis,
    pub completed: u32,
    pub failed: u32,
    pub given_up: u32,
    pub cancelled: u32,
    pub settled: u32,
    pub slowest_bill: Millis,
    pub machine_faults: u32,
    pub machines_lost: u32,
}

impl From<MarketDayRow> for MarketDay {
    fn from(row: MarketDayRow) -> Self {
        let MarketDayRow { day, submitted, assigned, waited, completed, failed, given_up, cancelled, .. } = row;
        let MarketDayRow { settled, slowest_bill, machine_faults, machines_lost, .. } = row;
        Self {
            day,
            submitted,
            assigned,
            waited,
            completed,
            failed,
            given_up,
            cancelled,
            settled,
            slowest_bill,
            machine_faults,
            machines_lost,
        }
    }
}

/// The stored form of [`LedgerSums`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerSumsRow {
    pub accounts: u64,
    pub available: MicroUsd,
    pub held: MicroUsd,
    pub payable: MicroUsd,
    pub fees: MicroUsd,
    pub external: MicroUsd,
}

impl MachineRow {
    /// The machine's state, as the views show it.
    pub fn state(&self) -> MachineState {
        MachineState::from_facts(self.wanted, self.presence, self.away, self.running.is_empty())
    }
}

impl From<JobRow> for JobView {
    fn from(row: JobRow) -> Self {
        let JobRow {
            job,
            account,
            spec,
            placement,
            limits,
            hold,
            state,
            settled,
            cancel_requested,
            reason,
            fault,
            detail,
            attempts,
            outputs,
            left_out,
            traffic,
            signature,
            log,
            submitted_at,
            started_at,
            exited_at,
            retry_at,
            ended_at,
            cost,
            fee,
            earned,
            seq,
        } = row;
        Self {
            job,
            account,
            spec,
            placement,
            limits,
            hold,
            state,
            settled,
            cancel_requested,
            reason,
            fault,
            detail,
            attempts: attempts.into_iter().map(Into::into).collect(),
            outputs,
            left_out,
            traffic,
            signature,
            log,
            submitted_at,
            started_at,
            exited_at,
            retry_at,
            ended_at,
            cost,
            fee,
            earned,
            seq,
        }
    }
}

impl From<AttemptRow> for AttemptView {
    fn from(row: AttemptRow) -> Self {
        let AttemptRow { lease, machine, terms, placement, assigned_at, image_digest, ended } = row;
        Self { lease, machine, terms, placement, assigned_at, image_digest, ended }
    }
}

impl From<MachineRow> for ListedMachine {
    fn from(row: MachineRow) -> Self {
        let MachineRow {
            machine,
            owner,
            public_keys,
            offer,
            requested,
            wanted,
            away,
            trouble,
            presence,
            checks,
            listed_at,
            running,
            successes,
            faults,
            earned,
            metered,
            seq,
        } = row;
        Self {
            machine,
            owner,
            public_keys,
            offer,
            requested,
            wanted,
            away,
            trouble: trouble.map(Into::into),
            presence,
            checks,
            listed_at,
            running,
            successes,
            faults,
            earned,
            metered,
            seq,
        }
    }
}

impl From<FaultRow> for LastFault {
    fn from(row: FaultRow) -> Self {
        let FaultRow { job, reason, detail, at, seq } = row;
        Self { job, reason, detail, at, seq }
    }
}

impl From<StatementRow> for StatementLine {
    fn from(row: StatementRow) -> Self {
        let StatementRow { seq, at, event, job, batch, available, held, balance } = row;
        Self { seq, at, event, job, batch, available, held, balance }
    }
}

impl From<BalanceRow> for Balance {
    fn from(row: BalanceRow) -> Self {
        let BalanceRow { available, held, payable, spent, earned, suspended } = row;
        Self { available, held, payable, spent, earned, suspended }
    }
}

impl From<DayRow> for Day {
    fn from(row: DayRow) -> Self {
        let DayRow { day, spent, earned, metered, jobs } = row;
        Self { day, spent, earned, metered, jobs }
    }
}

impl From<ReceiptRow> for Receipt {
    fn from(row: ReceiptRow) -> Self {
        let ReceiptRow { seq, at, terms, settled } = row;
        Self { seq, at, terms, settled }
    }
}

impl From<FiguresRow> for Figures {
    fn from(row: FiguresRow) -> Self {
        let FiguresRow { machines, gpus, queued, active, settled, cost, fees, metered, cheapest } = row;
        Self { machines, gpus, queued, active, settled, cost, fees, metered, cheapest }
    }
}

impl From<LedgerSumsRow> for LedgerSums {
    fn from(row: LedgerSumsRow) -> Self {
        let LedgerSumsRow { accounts, available, held, payable, fees, external } = row;
        Self { accounts, available, held, payable, fees, external }
    }
}
