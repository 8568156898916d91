//! The access rules of all queries. An actor is the account, machine or operator that sends a query.
//!
//! A query for a thing that the actor may not see is answered like a query for a thing that does not exist: with
//! `NotFound`, never with `Forbidden`.

use gpubnb_events::{AccountId, Actor, Refusal, RefusalKind};
use gpubnb_query::view::TrailEvent;
use gpubnb_runtime::rpc::RpcError;
use serde_json::Value;

/// The refusal for a thing that does not exist or that the actor may not see. `what` is the kind of thing, such as
/// `job`.
pub(crate) fn not_found(what: &str) -> RpcError {
    Refusal::new("NotFound", RefusalKind::NotFound, format!("There is no such {what}.")).into()
}

/// True if an actor may see an account's jobs and money: the account itself, operators, and the platform.
pub(super) fn may_see(actor: Actor, account: AccountId) -> bool {
    match actor {
        Actor::Account(id) => id == account,
        Actor::Operator(_) | Actor::Platform | Actor::Machine(_) => may_see_all(actor),
    }
}

/// True if an actor may see everything: operators and the platform.
pub(crate) fn may_see_all(actor: Actor) -> bool {
    matches!(actor, Actor::Operator(_) | Actor::Platform)
}

/// Removes the consumer's data from an event of a job, for the provider whose machine ran the job: the consumer's
/// account, limit and budget. Of the postings of a bill, only the provider's own postings and the platform's fee
/// remain.
pub(super) fn redact_consumer(actor: Actor, mut event: TrailEvent) -> TrailEvent {
    let Actor::Account(provider) = actor else { return event };
    let provider = provider.to_string();
    if let Some(body) = event.body.as_object_mut() {
        body.remove("consumer");
        if let Some(metering) = body.get_mut("metering").and_then(Value::as_object_mut) {
            metering.remove("limit");
            metering.remove("budget");
        }
        if let Some(postings) = body.get_mut("postings").and_then(Value::as_array_mut) {
            postings.retain(|p| p["account"].as_str().is_some_and(|a| a.contains(&provider) || a == "fees"));
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
    fn a_redacted_bill_keeps_only_the_providers_postings_and_the_fee() {
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
        let redacted = redact_consumer(Actor::Account(provider), bill.clone()).body;
        let expected = json!({
            "provider": provider,
            "metering": { "broker": 3, "worker": 2, "billed": 2 },
            "earned": 9,
            "postings": [posting(format!("available:{provider}"), 9), posting("fees".to_owned(), 1)],
        });
        assert_eq!(redacted, expected);
        assert_eq!(redact_consumer(Actor::Platform, bill.clone()), bill);
    }

    #[test]
    fn an_account_is_visible_to_itself_to_operators_and_to_the_platform_only() {
        let own = account(1);
        assert!(may_see(Actor::Account(own), own) && may_see(Actor::Operator(None), own));
        assert!(may_see(Actor::Operator(Some(account(2))), own) && may_see(Actor::Platform, own));
        assert!(!may_see(Actor::Account(account(2)), own));
        assert!(!may_see(Actor::Machine(gpubnb_model::testing::machine(1)), own));
    }
}
