//! Who may see what. Every query asks here, and nothing is hidden anywhere else.
//!
//! A foreign thing looks like one that is not there: `NotFound`, never `Forbidden`.

use gpubnb_events::{AccountId, Actor, Refusal, RefusalKind};
use gpubnb_query::view::TrailEvent;
use gpubnb_runtime::rpc::Failure;
use serde_json::Value;

pub(crate) fn not_found(what: &str) -> Failure {
    Refusal::new("NotFound", RefusalKind::NotFound, format!("There is no such {what}.")).into()
}

/// Whether an actor may see an account's own affairs: the account itself, operators, and the platform.
pub(super) fn may_see(actor: Actor, account: AccountId) -> bool {
    match actor {
        Actor::Account(id) => id == account,
        Actor::Operator(_) | Actor::Platform | Actor::Machine(_) => may_see_all(actor),
    }
}

/// Whether an actor may see everything: operators, and the platform.
pub(crate) fn may_see_all(actor: Actor) -> bool {
    matches!(actor, Actor::Operator(_) | Actor::Platform)
}

/// An event of another account's job, as the account sees it that earned by the job: without the consumer's name, budget
/// and balance. Of a bill only the postings of the account itself and the platform's fee remain.
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
