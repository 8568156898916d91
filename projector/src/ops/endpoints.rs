//! The operators' queries as endpoints of the micro service `query.*`. Anybody else is told that there is no such page.

use std::future::Future;

use gpubnb_events::{Refusal, RefusalKind};
use gpubnb_query::request::EventsQuery;
use gpubnb_runtime::rpc::{Failure, Server};
use serde::{Serialize, de::DeserializeOwned};

use super::{answers::OperatorQueries, context::NotStarted, rebuild, verify};
use crate::serve::{Address, endpoint, may_see_all, not_found};

/// Serves all of them.
pub(crate) async fn serve(server: &Server, ops: &OperatorQueries) -> Result<(), async_nats::Error> {
    // Some questions are answered while the models are still behind: how far they are, for example.
    let at_once = &ops.at_once();
    // Rebuilds, verifications and journeys belong to one projector. Each question about them has two addresses: one
    // that any projector answers, and one of this projector.
    let both = |name| [Address::from(name), Address::of(name, ops.work.projector)];
    for address in both("platform") {
        on(server, at_once, address, |ops, ()| async move { ops.platform().await }).await?;
    }
    for address in both("rebuild") {
        let handler = |ops: OperatorQueries, model: String| async move { started(rebuild::start(&ops.work, &model)) };
        on(server, at_once, address, handler).await?;
    }
    for address in both("verify") {
        let handler = |ops: OperatorQueries, ()| async move { started(verify::start(&ops.work)) };
        on(server, at_once, address, handler).await?;
    }
    for address in both("travel") {
        on(server, ops, address, |ops, to| async move { ops.travel(to).await }).await?;
    }
    on(server, ops, "events", |ops, query: EventsQuery| async move { ops.events(query).await }).await?;
    on(server, at_once, "doctor", |ops, ()| async move { ops.doctor().await }).await?;
    on(server, ops, "accounts", |ops, after| async move { ops.accounts(after).await }).await?;
    on(server, ops, "stuck", |ops, ()| async move { ops.stuck() }).await?;
    on(server, ops, "then", |ops, (of, to)| async move { ops.then(of, to).await }).await
}

/// One endpoint for operators.
async fn on<B, T, F, Fut>(
    server: &Server,
    ops: &OperatorQueries,
    address: impl Into<Address>,
    handler: F,
) -> Result<(), async_nats::Error>
where
    B: DeserializeOwned + Send + 'static,
    T: Serialize,
    F: Fn(OperatorQueries, B) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<T, Failure>> + Send,
{
    let own = ops.clone();
    endpoint(server, &ops.queries, address, move |_, actor, body| {
        let (ops, handler) = (own.clone(), handler.clone());
        async move {
            if may_see_all(actor) {
                return handler(ops, body).await;
            }
            Err(not_found("page"))
        }
    })
    .await
}

fn started(result: Result<(), NotStarted>) -> Result<(), Failure> {
    result.map_err(|why| match why {
        NotStarted::UnknownModel => not_found("model"),
        NotStarted::Running => {
            Refusal::new("Busy", RefusalKind::Conflict, "One runs already: wait until it is done.").into()
        }
    })
}
