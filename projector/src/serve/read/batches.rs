//! The queries about batches and their tasks.

use gpubnb_events::{Actor, BatchId};
use gpubnb_model::batches::{self, Batches, StoredBatch};
use gpubnb_query::{
    request::{BatchesQuery, TaskOrder, TasksQuery},
    view::{BatchView, JobState, Page, TaskView},
};
use gpubnb_runtime::rpc::RpcError;
use gpubnb_store::Table;

use super::{ReadModels, store_failure};
use crate::serve::access::{may_see, not_found};

/// The most batches in one answer.
const MAX_BATCHES: u32 = 50;
/// The most bytes of an answer with several batches: the answer must fit into a message of the broker.
const MAX_BYTES: usize = 300 * 1024;
/// The most tasks in one answer. With the longest parameters, the answer must fit into a message of the broker.
const MAX_TASKS: u32 = 200;
/// The most bytes of the parameters of the tasks in one answer.
const MAX_PARAMETERS: usize = 256 * 1024;

impl ReadModels {
    /// True if there is a batch with this id.
    pub(crate) fn has_batch(&self, id: BatchId) -> bool {
        let row = self.tables.of(&Batches).and_then(|table| table.get(batches::row_key(id)));
        row.is_ok_and(|row| row.is_some())
    }

    fn stored_batch(&self, actor: Actor, id: BatchId) -> Result<(Table, StoredBatch), RpcError> {
        let table = self.tables.of(&Batches).map_err(store_failure)?;
        let stored = batches::get(&table, id).map_err(store_failure)?;
        let visible = stored.filter(|stored| may_see(actor, stored.submitted.account));
        visible.map(|stored| (table, stored)).ok_or_else(|| not_found("batch"))
    }

    pub(crate) fn batch(&self, actor: Actor, id: BatchId) -> Result<BatchView, RpcError> {
        Ok(self.stored_batch(actor, id)?.1.into())
    }

    pub(crate) fn batches(&self, actor: Actor, query: &BatchesQuery) -> Result<Page<BatchView>, RpcError> {
        if !may_see(actor, query.account) {
            return Err(not_found("account"));
        }
        let table = self.tables.of(&Batches).map_err(store_failure)?;
        let prefix = batches::account_batches_prefix(query.account);
        let before = query.cursor.as_deref().and_then(|cursor| cursor.parse::<BatchId>().ok());
        let keys = match before {
            Some(before) => table.range(prefix.clone()..[prefix.as_slice(), before.as_bytes()].concat()),
            None => table.scan_prefix(&prefix),
        };
        let limit = query.limit.clamp(1, MAX_BATCHES) as usize;
        let (mut page, mut bytes) = (Page { rows: Vec::<BatchView>::new(), next: None }, 0);
        for key in keys.keys().rev() {
            let key = key.map_err(store_failure)?;
            let Some(id) = key.get(prefix.len()..).and_then(batches::parse_id) else { continue };
            let Some(stored) = batches::get(&table, id).map_err(store_failure)? else { continue };
            if page.rows.len() == limit || bytes > MAX_BYTES {
                page.next = page.rows.last().map(|row| row.batch.to_string());
                break;
            }
            let view = BatchView::from(stored);
            bytes += serde_json::to_vec(&view).map_or(0, |json| json.len());
            page.rows.push(view);
        }
        Ok(page)
    }

    pub(crate) fn task_states(&self, actor: Actor, id: BatchId) -> Result<Vec<JobState>, RpcError> {
        let (table, stored) = self.stored_batch(actor, id)?;
        batches::states(&table, &stored).map_err(store_failure)
    }

