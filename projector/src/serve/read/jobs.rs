//! Jobs: one, and lists of them, newest first.

use gpubnb_events::{Actor, JobId};
use gpubnb_model::{
    jobs::{self, Jobs},
    rows::JobRow,
};
use gpubnb_query::{
    request::JobsQuery,
    view::{JobView, Page},
};
use gpubnb_runtime::rpc::Failure;

use super::{ReadModels, broken};
use crate::serve::access::{may_see, may_see_all, not_found};

/// Most jobs in one answer.
const MAX_JOBS: u32 = 100;
/// Jobs looked at for one page of a filtered list.
const MAX_SCAN: usize = 20_000;

impl ReadModels {
    pub(crate) fn job(&self, actor: Actor, id: JobId) -> Result<JobView, Failure> {
        let table = self.tables.of(&Jobs).map_err(broken)?;
        let row: Option<JobRow> = gpubnb_store::get(&table, &jobs::row_key(id)).map_err(broken)?;
        row.filter(|row| may_see(actor, row.account)).map(Into::into).ok_or_else(|| not_found("job"))
    }

    pub(crate) fn jobs(&self, actor: Actor, query: JobsQuery) -> Result<Page<JobView>, Failure> {
        let table = self.tables.of(&Jobs).map_err(broken)?;
        let prefix = match (query.account, query.machine) {
            (Some(account), Some(machine)) if may_see(actor, account) => jobs::of_machine(machine),
            (Some(account), None) if may_see(actor, account) => jobs::of_account(account),
            (Some(_), _) => return Err(not_found("account")),
            (None, Some(machine)) => jobs::of_machine(machine),
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
        // Of a machine's jobs, those of an account are known by their keys.
        let own = query.account.filter(|_| query.machine.is_some()).map(jobs::of_account);
        for key in range.keys().rev().take(MAX_SCAN) {
            let key = key.map_err(broken)?;
            let Some(id) = key.get(prefix.len()..).and_then(job_of) else { continue };
            if let Some(own) = &own
                && table.get([own.as_slice(), id.as_bytes()].concat()).map_err(broken)?.is_none()
            {
                continue;
            }
            let Some(row) = gpubnb_store::get::<JobRow>(&table, &jobs::row_key(id)).map_err(broken)? else { continue };
            let wanted = may_see(actor, row.account)
                && query.state.is_none_or(|state| row.state == state)
                && text.as_ref().is_none_or(|text| matches_text(&row, text));
            if !wanted {
                continue;
            }
            if page.rows.len() == limit {
                page.next = page.rows.last().map(|row| row.job.to_string());
                break;
            }
            // What each left is told where one job is asked for: a thousand files a row would burst the answer.
            page.rows.push(JobRow { outputs: Vec::new(), ..row }.into());
        }
        Ok(page)
    }
}

fn job_of(bytes: &[u8]) -> Option<JobId> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    JobId::from_bytes(bytes).ok()
}

fn matches_text(row: &JobRow, text: &str) -> bool {
    [row.spec.name.to_lowercase(), row.spec.image.to_lowercase(), row.job.to_string()].iter().any(|s| s.contains(text))
}
