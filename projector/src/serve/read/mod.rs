//! The answers that need the rows alone, and neither the log nor the broker.
//!
//! Belongs here: reading rows, and making pages of answers from them. Who may see them is decided in `access.rs`.

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

/// The tables of the models, and the telemetry of the machines.
#[derive(Clone)]
pub(crate) struct ReadModels {
    pub(crate) tables: Tables,
    pub(crate) telemetry: Arc<Telemetry>,
}

/// The answer where the store failed. The cause is written to the projector's log, for operators.
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
    /// The read models after a history, in a database of their own.
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
