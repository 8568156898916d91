//! Money: balances, statements, receipts, and what was settled day by day.

use gpubnb_events::{AccountId, Actor, JobId, Seq};
use gpubnb_model::{
    ledger::{self, Ledger},
    machines::{self, Machines},
    rows::{BalanceRow, DayRow, ReceiptRow, StatementRow},
};
use gpubnb_query::{
    request::{DaysOf, DaysQuery, StatementQuery},
    view::{Balance, Day, Page, Receipt, StatementLine},
};
use gpubnb_runtime::rpc::Failure;

use super::{ReadModels, broken};
use crate::serve::access::{may_see, not_found};

/// Most lines of a statement in one answer.
const MAX_STATEMENT: u32 = 500;
/// Most days in one answer.
const MAX_DAYS: u32 = 366;

impl ReadModels {
    pub(crate) fn balance(&self, actor: Actor, account: AccountId) -> Result<Balance, Failure> {
        if !may_see(actor, account) {
            return Err(not_found("account"));
        }
        let table = self.tables.of(&Ledger).map_err(broken)?;
        let row: Option<BalanceRow> = gpubnb_store::get(&table, &ledger::balance_key(account)).map_err(broken)?;
        Ok(row.unwrap_or_default().into())
    }

    pub(crate) fn statement(&self, actor: Actor, query: &StatementQuery) -> Result<Page<StatementLine>, Failure> {
        if !may_see(actor, query.account) {
            return Err(not_found("account"));
        }
        let table = self.tables.of(&Ledger).map_err(broken)?;
        let prefix = ledger::statement_prefix(query.account);
        let until = ledger::statement_key(query.account, query.before.unwrap_or(Seq(u64::MAX)));
        let limit = query.limit.clamp(1, MAX_STATEMENT) as usize;
        let mut rows: Vec<StatementLine> = Vec::new();
        for entry in table.range(prefix..until).rev().take(limit + 1) {
            let (key, bytes) = entry.map_err(broken)?;
            let row: StatementRow = gpubnb_store::decode(&key, &bytes).map_err(broken)?;
            rows.push(row.into());
        }
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|line| line.seq.to_string());
        Ok(Page { rows, next })
    }

    pub(crate) fn receipt(&self, actor: Actor, id: JobId) -> Result<Option<Receipt>, Failure> {
        self.job(actor, id)?;
        let table = self.tables.of(&Ledger).map_err(broken)?;
        let row: Option<ReceiptRow> = gpubnb_store::get(&table, &ledger::receipt_key(id)).map_err(broken)?;
        Ok(row.map(Into::into))
    }

    /// What was earned and spent day by day, the newest first.
    pub(crate) fn days(&self, actor: Actor, query: DaysQuery) -> Result<Vec<Day>, Failure> {
        let (table, prefix) = match query.of {
            DaysOf::Account(id) if may_see(actor, id) => (self.tables.of(&Ledger), ledger::days(id)),
            DaysOf::Machine(id) if self.machine_row(id)?.is_some_and(|m| may_see(actor, m.owner)) => {
                (self.tables.of(&Machines), machines::days(id))
            }
            DaysOf::Account(_) => return Err(not_found("account")),
            DaysOf::Machine(_) => return Err(not_found("machine")),
        };
        let table = table.map_err(broken)?;
        let rows = table.scan_prefix(prefix).rev().take(query.most.min(MAX_DAYS) as usize).map(|entry| {
            let (key, bytes) = entry?;
            gpubnb_store::decode::<DayRow>(&key, &bytes).map(Into::into)
        });
        rows.collect::<Result<_, _>>().map_err(broken)
    }
}
