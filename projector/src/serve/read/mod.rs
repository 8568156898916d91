//! Answers from the rows alone: no log, no broker.
//!
//! Belongs here: reading rows and making answers of them, page by page. Who may see them is asked of `access.rs`.

mod jobs;
mod ledger;
mod machines;
mod trail;

use std::sync::Arc;

use gpubnb_model::{
    figures::{FIGURES, MarketFigures},
    machines::{self as machine_rows, Machines},
    rows::FiguresRow,
};
use gpubnb_query::view::Figures;
use gpubnb_runtime::rpc::Failure;
use gpubnb_store::StoreError;

use crate::{fold::Tables, telemetry::Live};

/// The tables of the models that answer, and the machines' last heartbeats.
#[derive(Clone)]
pub(crate) struct ReadModels {
    pub(crate) tables: Tables,
    pub(crate) live: Arc<Live>,
}

/// A failure of the store as an answer: the cause stands in the projector's own log.
pub(crate) fn broken(e: StoreError) -> Failure {
    tracing::error!(error = &e as &dyn std::error::Error, "reading a row");
    Failure::Unavailable("the read model cannot be read; see the projector's log".to_owned())
}

impl ReadModels {
    pub(crate) fn figures(&self) -> Result<Figures, Failure> {
        let table = self.tables.of(&MarketFigures).map_err(broken)?;
        let row: FiguresRow = gpubnb_store::get(&table, FIGURES).map_err(broken)?.unwrap_or_default();
        let machines = self.tables.of(&Machines).map_err(broken)?;
        let cheapest = machine_rows::cheapest(&machines).map_err(broken)?;
        Ok(Figures { cheapest, ..row.into() })
    }
}
