//! The queries about jobs: one job, and lists of jobs, newest first.

use gpubnb_events::{Actor, JobId};
use gpubnb_model::{
    jobs::{self, Jobs},
    rows::JobRow,
};
use gpubnb_query::{
    request::JobsQuery,
    view::{JobView, Page},
};
use gpubnb_runtime::rpc::RpcError;

use super::{ReadModels, store_failure};
use crate::serve::access::{may_see, may_see_all, not_found};

/// The most jobs in one answer.
const MAX_JOBS: u32 = 100;
/// The most jobs that are read for one page of a filtered list.
const MAX_SCAN: usize = 20_000;

impl ReadModels {
    pub(crate) fn job(&self, actor: Actor, id: JobId) -> Result<JobView, RpcError> {
        let table = self.tables.of(&Jobs).map_err(store_failure)?;
        let row: Option<JobRow> = gpubnb_store::get(&table, &jobs::row_key(id)).map_err(store_failure)?;
        row.filter(|row| may_see(actor, row.account)).map(Into::into).ok_or_else(|| not_found("job"))
    }

    pub(crate) fn jobs(&self, actor: Actor, query: JobsQuery) -> Result<Page<JobView>, RpcError> {
        let table = self.tables.of(&Jobs).map_err(store_failure)?;
        let prefix = match (query.account, query.machine) {
            (Some(account), Some(machine)) if may_see(actor, account) => jobs::machine_jobs_prefix(machine),
            (Some(account), None) if may_see(actor, account) => jobs::account_jobs_prefix(account),
            (Some(_), _) => return Err(not_found("account")),
            (None, Some(machine)) => jobs::machine_jobs_prefix(machine),
            // `j` begins the key of every job's row.
            (None, None) if may_see_all(actor) => vec![b'j'],
            (None, None) => return Err(not_found("account")),
        };
        let limit = query.limit.unwrap_or(MAX_JOBS).clamp(1, MAX_JOBS) as usize;
        let before = query.cursor.as_deref().and_then(|c| c.parse::<JobId>().ok());
        let text = query.text.as_deref().map(str::to_lowercase);
        let mut page: Page<JobView> = Page { rows: Vec::new(), next: None };
        let upper = before.map(|job| [prefix.as_slice(), job.as_bytes()].concat());
        let range = match upper {
            Some(upper) => table.range(prefix.clone()..upper),
            None => table.scan_prefix(&prefix),
        };
        let mut last_scanned: Option<JobId> = None;
        for (scanned, key) in range.keys().rev().enumerate() {
            if scanned == MAX_SCAN {
                // The next page goes on here, even if this page is empty.
                page.next = last_scanned.map(|job| job.to_string());
                break;
            }
            let key = key.map_err(store_failure)?;
            let Some(id) = key.get(prefix.len()..).and_then(parse_job_id) else { continue };
            last_scanned = Some(id);
            let Some(row) = gpubnb_store::get::<JobRow>(&table, &jobs::row_key(id)).map_err(store_failure)? else {
                continue;
            };
            let matches = may_see(actor, row.account)
                && query.account.is_none_or(|account| row.account == account)
                && query.state.is_none_or(|state| row.state == state)
                && text.as_ref().is_none_or(|text| matches_text(&row, text));
            if !matches {
                continue;
            }
            if page.rows.len() == limit {
                page.next = page.rows.last().map(|row| row.job.to_string());
                break;
            }
            // Lists have no output files: with a thousand files per job, the answer would be too large for a message.
            page.rows.push(JobRow { outputs: Vec::new(), ..row }.into());
        }
        Ok(page)
    }
}

fn parse_job_id(bytes: &[u8]) -> Option<JobId> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    JobId::from_bytes(bytes).ok()
}

fn matches_text(row: &JobRow, text: &str) -> bool {
    [row.spec.name.to_lowercase(), row.spec.image.to_lowercase(), row.job.to_string()].iter().any(|s| s.contains(text))
}

#[cfg(test)]
mod tests {
    use gpubnb_events::AccountId;
    use gpubnb_model::testing::{History, account, job, machine};
    use gpubnb_query::view::JobState;

    use super::*;
    use crate::serve::read::expect_refusal;

    const OPERATOR: Actor = Actor::Operator(None);

    fn actor(number: u16) -> Actor {
        Actor::Account(account(number))
    }

    /// A history in which account 1 has submitted the jobs 1 to `last`.
    fn submitted(last: u16) -> History {
        let mut history = History::default();
        for number in 1..=last {
            history.submitted(account(1), job(number));
        }
        history
    }

    fn of(account: AccountId) -> JobsQuery {
        JobsQuery { account: Some(account), ..JobsQuery::default() }
    }

    fn ids(page: &Page<JobView>) -> Vec<JobId> {
        page.rows.iter().map(|row| row.job).collect()
    }

    /// The jobs on each page that account 1 gets for a query. Each page is requested with the cursor of the page
    /// before.
    fn pages(history: &History, query: &JobsQuery) -> Vec<Vec<JobId>> {
        let (read, mut cursor, mut pages) = (ReadModels::from_history(history), None, Vec::new());
        loop {
            let page = read.jobs(actor(1), JobsQuery { cursor, ..query.clone() }).unwrap();
            pages.push(ids(&page));
            cursor = page.next;
            if cursor.is_none() {
                return pages;
            }
        }
    }

    #[test]
    fn an_account_without_jobs_has_one_empty_page() {
        assert_eq!(pages(&History::default(), &of(account(1))), [[]]);
    }

