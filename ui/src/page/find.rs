//! The search over everything that the viewer can open: pages, templates, jobs, machines, guides and events. Scripts
//! show the page's results in a dialog (Ctrl-K).

use askama::Template;
use axum::{
    extract::State,
    response::{Html, IntoResponse, Response},
};
use gpubnb_events::Seq;
use gpubnb_query::{request::JobsQuery, view::MachineView};
use serde::Deserialize;

use super::{Layout, docs, render_fragment, render_page};
use crate::{
    access::Viewer,
    app::App,
    error::{PageError, Problem},
    extract::Query,
    format, hardware,
    templates::Templates,
};

/// The most results of one kind.
const MAX_OF_KIND: usize = 6;
/// The longest search, characters.
const MAX_SEARCH: usize = 100;

/// Who can open a page of the list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Anybody,
    SignedIn,
    Operators,
}

/// The pages: title, address, who can open the page, and further words by which people look for it.
const PAGES: [(&str, &str, For, &str); 26] = [
    ("Market", "/market", For::Anybody, "machines gpus rent offers"),
    ("Prices and availability", "/market/prices", For::Anybody, "history chart"),
    ("Run a job", "/jobs/new", For::SignedIn, "new submit start"),
    ("Jobs", "/jobs", For::SignedIn, "runs history"),
    ("Templates", "/templates", For::Anybody, "gallery examples ready jobs"),
    ("Batches", "/batches", For::SignedIn, "many tasks array sweep map parameters"),
    ("Wallet", "/wallet", For::SignedIn, "money balance deposit payout statement funds"),
    ("My machines", "/provider", For::SignedIn, "host provider earnings"),
    ("Add a machine", "/provider/add", For::SignedIn, "install worker list enroll"),
    ("What would my machine earn?", "/earn", For::Anybody, "calculator estimate provider"),
    ("Account", "/account", For::SignedIn, "password tokens sessions sign out"),
    ("Notifications", "/account/notifications", For::SignedIn, "webhooks e-mail"),
    ("Datasets", "/datasets", For::SignedIn, "data files upload directory folder"),
    ("Secrets", "/account/secrets", For::SignedIn, "token key environment variable"),
    ("Docs", "/docs", For::Anybody, "help guides"),
    ("API", "/docs/endpoints", For::Anybody, "endpoints openapi rest"),
    ("Changelog", "/docs/changelog", For::Anybody, "news versions"),
    ("Status", "/status", For::Anybody, "up down health"),
    ("Terms of use", "/terms", For::Anybody, "legal"),
    ("Sign in", "/sign-in", For::Anybody, "login"),
    ("Console", "/console", For::Operators, "operators doctor streams"),
    ("Console: events", "/console/events", For::Operators, "log"),
    ("Console: fleet", "/console/fleet", For::Operators, "machines"),
    ("Console: ledger", "/console/ledger", For::Operators, "accounts money payouts"),
    ("Console: time travel", "/console/travel", For::Operators, "replay history"),
    ("Styleguide", "/styleguide", For::Operators, "design"),
];

/// Something that the viewer can open.
struct Found {
    /// The kind, such as `Job`.
    kind: &'static str,
    title: String,
    /// More about it, in grey.
    about: String,
    address: String,
}

#[derive(Template)]
#[template(path = "find.html")]
struct FindPage {
    layout: Layout,
    search: String,
    results: String,
}

#[derive(Template)]
#[template(path = "find_results.html")]
struct Results {
    search: String,
    found: Vec<Found>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct FindQuery {
    #[serde(default)]
    q: String,
    /// Set if only the list of results is wanted, without the page around it.
    #[serde(default)]
    part: String,
}

/// `GET /find`.
pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(query): Query<FindQuery>,
) -> Result<Response, PageError> {
    let search: String = query.q.trim().chars().take(MAX_SEARCH).collect();
    let found = find(&app, viewer, &search).await?;
    let results = render_fragment(&Results { search: search.clone(), found })?;
    if !query.part.is_empty() {
        return Ok(Html(results).into_response());
    }
    Ok(render_page(&FindPage { layout: Layout::new("Find", "find", viewer), search, results })?.into_response())
}

