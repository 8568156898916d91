//! The list of all endpoints.

use gpubnb_runtime::rpc::Server;

use super::{context::EndpointContext, dead_letters, edge, enrollment, machine};

/// Serves every endpoint.
pub(crate) async fn serve(server: &Server, context: EndpointContext) -> Result<(), async_nats::Error> {
    edge::serve(server, &context).await?;
    enrollment::serve(server, &context).await?;
    dead_letters::serve(server, &context).await?;
    machine::serve(server, &context).await
}