    #[test]
    fn the_pages_of_a_list_are_newest_first() {
        let two = JobsQuery { limit: Some(2), ..of(account(1)) };
        let [first, second, third] = [vec![job(5), job(4)], vec![job(3), job(2)], vec![job(1)]];
        assert_eq!(pages(&submitted(5), &two), [first, second, third]);
    }

    #[test]
    fn a_full_last_page_has_no_next_cursor() {
        let two = JobsQuery { limit: Some(2), ..of(account(1)) };
        assert_eq!(pages(&submitted(4), &two), [[job(4), job(3)], [job(2), job(1)]]);
        assert_eq!(pages(&submitted(2), &two), [[job(2), job(1)]]);
    }

    #[test]
    fn a_page_has_between_1_and_100_jobs() {
        let history = submitted(101);
        let lengths = |limit| pages(&history, &JobsQuery { limit, ..of(account(1)) }).iter().map(Vec::len).collect();
        let (unlimited, many): (Vec<_>, Vec<_>) = (lengths(None), lengths(Some(u32::MAX)));
        assert_eq!((unlimited, many), (vec![100, 1], vec![100, 1]));
        let read = ReadModels::from_history(&history);
        assert_eq!(read.jobs(actor(1), JobsQuery { limit: Some(0), ..of(account(1)) }).unwrap().rows.len(), 1);
    }

    #[test]
    fn a_cursor_may_name_a_job_that_is_not_in_the_list() {
        let read = ReadModels::from_history(&submitted(3));
        let after = |cursor: &str| {
            let page = read.jobs(actor(1), JobsQuery { cursor: Some(cursor.to_owned()), ..of(account(1)) });
            ids(&page.unwrap())
        };
        assert_eq!(after(&job(3).to_string()), [job(2), job(1)]);
        assert_eq!(after(&job(9).to_string()), [job(3), job(2), job(1)]);
        assert_eq!(after(&job(1).to_string()), []);
        assert_eq!(after("no id"), [job(3), job(2), job(1)]);
    }

    #[test]
    fn every_page_of_a_list_is_filtered_by_state() {
        let mut history = submitted(6);
        for number in [1, 3, 5] {
            history.cancelled(job(number), None);
        }
        let cancelled = JobsQuery { state: Some(JobState::Cancelled), limit: Some(2), ..of(account(1)) };
        assert_eq!(pages(&history, &cancelled), [vec![job(5), job(3)], vec![job(1)]]);
        let three = JobsQuery { limit: Some(3), ..cancelled };
        assert_eq!(pages(&history, &three), [[job(5), job(3), job(1)]]);
    }

    #[test]
    fn the_text_filter_matches_name_image_and_id_and_ignores_case() {
        let mut history = History::default();
        history.submitted_with(account(1), job(1), |e| e.spec.name = "Night Render".to_owned());
        history.submitted_with(account(1), job(2), |e| e.spec.image = "registry/RENDER:2".to_owned());
        history.submitted(account(1), job(3));
        let found = |text: &str| pages(&history, &JobsQuery { text: Some(text.to_owned()), ..of(account(1)) });
        assert_eq!(found("rEnDeR"), [[job(2), job(1)]]);
        assert_eq!(found(&job(3).to_string()), [[job(3)]]);
        assert_eq!(found("nothing of the kind"), [[]]);
    }

    #[test]
    fn the_list_of_a_machine_has_only_jobs_that_the_actor_may_see() {
        let mut history = submitted(3);
        history.submitted(account(2), job(4));
        for number in [1, 3, 4] {
            history.assigned(job(number), machine(1));
        }
        let read = ReadModels::from_history(&history);
        let on = |by, account| {
            let query = JobsQuery { machine: Some(machine(1)), account, ..JobsQuery::default() };
            read.jobs(by, query).map(|page| ids(&page))
        };
        assert_eq!(on(actor(1), None).unwrap(), [job(3), job(1)]);
        assert_eq!(on(actor(2), None).unwrap(), [job(4)]);
        assert_eq!(on(actor(3), None).unwrap(), []);
        assert_eq!(on(OPERATOR, None).unwrap(), [job(4), job(3), job(1)]);
        assert_eq!(on(OPERATOR, Some(account(1))).unwrap(), [job(3), job(1)]);
        assert_eq!(expect_refusal(on(actor(2), Some(account(1)))), "NotFound: There is no such account.");
    }

    #[test]
    fn only_operators_may_list_all_jobs() {
        let read = ReadModels::from_history(&submitted(2));
        assert_eq!(ids(&read.jobs(OPERATOR, JobsQuery::default()).unwrap()), [job(2), job(1)]);
        assert_eq!(expect_refusal(read.jobs(actor(1), JobsQuery::default())), "NotFound: There is no such account.");
    }

    #[test]
    fn another_accounts_jobs_are_answered_like_missing_jobs() {
        let read = ReadModels::from_history(&submitted(1));
        assert_eq!(
            expect_refusal(read.jobs(actor(2), of(account(1)))),
            expect_refusal(read.jobs(actor(2), of(account(9))))
        );
        assert_eq!(expect_refusal(read.job(actor(2), job(1))), expect_refusal(read.job(actor(2), job(9))));
        assert_eq!(read.job(actor(1), job(1)).unwrap().job, job(1));
        assert_eq!(read.job(OPERATOR, job(1)).unwrap().job, job(1));
    }

    #[test]
    fn one_job_has_its_output_files_and_a_list_has_none() {
        let mut history = History::default();
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        let read = ReadModels::from_history(&history);
        assert_eq!(read.job(actor(1), job(1)).unwrap().outputs.len(), 1);
        assert_eq!(read.jobs(actor(1), of(account(1))).unwrap().rows[0].outputs.len(), 0);
    }
}
