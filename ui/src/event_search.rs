//! The search through all events, as an address of the console and of the API states it.

use gpubnb_events::Seq;
use gpubnb_query::request::{EventsQuery, TrailOf};
use serde::{Deserialize, Serialize};

use crate::error::Problem;

/// The filters of the search, as they stand in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct EventSearch {
    #[serde(default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) event: String,
    /// The id of a job, machine or account.
    #[serde(default)]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) before: String,
}

impl EventSearch {
    pub(crate) fn query(&self) -> Result<EventsQuery, Problem> {
        let some = |text: &str| Some(text.trim().to_owned()).filter(|t| !t.is_empty());
        Ok(EventsQuery {
            before: self.before.parse().ok().map(Seq),
            // With an id, the search covers the whole trail of that aggregate, with events of any kind.
            kind: some(&self.kind).filter(|_| self.id.trim().is_empty()),
            event: some(&self.event),
            of: some(&self.id).map(|id| trail_of(&self.kind, &id)).transpose()?,
            limit: 100,
        })
    }

    pub(crate) fn address(&self, path: &str, before: &str) -> String {
        let filters = Self { before: before.to_owned(), ..self.clone() };
        serde_urlencoded::to_string(&filters).map(|q| format!("{path}?{q}")).unwrap_or_default()
    }

    /// True for the newest page, to which new events are added as they happen.
    pub(crate) fn follows(&self) -> bool {
        self.before.is_empty()
    }
}

/// The trail that belongs to an id. Ids of all kinds look alike, so the kind must be given.
pub(crate) fn trail_of(kind: &str, id: &str) -> Result<TrailOf, Problem> {
    let bad = |_| Problem::invalid("id", "This is not the id of a job, machine or account.");
    Ok(match kind {
        "account" => TrailOf::Account(id.parse().map_err(bad)?),
        "machine" => TrailOf::Machine(id.parse().map_err(bad)?),
        "job" | "" => TrailOf::Job(id.parse().map_err(bad)?),
        _ => return Err(Problem::invalid("kind", "Choose job, machine or account.")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::JobId;

    #[test]
    fn an_id_chooses_a_trail_and_leaves_the_kind_open() {
        let job = JobId::generate();
        let search =
            |kind: &str, id: &str| EventSearch { kind: kind.to_owned(), id: id.to_owned(), ..Default::default() };
        let query = search("job", &format!(" {job} ")).query().unwrap();
        assert_eq!((query.of, query.kind), (Some(TrailOf::Job(job)), None));
        let query = search("job", "").query().unwrap();
        assert_eq!((query.of, query.kind.as_deref()), (None, Some("job")));
        assert_eq!(search("machine", "nonsense").query().unwrap_err().field.as_deref(), Some("id"));
        assert_eq!(search("planet", &job.to_string()).query().unwrap_err().field.as_deref(), Some("kind"));
    }

    #[test]
    fn only_the_newest_page_follows_new_events() {
        let search = EventSearch { event: "JobQueued & more".to_owned(), ..Default::default() };
        assert!(search.follows());
        assert_eq!(search.address("/x", "7"), "/x?kind=&event=JobQueued+%26+more&id=&before=7");
        assert!(!EventSearch { before: "7".to_owned(), ..search }.follows());
    }
}
