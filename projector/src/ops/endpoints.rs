//! Serves the operators' queries on the NATS subjects `query.*`. Other actors get the answer `NotFound`.

use std::future::Future;

use gpubnb_events::{Refusal, RefusalKind};
use gpubnb_query::request::EventsQuery;
use gpubnb_runtime::rpc::{RpcError, Server};
use serde::{Serialize, de::DeserializeOwned};

use super::{answers::OperatorQueries, context::StartError, rebuild, verify};
use crate::serve::{Address, endpoint, may_see_all, not_found};

/// Registers the endpoints of all operators' queries.
pub(crate) async fn serve(server: &Server, ops: &OperatorQueries) -> Result<(), async_nats::Error> {
    // Some queries are answered while the models have not caught up with the log, for example the query `platform`.
    let without_floor = &ops.without_floor();
    // A rebuild, a verification or a time travel runs in one projector. Each query about such work has two addresses:
    // any projector may answer on the first address, and only this projector answers on the second address.
    let both = |name| [Address::from(name), Address::of_projector(name, ops.work.projector)];
    for address in both("platform") {
        operator_endpoint(server, without_floor, address, |ops, ()| async move { ops.platform().await }).await?;
    }
    for address in both("rebuild") {
        let handler =
            |ops: OperatorQueries, model: String| async move { start_answer(rebuild::start(&ops.work, &model)) };
        operator_endpoint(server, without_floor, address, handler).await?;
    }
    for address in both("verify") {
        let handler = |ops: OperatorQueries, ()| async move { start_answer(verify::start(&ops.work)) };
        operator_endpoint(server, without_floor, address, handler).await?;
    }
    for address in both("travel") {
        operator_endpoint(server, ops, address, |ops, to| async move { ops.travel(to).await }).await?;
    }
    operator_endpoint(server, ops, "events", |ops, query: EventsQuery| async move { ops.events(query).await }).await?;
    operator_endpoint(server, without_floor, "doctor", |ops, ()| async move { ops.doctor().await }).await?;
    operator_endpoint(server, ops, "accounts", |ops, after| async move { ops.accounts(after).await }).await?;
    operator_endpoint(server, ops, "stuck", |ops, ()| async move { ops.stuck() }).await?;
    operator_endpoint(server, ops, "then", |ops, (of, to)| async move { ops.past_row(of, to).await }).await
}

/// Registers one endpoint for operators.
async fn operator_endpoint<B, T, F, Fut>(
    server: &Server,
    ops: &OperatorQueries,
    address: impl Into<Address>,
    handler: F,
) -> Result<(), async_nats::Error>
where
    B: DeserializeOwned + Send + 'static,
    T: Serialize,
    F: Fn(OperatorQueries, B) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<T, RpcError>> + Send,
{
    let shared_ops = ops.clone();
    endpoint(server, &ops.queries, address, move |_, actor, body| {
        let (ops, handler) = (shared_ops.clone(), handler.clone());
        async move {
            if may_see_all(actor) {
                return handler(ops, body).await;
            }
            Err(not_found("page"))
        }
    })
    .await
}

/// The answer to a request that starts a rebuild or a verification.
fn start_answer(result: Result<(), StartError>) -> Result<(), RpcError> {
    result.map_err(|why| match why {
        StartError::UnknownModel => not_found("model"),
        StartError::AlreadyRunning => {
            Refusal::new("Busy", RefusalKind::Conflict, "One runs already: wait until it is done.").into()
        }
    })
}
