//! The rules of access. Every query asks here, and no other place hides anything.
//!
//! A thing that the actor may not see looks as if it did not exist: `NotFound`, never `Forbidden`.

use gpubnb_events::{AccountId, Actor, Refusal, RefusalKind};
use gpubnb_query::view::TrailEvent;
use gpubnb_runtime::rpc::Failure;
use serde_json::Value;

pub(crate) fn not_found(what: &str) -> Failure {
    Refusal::new("NotFound", RefusalKind::NotFound, format!("There is no such {what}.")).into()
}

/// True if an actor may see an account's own affairs. The account itself may, as may operators and the platform.
pub(super) fn may_see(actor: Actor, account: AccountId) -> bool {
    match actor {
        Actor::Account(id) => id == account,
        Actor::Operator(_) | Actor::Platform | Actor::Machine(_) => may_see_all(actor),
    }
}

/// True if an actor may see everything. Operators and the platform may.
pub(crate) fn may_see_all(actor: Actor) -> bool {
    matches!(actor, Actor::Operator(_) | Actor::Platform)
}

/// Redacts an event of a job for an account that earned by the job but did not submit it. The consumer's name, limit
/// and budget are removed. Of a bill's postings only those of the account itself and the platform's fee remain.
pub(super) fn without_the_consumer(actor: Actor, mut event: TrailEvent) -> TrailEvent {
    let Actor::Account(own) = actor else { return event };
    let own = own.to_string();
    if let Some(body) = event.body.as_object_mut() {
        body.remove("consumer");
        if let Some(metering) = body.get_mut("metering").and_then(Value::as_object_mut) {
            metering.remove("limit");
            metering.remove("budget");
        }
        if let Some(postings) = body.get_mut("postings").and_then(Value::as_array_mut) {
            postings.retain(|p| p["account"].as_str().is_some_and(|a| a.contains(&own) || a == "fees"));
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use gpubnb_model::testing::account;
    use serde_json::json;

    use super::*;

    fn event(body: Value) -> TrailEvent {
        let text = String::new;
        TrailEvent {
            seq: gpubnb_events::Seq(1),
            recorded_at: gpubnb_events::Timestamp::from_millis(0),
            event: text(),
            wire_name: text(),
            actor: text(),
            cause: None,
            job: None,
            body,
        }
    }

    #[test]
    fn a_bill_without_the_consumer_keeps_what_is_the_providers() {
        let (consumer, provider) = (account(1), account(2));
        let posting = |account: String, amount: i64| json!({ "account": account, "amount": amount });
        let bill = event(json!({
            "consumer": consumer,
            "provider": provider,
            "metering": { "broker": 3, "worker": 2, "limit": 600, "budget": 500, "billed": 2 },
            "earned": 9,
            "postings": [
                posting(format!("held:{consumer}"), -100),
                posting(format!("available:{consumer}"), 90),
                posting(format!("available:{provider}"), 9),
                posting("fees".to_owned(), 1),
            ],
        }));
        let redacted = without_the_consumer(Actor::Account(provider), bill.clone()).body;
        let expected = json!({
            "provider": provider,
            "metering": { "broker": 3, "worker": 2, "billed": 2 },
            "earned": 9,
            "postings": [posting(format!("available:{provider}"), 9), posting("fees".to_owned(), 1)],
        });
        assert_eq!(redacted, expected);
        assert_eq!(without_the_consumer(Actor::Platform, bill.clone()), bill);
    }

    #[test]
    fn only_the_account_itself_and_those_who_see_everything_see_an_accounts_affairs() {
        let own = account(1);
        assert!(may_see(Actor::Account(own), own) && may_see(Actor::Operator(None), own));
        assert!(may_see(Actor::Operator(Some(account(2))), own) && may_see(Actor::Platform, own));
        assert!(!may_see(Actor::Account(account(2)), own));
        assert!(!may_see(Actor::Machine(gpubnb_model::testing::machine(1)), own));
    }
}
