//! Double-entry bookkeeping: the postings of each event. Decisions, the projector's ledger and the operator's audit all
//! use these functions, so that their balances agree.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{event::Event, ids::AccountId, money::MicroUsd};

/// An account of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum LedgerAccount {
    /// Money that this account of the market can spend or withdraw.
    Available(AccountId),
    /// Money that is held for an account's unsettled jobs.
    Held(AccountId),
    /// Money of a payout that is requested and not yet paid.
    Payable(AccountId),
    /// The fees of the platform.
    Fees,
    /// Banks and cards outside the platform.
    External,
}

/// The error for a text that is not a ledger account.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a ledger account")]
pub struct BadLedgerAccount(String);

impl fmt::Display for LedgerAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available(id) => write!(f, "available:{id}"),
            Self::Held(id) => write!(f, "held:{id}"),
            Self::Payable(id) => write!(f, "payable:{id}"),
            Self::Fees => f.write_str("fees"),
            Self::External => f.write_str("external"),
        }
    }
}

impl From<LedgerAccount> for String {
    fn from(account: LedgerAccount) -> Self {
        account.to_string()
    }
}

impl FromStr for LedgerAccount {
    type Err = BadLedgerAccount;

    fn from_str(text: &str) -> Result<Self, BadLedgerAccount> {
        let bad = || BadLedgerAccount(text.chars().take(64).collect());
        let id = |id: &str| id.parse().map_err(|_| bad());
        match text.split_once(':') {
            Some(("available", rest)) => id(rest).map(Self::Available),
            Some(("held", rest)) => id(rest).map(Self::Held),
            Some(("payable", rest)) => id(rest).map(Self::Payable),
            None if text == "fees" => Ok(Self::Fees),
            None if text == "external" => Ok(Self::External),
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for LedgerAccount {
    type Error = BadLedgerAccount;

    fn try_from(text: String) -> Result<Self, BadLedgerAccount> {
        text.parse()
    }
}

/// One line of a set of postings whose sum is zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Posting {
    /// The ledger account.
    #[schema(value_type = String)]
    pub account: LedgerAccount,
    /// The amount that is added to the account; negative if money leaves the account.
    pub amount: MicroUsd,
}

/// The two postings of a transfer.
fn transfer(from: LedgerAccount, to: LedgerAccount, amount: MicroUsd) -> Vec<Posting> {
    vec![Posting { account: from, amount: -amount }, Posting { account: to, amount }]
}

/// The postings of an event. Their sum is zero. Most events have no postings.
pub fn postings(event: &Event) -> Vec<Posting> {
    use LedgerAccount::{Available, External, Fees, Held, Payable};
    match event {
        Event::FundsDeposited(e) => transfer(External, Available(e.account), e.amount),
        Event::JobSubmitted(e) => transfer(Available(e.account), Held(e.account), e.hold),
        Event::BatchSubmitted(e) => transfer(Available(e.account), Held(e.account), e.hold_of(e.tasks.count)),
        Event::BatchClosed(e) => transfer(Held(e.account), Available(e.account), e.released),
        Event::HoldReleased(e) => transfer(Held(e.account), Available(e.account), e.amount),
        Event::PayoutRequested(e) => transfer(Available(e.account), Payable(e.account), e.amount),
        Event::PayoutPaid(e) => transfer(Payable(e.account), External, e.amount),
        Event::PayoutFailed(e) => transfer(Payable(e.account), Available(e.account), e.amount),
        Event::AccountClosed(e) => transfer(Available(e.account), Fees, e.given_up),
        Event::Settled(e) => e.postings.clone(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::FundsDeposited, ids::CommandId};

    #[test]
    fn a_transfer_sums_to_zero_and_its_account_names_parse_back() {
        let account = AccountId::generate();
        let event = FundsDeposited { account, deposit: CommandId::generate(), amount: MicroUsd::dollars(3) }.into();
        let postings = postings(&event);
        assert_eq!(postings.iter().map(|p| p.amount).sum::<MicroUsd>(), MicroUsd::ZERO);
        for p in postings {
            assert_eq!(p.account.to_string().parse::<LedgerAccount>().unwrap(), p.account);
        }
    }
}
