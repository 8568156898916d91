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

use crate::{fold::Tables, telemetry::Telemetry};

/// The tables of the models that answer, and the machines' last heartbeats.
#[derive(Clone)]
pub(crate) struct ReadModels {
    pub(crate) tables: Tables,
    pub(crate) telemetry: Arc<Telemetry>,
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

#[cfg(test)]
impl ReadModels {
    /// What is answered after a history, folded into a database of its own.
    pub(crate) fn after(history: &gpubnb_model::testing::History) -> Self {
        let mut models = crate::fold::Models::open(&gpubnb_store::Database::temporary(8).unwrap()).unwrap();
        models.fold(history.messages());
        assert!(models.states().all(|(_, checkpoint, stopped)| checkpoint >= models.applied() && stopped.is_none()));
        Self { tables: models.tables(), telemetry: Arc::default() }
    }
}

/// The name of the refusal that a query is answered with.
#[cfg(test)]
pub(crate) fn refusal<T: std::fmt::Debug>(answer: Result<T, Failure>) -> String {
    match answer {
        Err(Failure::Refused(refusal)) => format!("{}: {}", refusal.name, refusal.message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}
