//! The queries about money: an account's balance, its statement (a line for each event that changed the balance), a
//! job's receipt, and the sums of each day.

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
use gpubnb_runtime::rpc::RpcError;

use super::{ReadModels, store_failure};
use crate::serve::access::{may_see, not_found};

/// The most lines of a statement in one answer.
const MAX_STATEMENT: u32 = 500;
/// The most days in one answer.
const MAX_DAYS: u32 = 366;

impl ReadModels {
    pub(crate) fn balance(&self, actor: Actor, account: AccountId) -> Result<Balance, RpcError> {
        if !may_see(actor, account) {
            return Err(not_found("account"));
        }
        let table = self.tables.of(&Ledger).map_err(store_failure)?;
        let row: Option<BalanceRow> =
            gpubnb_store::get(&table, &ledger::balance_key(account)).map_err(store_failure)?;
        Ok(row.unwrap_or_default().into())
    }

    pub(crate) fn statement(&self, actor: Actor, query: &StatementQuery) -> Result<Page<StatementLine>, RpcError> {
        if !may_see(actor, query.account) {
            return Err(not_found("account"));
        }
        let table = self.tables.of(&Ledger).map_err(store_failure)?;
        let prefix = ledger::statement_prefix(query.account);
        let until = ledger::statement_key(query.account, query.before.unwrap_or(Seq(u64::MAX)));
        let limit = query.limit.clamp(1, MAX_STATEMENT) as usize;
        let mut rows: Vec<StatementLine> = Vec::new();
        for entry in table.range(prefix..until).rev().take(limit + 1) {
            let (key, bytes) = entry.map_err(store_failure)?;
            let row: StatementRow = gpubnb_store::decode(&key, &bytes).map_err(store_failure)?;
            rows.push(row.into());
        }
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|line| line.seq.to_string());
        Ok(Page { rows, next })
    }

    pub(crate) fn receipt(&self, actor: Actor, id: JobId) -> Result<Option<Receipt>, RpcError> {
        self.job(actor, id)?;
        let table = self.tables.of(&Ledger).map_err(store_failure)?;
        let row: Option<ReceiptRow> = gpubnb_store::get(&table, &ledger::receipt_key(id)).map_err(store_failure)?;
        Ok(row.map(Into::into))
    }

    /// The days on which jobs of an account or on a machine were settled, newest first.
    pub(crate) fn days(&self, actor: Actor, query: DaysQuery) -> Result<Vec<Day>, RpcError> {
        let (table, prefix) = match query.of {
            DaysOf::Account(id) if may_see(actor, id) => (self.tables.of(&Ledger), ledger::days_prefix(id)),
            DaysOf::Machine(id)
                if actor == Actor::Machine(id) || self.machine_row(id)?.is_some_and(|m| may_see(actor, m.owner)) =>
            {
                (self.tables.of(&Machines), machines::days_prefix(id))
            }
            DaysOf::Account(_) => return Err(not_found("account")),
            DaysOf::Machine(_) => return Err(not_found("machine")),
        };
        let table = table.map_err(store_failure)?;
        let rows = table.scan_prefix(prefix).rev().take(query.most.min(MAX_DAYS) as usize).map(|entry| {
            let (key, bytes) = entry?;
            gpubnb_store::decode::<DayRow>(&key, &bytes).map(Into::into)
        });
        rows.collect::<Result<_, _>>().map_err(store_failure)
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::MicroUsd;
    use gpubnb_model::testing::{COST, DAY, EARNED, FIRST_DAY, History, account, job, machine};

    use super::*;
    use crate::serve::read::expect_refusal;

    const NO_ACCOUNT: &str = "NotFound: There is no such account.";

    fn actor(number: u16) -> Actor {
        Actor::Account(account(number))
    }

    fn deposits(number: usize) -> ReadModels {
        let mut history = History::default();
        for _ in 0..number {
            history.deposited(account(1), MicroUsd(1));
        }
        ReadModels::from_history(&history)
    }

    fn statement(read: &ReadModels, before: Option<u64>, limit: u32) -> (Vec<u64>, Option<String>) {
        let query = StatementQuery { account: account(1), before: before.map(Seq), limit };
        let page = read.statement(actor(1), &query).unwrap();
        (page.rows.iter().map(|line| line.seq.0).collect(), page.next)
    }

    #[test]
    fn the_pages_of_a_statement_are_newest_first() {
        let read = deposits(5);
        assert_eq!(statement(&read, None, 2), (vec![5, 4], Some("4".to_owned())));
        assert_eq!(statement(&read, Some(4), 2), (vec![3, 2], Some("2".to_owned())));
        assert_eq!(statement(&read, Some(2), 2), (vec![1], None));
        assert_eq!(statement(&read, Some(1), 2), (vec![], None));
        assert_eq!(statement(&read, Some(99), 5), (vec![5, 4, 3, 2, 1], None), "a full page can be the last page");
    }

    #[test]
    fn a_page_of_a_statement_has_between_1_and_500_lines() {
        let read = deposits(501);
        let (rows, next) = statement(&read, None, u32::MAX);
        assert_eq!((rows.len(), next.as_deref()), (500, Some("2")));
        assert_eq!(statement(&read, None, 0), (vec![501], Some("501".to_owned())));
    }

    #[test]
    fn an_account_without_postings_has_a_zero_balance_and_empty_lists() {
        let read = deposits(0);
        assert_eq!(statement(&read, None, 10), (vec![], None));
        assert_eq!(read.balance(actor(1), account(1)).unwrap(), Balance::default());
        let days = DaysQuery { of: DaysOf::Account(account(1)), most: 10 };
        assert_eq!(read.days(actor(1), days).unwrap(), []);
    }

    #[test]
    fn another_accounts_money_is_answered_like_a_missing_account() {
        let mut history = History::default();
        history.deposited(account(1), MicroUsd(1));
        history.listed(account(1), machine(1));
        history.whole_job(job(1), account(1), (account(1), machine(1)));
        let read = ReadModels::from_history(&history);
        for owner in [account(1), account(9)] {
            assert_eq!(expect_refusal(read.balance(actor(2), owner)), NO_ACCOUNT);
            let query = StatementQuery { account: owner, before: None, limit: 10 };
            assert_eq!(expect_refusal(read.statement(actor(2), &query)), NO_ACCOUNT);
            let days = DaysQuery { of: DaysOf::Account(owner), most: 10 };
            assert_eq!(expect_refusal(read.days(actor(2), days)), NO_ACCOUNT);
        }
        let days = |machine| DaysQuery { of: DaysOf::Machine(machine), most: 10 };
        assert_eq!(
            expect_refusal(read.days(actor(2), days(machine(1)))),
            expect_refusal(read.days(actor(2), days(machine(9))))
        );
        let own = read.days(Actor::Machine(machine(1)), days(machine(1))).unwrap();
        assert_eq!(own[0].earned, EARNED, "a machine sees what it earned itself");
        assert!(read.days(Actor::Machine(machine(2)), days(machine(1))).is_err());
        assert_eq!(expect_refusal(read.receipt(actor(2), job(1))), expect_refusal(read.receipt(actor(2), job(9))));
        assert!(read.receipt(Actor::Operator(None), job(1)).unwrap().is_some());
    }

    #[test]
    fn a_job_has_a_receipt_after_it_is_settled() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.completed(job(1), lease);
        assert_eq!(ReadModels::from_history(&history).receipt(actor(1), job(1)).unwrap(), None);
        let seq = history.settled(job(1), account(1), Some((account(2), lease)));
        let read = ReadModels::from_history(&history);
        let receipt = read.receipt(actor(1), job(1)).unwrap().unwrap();
        assert_eq!((receipt.seq, receipt.settled.cost), (seq, COST));
        // The receipt is for the consumer only. The provider sees the earnings in the provider's own statement.
        assert!(read.receipt(actor(2), job(1)).is_err());
    }

    #[test]
    fn days_are_newest_first_and_at_most_the_requested_number() {
        let mut history = History::default();
        history.listed(account(2), machine(1));
        for number in 1..=3 {
            history.whole_job(job(number), account(1), (account(2), machine(1)));
            history.advance_time(DAY);
        }
        let read = ReadModels::from_history(&history);
        let days = |of, most| read.days(actor(2), DaysQuery { of, most }).unwrap();
        for of in [DaysOf::Account(account(2)), DaysOf::Machine(machine(1))] {
            let numbers = |most| days(of, most).iter().map(|day| day.day - FIRST_DAY).collect::<Vec<_>>();
            assert_eq!((numbers(2), numbers(u32::MAX), numbers(0)), (vec![2, 1], vec![2, 1, 0], vec![]));
            assert_eq!(days(of, 1)[0].earned, EARNED);
        }
    }
}
