//! The list of all endpoints.

use gpubnb_runtime::rpc::Server;

use super::{context::Endpoints, dead_letters, edge, enrollment, machine};

/// Serves every endpoint.
pub(crate) async fn serve(server: &Server, endpoints: Endpoints) -> Result<(), async_nats::Error> {
    edge::serve(server, &endpoints).await?;
    enrollment::serve(server, &endpoints).await?;
    dead_letters::serve(server, &endpoints).await?;
    machine::serve(server, &endpoints).await
}
