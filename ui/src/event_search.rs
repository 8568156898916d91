//! The operators' search through all events. The console and the API read the same query parameters.

use gpubnb_events::Seq;
use gpubnb_query::request::{EventsQuery, TrailOf};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::error::Problem;

/// The query parameters of the search. An empty parameter does not filter.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
pub(crate) struct EventSearch {
    /// The kind of aggregate: `job`, `machine` or `account`. With `id`, the kind of that id, `job` if empty; without
    /// `id`, only events of this kind are found.
    #[serde(default)]
    pub(crate) kind: String,
    /// The name of the event, for example `JobAssigned`.
    #[serde(default)]
    pub(crate) event: String,
    /// The id of a job, machine or account.
    #[serde(default)]
    pub(crate) id: String,
    /// A sequence: only events before it are found.
    #[serde(default)]
    pub(crate) before: String,
}

impl EventSearch {
    /// The query for the projector. An invalid parameter is an error.
    pub(crate) fn query(&self) -> Result<EventsQuery, Problem> {
        let non_empty = |text: &str| Some(text.trim().to_owned()).filter(|t| !t.is_empty());
        if !["", "job", "machine", "account"].contains(&self.kind.trim()) {
            return Err(Problem::invalid("kind", "Choose job, machine or account."));
        }
        let sequence = |text: String| {
            text.parse().map(Seq).map_err(|_| Problem::invalid("before", "This is not the sequence of an event."))
        };
        Ok(EventsQuery {
            before: non_empty(&self.before).map(sequence).transpose()?,
            // With an id, the search covers the trail of this aggregate, which may contain events of other kinds.
            kind: non_empty(&self.kind).filter(|_| self.id.trim().is_empty()),
            event: non_empty(&self.event),
            of: non_empty(&self.id).map(|id| trail_of(&self.kind, &id)).transpose()?,
            limit: 100,
        })
    }

    /// The address of the same search at `path`, for events before the sequence `before`.
    pub(crate) fn address(&self, path: &str, before: &str) -> String {
        let filters = Self { before: before.to_owned(), ..self.clone() };
        serde_urlencoded::to_string(&filters).map(|q| format!("{path}?{q}")).unwrap_or_default()
    }

    /// True if the search shows the newest events. Such a page is updated live.
    pub(crate) fn is_live(&self) -> bool {
        self.before.is_empty()
    }
}

/// The trail of the aggregate with this id. Ids of all kinds have the same form, so `kind` is needed; the default is
/// `job`.
pub(crate) fn trail_of(kind: &str, id: &str) -> Result<TrailOf, Problem> {
    let invalid = |_| Problem::invalid("id", "This is not the id of a job, machine or account.");
    Ok(match kind {
        "account" => TrailOf::Account(id.parse().map_err(invalid)?),
        "machine" => TrailOf::Machine(id.parse().map_err(invalid)?),
        "job" | "" => TrailOf::Job(id.parse().map_err(invalid)?),
        _ => return Err(Problem::invalid("kind", "Choose job, machine or account.")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::JobId;

    #[test]
    fn with_an_id_the_search_covers_its_trail_and_all_kinds() {
        let job = JobId::generate();
        let search =
            |kind: &str, id: &str| EventSearch { kind: kind.to_owned(), id: id.to_owned(), ..Default::default() };
        let query = search("job", &format!(" {job} ")).query().unwrap();
        assert_eq!((query.of, query.kind), (Some(TrailOf::Job(job)), None));
        let query = search("job", "").query().unwrap();
        assert_eq!((query.of, query.kind.as_deref()), (None, Some("job")));
        assert_eq!(search("machine", "nonsense").query().unwrap_err().field.as_deref(), Some("id"));
        assert_eq!(search("planet", &job.to_string()).query().unwrap_err().field.as_deref(), Some("kind"));
        assert_eq!(search("planet", "").query().unwrap_err().field.as_deref(), Some("kind"));
        let before = |text: &str| EventSearch { before: text.to_owned(), ..Default::default() }.query();
        assert_eq!(before(" 7 ").unwrap().before, Some(Seq(7)));
        assert_eq!(before("abc").unwrap_err().field.as_deref(), Some("before"));
    }

    #[test]
    fn only_the_page_of_the_newest_events_is_live() {
        let search = EventSearch { event: "JobQueued & more".to_owned(), ..Default::default() };
        assert!(search.is_live());
        assert_eq!(search.address("/x", "7"), "/x?kind=&event=JobQueued+%26+more&id=&before=7");
        assert!(!EventSearch { before: "7".to_owned(), ..search }.is_live());
    }
}