    pub(crate) fn tasks(&self, actor: Actor, query: &TasksQuery) -> Result<Page<TaskView>, RpcError> {
        let (table, stored) = self.stored_batch(actor, query.batch)?;
        let numbers = (0_u32..).zip(batches::states(&table, &stored).map_err(store_failure)?);
        let mut wanted: Vec<(u32, JobState)> =
            numbers.filter(|(_, state)| query.state.is_none_or(|wanted| is_in(*state, wanted))).collect();
        if query.order == TaskOrder::WorstFirst {
            wanted.sort_by_key(|(_, state)| badness(*state));
        }
        let (skip, limit) = (query.skip as usize, query.limit.clamp(1, MAX_TASKS) as usize);
        let mut page = Page { rows: Vec::<TaskView>::new(), next: None };
        let mut bytes = 0;
        for (place, (number, _)) in wanted.into_iter().enumerate().skip(skip) {
            if page.rows.len() == limit || bytes > MAX_PARAMETERS {
                page.next = Some(place.to_string());
                break;
            }
            let task = batches::task(&table, &stored, number).map_err(store_failure)?;
            bytes += task.iter().flat_map(|task| task.parameters.values()).map(String::len).sum::<usize>();
            page.rows.extend(task);
        }
        Ok(page)
    }
}

/// True if a task in a state is listed for the wanted one. `Running` is every state in which a machine has the task.
fn is_in(state: JobState, wanted: JobState) -> bool {
    let is_live = |state| badness(state) == badness(JobState::Running);
    state == wanted || (wanted == JobState::Running && is_live(state))
}

/// The place of a state in a list with the worst first.
fn badness(state: JobState) -> u32 {
    match state {
        JobState::Failed => 0,
        JobState::Assigned | JobState::Accepted | JobState::Running | JobState::Collecting => 1,
        JobState::Queued => 2,
        JobState::Cancelled => 3,
        JobState::Completed => 4,
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::event::Reason;
    use gpubnb_model::testing::{History, account, batch, machine};

    use super::*;
    use crate::serve::read::expect_refusal;

    fn history() -> History {
        let mut history = History::default();
        history.batch_submitted(account(1), batch(1), 5);
        history.batch_submitted(account(1), batch(2), 1);
        history.batch_submitted(account(2), batch(3), 1);
        history.tasks_opened(batch(1), 0, 3);
        let lease = history.assigned(batch(1).task(0).unwrap(), machine(1));
        history.completed(batch(1).task(0).unwrap(), lease);
        let lease = history.assigned(batch(1).task(1).unwrap(), machine(1));
        history.failed(batch(1).task(1).unwrap(), Some(lease), Reason::OutOfMemory);
        history
    }

    #[test]
    fn batches_are_listed_newest_first_and_only_for_their_account() {
        let read = ReadModels::from_history(&history());
        let actor = Actor::Account(account(1));
        let ask = |cursor, limit| read.batches(actor, &BatchesQuery { account: account(1), cursor, limit }).unwrap();
        let ids = |page: &Page<BatchView>| page.rows.iter().map(|row| row.batch).collect::<Vec<_>>();
        assert_eq!(ids(&ask(None, 50)), [batch(2), batch(1)]);
        let first = ask(None, 1);
        assert_eq!((ids(&first), ids(&ask(first.next, 1))), (vec![batch(2)], vec![batch(1)]));
        let others = BatchesQuery { account: account(2), cursor: None, limit: 1 };
        expect_refusal(read.batches(actor, &others));
        let foreign = expect_refusal(read.batch(actor, batch(3)));
        assert_eq!(foreign, expect_refusal(read.batch(actor, batch(9))));
        expect_refusal(read.task_states(actor, batch(3)));
    }

    #[test]
    fn tasks_are_filtered_ordered_and_paged() {
        let read = ReadModels::from_history(&history());
        let query = TasksQuery { batch: batch(1), state: None, order: TaskOrder::Number, skip: 0, limit: 200 };
        let numbers = |query: &TasksQuery| {
            let page = read.tasks(Actor::Operator(None), query).unwrap();
            (page.rows.iter().map(|task| task.number).collect::<Vec<_>>(), page.next)
        };
        assert_eq!(numbers(&query), (vec![0, 1, 2, 3, 4], None));
        let worst = TasksQuery { order: TaskOrder::WorstFirst, limit: 2, ..query.clone() };
        assert_eq!(numbers(&worst), (vec![1, 2], Some("2".to_owned())));
        assert_eq!(numbers(&TasksQuery { skip: 2, ..worst }), (vec![3, 4], Some("4".to_owned())));
        let failed = TasksQuery { state: Some(JobState::Failed), ..query };
        assert_eq!(numbers(&failed), (vec![1], None));
    }
}
