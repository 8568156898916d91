//! The queries that are answered from rows only, without the log and the broker. `access.rs` decides which rows an
//! actor may see.

mod batches;
mod jobs;
mod ledger;
mod machines;
mod market;
mod trail;

use std::sync::Arc;

use gpubnb_model::{
    figures::{FIGURES_KEY, MarketFigures},
    machines::{self as machine_rows, Machines},
    rows::FiguresRow,
};
use gpubnb_query::view::Figures;
use gpubnb_runtime::rpc::RpcError;
use gpubnb_store::StoreError;

use crate::{fold::Tables, telemetry::Telemetry};

/// The tables of the read models, and the telemetry of the machines. Clones share the data.
#[derive(Clone)]
pub(crate) struct ReadModels {
    pub(crate) tables: Tables,
    pub(crate) telemetry: Arc<Telemetry>,
}

/// Writes an error of the store into the projector's log, and returns the answer for the actor.
pub(crate) fn store_failure(e: StoreError) -> RpcError {
    tracing::error!(error = &e as &dyn std::error::Error, "a row cannot be read");
    RpcError::Unavailable("the read model cannot be read; see the projector's log".to_owned())
}

impl ReadModels {
    pub(crate) fn figures(&self) -> Result<Figures, RpcError> {
        let table = self.tables.of(&MarketFigures).map_err(store_failure)?;
        let row: FiguresRow = gpubnb_store::get(&table, FIGURES_KEY).map_err(store_failure)?.unwrap_or_default();
        let machines = self.tables.of(&Machines).map_err(store_failure)?;
        let cheapest = machine_rows::cheapest(&machines).map_err(store_failure)?;
        Ok(Figures { cheapest, ..row.into() })
    }
}

#[cfg(test)]
impl ReadModels {
    /// The read models that are folded from a history, in a new database.
    pub(crate) fn from_history(history: &gpubnb_model::testing::History) -> Self {
        let mut models = crate::fold::Models::open(&gpubnb_store::Database::temporary(8).unwrap()).unwrap();
        models.fold(history.messages()).unwrap();
        assert!(models.states().all(|(_, checkpoint, stopped)| checkpoint >= models.applied() && stopped.is_none()));
        Self { tables: models.tables(), telemetry: Arc::default() }
    }
}

/// The name and the text of the refusal in an answer. Panics if the answer is not a refusal.
#[cfg(test)]
pub(crate) fn expect_refusal<T: std::fmt::Debug>(answer: Result<T, RpcError>) -> String {
    match answer {
        Err(RpcError::Refused(refusal)) => format!("{}: {}", refusal.name, refusal.message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::{HourlyRate, MicroUsd, event::MachinePaused};
    use gpubnb_model::testing::{COST, History, account, job, machine};

    use super::*;

    #[test]
    fn the_figures_show_the_price_of_the_cheapest_machine_that_takes_jobs() {
        let price = |micros| HourlyRate(MicroUsd(micros));
        let mut history = History::default();
        assert_eq!(ReadModels::from_history(&history).figures().unwrap(), Figures::default());
        history.listed_with(account(2), machine(1), |e| e.offer.price = price(70_000));
        history.listed_with(account(2), machine(2), |e| e.offer.price = price(90_000));
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        let figures = ReadModels::from_history(&history).figures().unwrap();
        assert_eq!((figures.machines, figures.settled, figures.cost), (2, 1, COST));
        assert_eq!(figures.cheapest, Some(price(70_000)));
        history.record(MachinePaused { machine: machine(1), away: false });
        assert_eq!(ReadModels::from_history(&history).figures().unwrap().cheapest, Some(price(90_000)));
    }
}
