//! The list of all endpoints, by their sender: `edge` for people, who come through the web server, `enrollment` for
//! machines that have no credential yet, `dead_letters` for operators, and `machine` for workers.

use gpubnb_runtime::rpc::Server;

use super::{context::EndpointContext, dead_letters, edge, enrollment, machine};

/// Serves every endpoint.
pub(crate) async fn serve(server: &Server, context: EndpointContext) -> Result<(), async_nats::Error> {
    edge::serve(server, &context).await?;
    enrollment::serve(server, &context).await?;
    dead_letters::serve(server, &context).await?;
    machine::serve(server, &context).await
}
