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

#[cfg(test)]
mod tests {
    use gpubnb_events::{HourlyRate, MicroUsd, event::MachinePaused};
    use gpubnb_model::testing::{COST, History, account, job, machine};

    use super::*;

    #[test]
    fn the_figures_have_the_price_of_the_cheapest_machine_that_takes_jobs() {
        let price = |micros| HourlyRate(MicroUsd(micros));
        let mut history = History::default();
        assert_eq!(ReadModels::after(&history).figures().unwrap(), Figures::default());
        history.listed_with(account(2), machine(1), |e| e.offer.price = price(70_000));
        history.listed_with(account(2), machine(2), |e| e.offer.price = price(90_000));
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        let figures = ReadModels::after(&history).figures().unwrap();
        assert_eq!((figures.machines, figures.settled, figures.cost), (2, 1, COST));
        assert_eq!(figures.cheapest, Some(price(70_000)));
        history.record(MachinePaused { machine: machine(1), away: false });
        assert_eq!(ReadModels::after(&history).figures().unwrap().cheapest, Some(price(90_000)));
    }
}