/// The results for a search. An empty search finds the pages.
async fn find(app: &App, viewer: Viewer, search: &str) -> Result<Vec<Found>, Problem> {
    let words: Vec<String> = search.to_lowercase().split_whitespace().map(ToOwned::to_owned).collect();
    let has_all = |text: &str| words.iter().all(|word| text.to_lowercase().contains(word));
    let mut found = pages(viewer, has_all);
    if words.is_empty() {
        return Ok(found);
    }
    found.truncate(MAX_OF_KIND);
    if viewer.account.is_some() {
        found.extend(event(search));
        found.extend(jobs(app, viewer, search).await?);
        found.extend(templates(&app.templates, has_all));
    }
    let machines = app.machines.machines().await;
    found.extend(machines.iter().filter(|m| has_all(&machine_words(m))).take(MAX_OF_KIND).map(|m| Found {
        kind: "Machine",
        title: m.listed.offer.name.clone(),
        about: format!("{} · {}", hardware::gpus(&m.listed), m.listed.offer.price),
        address: format!("/machines/{}", m.listed.machine),
    }));
    found.extend(docs::find(search).into_iter().take(MAX_OF_KIND).map(|result| Found {
        kind: "Docs",
        title: result.section.title.to_owned(),
        about: result.guide.title.to_owned(),
        address: result.address(),
    }));
    Ok(found)
}

fn pages(viewer: Viewer, has_all: impl Fn(&str) -> bool) -> Vec<Found> {
    let may_open = |who: For| match who {
        For::Anybody => true,
        For::SignedIn => viewer.account.is_some(),
        For::Operators => viewer.is_operator,
    };
    let matching = PAGES.iter().filter(|(title, _, who, more)| may_open(*who) && has_all(&format!("{title} {more}")));
    let page = |(title, address, ..): &(&str, &str, For, &str)| Found {
        kind: "Page",
        title: (*title).to_owned(),
        about: String::new(),
        address: (*address).to_owned(),
    };
    matching.map(page).collect()
}

/// The event of a sequence, written `28` or `#28`.
fn event(search: &str) -> Option<Found> {
    let seq: u64 = search.trim_start_matches('#').parse().ok().filter(|seq| *seq > 0)?;
    let (title, address) = (format!("Event {seq}"), format!("/events/{seq}"));
    Some(Found { kind: "Event", title, about: "By its sequence in the log".to_owned(), address })
}

async fn jobs(app: &App, viewer: Viewer, search: &str) -> Result<Vec<Found>, Problem> {
    let query = JobsQuery {
        account: viewer.account,
        machine: None,
        state: None,
        text: Some(search.to_owned()),
        cursor: None,
        limit: u32::try_from(MAX_OF_KIND).ok(),
    };
    let page = app.queries.jobs(viewer.actor(), query, Seq::ZERO).await?;
    let found = page.rows.into_iter().map(|job| Found {
        kind: "Job",
        title: job.spec.name.clone(),
        about: format!("{} · {}", format::job_state(&job), format::image(&job.spec)),
        address: format!("/jobs/{}", job.job),
    });
    Ok(found.collect())
}

fn templates(templates: &Templates, has_all: impl Fn(&str) -> bool) -> Vec<Found> {
    let all = templates.all();
    let matching = all.iter().filter(|t| has_all(&format!("run {} {}", t.title, t.about)));
    let found = matching.take(MAX_OF_KIND).map(|t| Found {
        kind: "Run",
        title: t.title.clone(),
        about: t.about.clone(),
        address: format!("/jobs/new?template={}", t.id),
    });
    found.collect()
}

/// The words by which people look for a machine.
fn machine_words(machine: &MachineView) -> String {
    let offer = &machine.listed.offer;
    let model = hardware::gpus(&machine.listed);
    format!("{} {} {model} {} {}", offer.name, offer.region, offer.hardware.cpu_model, machine.listed.machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_finds_no_page_that_needs_an_account() {
        let titles = |viewer| pages(viewer, |_| true).into_iter().map(|found| found.address).collect::<Vec<_>>();
        let stranger = titles(Viewer::default());
        assert!(stranger.contains(&"/market".to_owned()) && !stranger.contains(&"/wallet".to_owned()));
        assert!(!stranger.iter().any(|address| address.starts_with("/console")));
        let found = pages(Viewer::default(), |text| text.contains("calculator"));
        assert_eq!(found.iter().map(|found| found.address.as_str()).collect::<Vec<_>>(), ["/earn"]);
    }

    #[test]
    fn a_number_is_the_sequence_of_an_event() {
        assert_eq!(event("#28").unwrap().address, "/events/28");
        assert!(event("0").is_none() && event("2 8").is_none() && event("x").is_none());
    }
}
