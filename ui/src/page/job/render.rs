//! Renders the parts of a job's page that change while it is open: summary, receipt, files and trail.

use std::sync::Arc;

use askama::Template;
use gpubnb_events::{
    JobId, Lease, MicroUsd, Millis, Seq, Timestamp,
    command::CancelJob,
    output::{JobMetrics, Progress},
    spec::PlacementExplanation,
};
use gpubnb_query::{
    request::{TrailOf, TrailQuery},
    view::{JobNews, JobState, JobView, MachineView, Receipt, TrailEvent},
};
use gpubnb_runtime::rpc::Failure;

use crate::{
    access::SignedIn,
    app::App,
    error::Problem,
    escape, format,
    live::output,
    page::{csrf_field, fragment, json},
};

#[derive(Template)]
#[template(path = "job_summary.html")]
struct Summary<'a> {
    job: &'a JobView,
    machine: Option<&'a MachineView>,
    progress: String,
    waiting: Option<PlacementExplanation>,
    now: Timestamp,
    csrf: String,
}

#[derive(Template)]
#[template(path = "job_events.html")]
struct TrailCard<'a> {
    trail: &'a [TrailEvent],
    now: Timestamp,
}

impl TrailCard<'_> {
    fn is_bad(&self, event: &str) -> bool {
        matches!(event, "Failed" | "Requeued" | "Cancelled" | "Declined")
    }

    /// The names of the events, each once, for the filter.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.trail.iter().map(|e| e.event.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The time at which it happened by its sender's clock, if the event has one.
    fn occurred(&self, event: &TrailEvent) -> Option<Timestamp> {
        event.body.get("occurred_at")?.as_str()?.parse().ok()
    }

    /// The number of the attempt that begins with this event: a line is drawn above it.
    fn begins_attempt(&self, event: &TrailEvent) -> Option<u64> {
        (event.event == "JobAssigned").then(|| event.body.get("attempt").and_then(serde_json::Value::as_u64)).flatten()
    }

    fn raw(&self, event: &TrailEvent) -> String {
        json(&event.body)
    }
}

#[derive(Template)]
#[template(path = "job_receipt.html")]
struct ReceiptCard<'a> {
    job: &'a JobView,
    receipt: Option<&'a Receipt>,
}

impl ReceiptCard<'_> {
    /// The sum of all postings. The receipt shows that it is zero.
    fn sum(&self, receipt: &Receipt) -> MicroUsd {
        receipt.settled.postings.iter().map(|p| p.amount).sum()
    }
}

#[derive(Template)]
#[template(path = "job_artifacts.html")]
struct Artifacts<'a> {
    job: &'a JobView,
}

impl Artifacts<'_> {
    fn is_picture(&self, path: &str) -> bool {
        let ending = path.rsplit('.').next().unwrap_or_default().to_lowercase();
        matches!(ending.as_str(), "png" | "jpg" | "jpeg" | "gif" | "webp")
    }

    fn is_text(&self, path: &str, bytes: u64) -> bool {
        let ending = path.rsplit('.').next().unwrap_or_default().to_lowercase();
        bytes <= PREVIEW && matches!(ending.as_str(), "txt" | "json" | "jsonl" | "csv" | "md" | "log" | "yaml" | "toml")
    }

    fn total(&self) -> u64 {
        self.job.outputs.iter().map(|a| a.bytes).sum()
    }

    fn link(&self, path: &str) -> String {
        let parts: Vec<_> = path.split('/').map(escape::url).collect();
        format!("/jobs/{}/artifacts/{}", self.job.job, parts.join("/"))
    }
}

/// Values of the summary that are remembered between two renderings, because they no longer change.
#[derive(Default)]
pub(super) struct SummaryCache {
    /// The machine of the newest attempt.
    machine: Option<(Lease, Arc<MachineView>)>,
    progress: Option<Progress>,
    /// The job has ended, so `progress` is final.
    final_progress: bool,
}

/// Most bytes of a text file that is shown on the page.
const PREVIEW: u64 = 64 * 1024;
/// A job must have run for this long before the remaining time is estimated.
const ESTIMATE_AFTER: Millis = Millis(3_000);
/// Events in one query.
const PAGE: u32 = 200;
/// Most events on the page.
const MOST_EVENTS: usize = 2_000;

/// A part whose data cannot be read shows the reason.
fn or_reason(part: Result<String, Problem>) -> String {
    part.unwrap_or_else(|p| format!("<p class=\"hint\">{}</p>", escape::html(&p.detail)))
}

/// The job's machine, state, costs, and the reason why it waits.
pub(super) async fn summary(app: &App, signed_in: SignedIn, job: &JobView, known: &mut SummaryCache) -> String {
    // Only the job's owner may see its progress, which the job writes.
    let own = job.account == signed_in.account;
    let ((), (), waiting) = tokio::join!(
        look_up_machine(app, signed_in, job, &mut known.machine),
        look_up_progress(app, own, job, &mut known.progress, &mut known.final_progress),
        waiting(app, signed_in, job),
    );
    let machine = known.machine.as_ref().map(|(_, machine)| machine.as_ref());
    let progress = known.progress.as_ref().map(|p| progress_bar(p, job)).unwrap_or_default();
    or_reason(fragment(&Summary {
        job,
        machine,
        progress,
        waiting,
        now: app.now(),
        csrf: csrf_field(signed_in.viewer),
    }))
}

/// The receipt, or a preview of it.
pub(super) async fn receipt(app: &App, signed_in: SignedIn, job: &JobView) -> String {
    let receipt = if job.settled { app.queries.receipt(signed_in.reader(), job.job, job.seq).await } else { Ok(None) };
    let card = |receipt: Option<Receipt>| fragment(&ReceiptCard { job, receipt: receipt.as_ref() });
    or_reason(receipt.map_err(Problem::from).and_then(card))
}

/// The files.
pub(super) fn artifacts(job: &JobView) -> String {
    or_reason(fragment(&Artifacts { job }))
}

/// Appends the events that notices carried to a trail. Returns true if the trail is then complete; otherwise it has to
/// be read on.
pub(super) fn take_in(trail: &mut Vec<TrailEvent>, news: &[Arc<JobNews>]) -> bool {
    for one in news {
        let last = trail.last().map_or(Seq::ZERO, |event| event.seq);
        trail.extend(one.trail.iter().filter(|event| event.seq > last).cloned());
    }
    news.last().is_some_and(|news| trail.len() >= news.before as usize + news.trail.len())
}

/// The trail. `trail` holds the events that are known; unless it is `complete`, it is read on, as of `at_least`.
pub(super) async fn events(
    app: &App,
    signed_in: SignedIn,
    job: JobId,
    (at_least, complete): (Seq, bool),
    trail: &mut Vec<TrailEvent>,
) -> String {
    let read = if complete { Ok(()) } else { read_on(app, signed_in, job, at_least, trail).await };
    or_reason(read.map_err(Problem::from).and_then(|()| fragment(&TrailCard { trail, now: app.now() })))
}

/// Appends the events after the end of `trail`.
pub(super) async fn read_on(
    app: &App,
    signed_in: SignedIn,
    job: JobId,
    at_least: Seq,
    trail: &mut Vec<TrailEvent>,
) -> Result<(), Failure> {
    while trail.len() < MOST_EVENTS {
        let skip = u32::try_from(trail.len()).unwrap_or(u32::MAX);
        let query = TrailQuery { of: TrailOf::Job(job), skip, limit: PAGE, from_end: false };
        let read = app.queries.trail(signed_in.reader(), query, at_least).await?.rows;
        let last = read.len() < PAGE as usize;
        trail.extend(read);
        if last {
            break;
        }
    }
    Ok(())
}

/// Looks up the machine of the newest attempt. If that fails, the page shows no name, which is better than no page.
async fn look_up_machine(app: &App, signed_in: SignedIn, job: &JobView, known: &mut Option<(Lease, Arc<MachineView>)>) {
    let Some(attempt) = job.attempts.last() else { return };
    if known.as_ref().is_none_or(|(lease, _)| *lease != attempt.lease) {
        let machine = match app.machines.machine(attempt.machine) {
            Some(machine) => Some(machine),
            None => app.queries.machine(signed_in.reader(), attempt.machine, Seq::ZERO).await.ok().map(Arc::new),
        };
        *known = machine.map(|machine| (attempt.lease, machine));
    }
}

async fn look_up_progress(app: &App, own: bool, job: &JobView, progress: &mut Option<Progress>, last: &mut bool) {
    if own && !*last && !job.attempts.is_empty() {
        *progress = output::progress(app, job).await;
        *last = job.ended_at.is_some();
    }
}

async fn waiting(app: &App, signed_in: SignedIn, job: &JobView) -> Option<PlacementExplanation> {
    if job.state != JobState::Queued {
        return None;
    }
    let body = CancelJob { job: job.job };
    // Without an explanation the page still says that the job waits.
    app.command::<Option<PlacementExplanation>>("job", "explain", signed_in.reader(), &body).await.ok().flatten()
}

/// A progress bar with the job's message and an estimate of the remaining time.
pub(super) fn progress_bar(progress: &Progress, job: &JobView) -> String {
    let percent = progress.fraction.clamp(0.0, 1.0) * 100.0;
    let message = escape::html(&progress.message);
    let left = left(progress, job).map(|left| format!(" · about {} left", format::duration(left))).unwrap_or_default();
    format!(
        "<progress value=\"{percent:.1}\" max=\"100\" aria-label=\"Progress\"></progress>\
         <span class=\"percent\">{percent:.0} %</span> <span class=\"hint\">{message}{left}</span>"
    )
}

/// The remaining time of a job if it goes on at its present pace; `None` while that cannot be estimated.
// The result is shown in seconds: nobody can see the precision that is lost.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn left(progress: &Progress, job: &JobView) -> Option<Millis> {
    let started = job.started_at.filter(|_| job.ended_at.is_none())?;
    let (done, ran) = (f64::from(progress.fraction), progress.occurred_at.since(started));
    let can_tell = (0.01..1.0).contains(&done) && ran >= ESTIMATE_AFTER;
    can_tell.then(|| Millis((ran.0 as f64 * (1.0 - done) / done) as u64 / 1_000 * 1_000))
}

/// Measurements as JSON, for the charts of the page.
pub(super) fn metrics_json(metrics: &JobMetrics) -> String {
    let at = metrics.occurred_at.millis();
    serde_json::json!({ "lease": metrics.lease, "at": at, "values": metrics.values }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::running_job;

    fn progress(fraction: f32, after_ms: u64) -> Progress {
        let lease = Lease(Seq(1));
        let occurred_at = Timestamp::EPOCH.plus(Millis(after_ms));
        Progress { lease, fraction, message: "<epoch 2>".to_owned(), occurred_at }
    }

    fn event(seq: u64) -> TrailEvent {
        let event = "JobProgress".to_owned();
        TrailEvent {
            seq: Seq(seq),
            recorded_at: Timestamp::EPOCH,
            wire_name: format!("{event}.v1"),
            event,
            actor: String::new(),
            cause: None,
            job: None,
            body: serde_json::Value::Null,
        }
    }

    #[test]
    fn the_remaining_time_is_estimated_from_the_pace_so_far() {
        let mut job = running_job();
        assert_eq!(left(&progress(0.25, 10_000), &job), Some(Millis(30_000)));
        assert_eq!(left(&progress(0.25, 1_000), &job), None, "too early to tell");
        assert_eq!(left(&progress(0.0, 10_000), &job), None, "no pace yet");
        assert_eq!(left(&progress(1.0, 10_000), &job), None, "nothing is left");
        job.ended_at = Some(Timestamp::EPOCH);
        assert_eq!(left(&progress(0.25, 10_000), &job), None, "it has ended");
    }

    #[test]
    fn a_progress_bar_stays_within_its_bounds_and_escapes_the_jobs_message() {
        let html = progress_bar(&progress(7.0, 10_000), &running_job());
        assert!(html.contains("value=\"100.0\"") && html.contains("100 %") && !html.contains("<epoch"), "{html}");
        let html = progress_bar(&progress(0.5, 10_000), &running_job());
        assert!(html.contains("about 10.0 s left"), "{html}");
    }

    #[test]
    fn a_trail_is_complete_when_nothing_is_missing_before_the_news() {
        let news = |before, seqs: &[u64]| {
            Arc::new(JobNews { job: running_job(), before, trail: seqs.iter().map(|seq| event(*seq)).collect() })
        };
        let mut trail = vec![event(1), event(2)];
        assert!(take_in(&mut trail, &[news(2, &[5])]));
        assert!(take_in(&mut trail, &[news(2, &[5]), news(3, &[6, 7])]), "what is known already is not repeated");
        assert_eq!(trail.iter().map(|e| e.seq.0).collect::<Vec<_>>(), [1, 2, 5, 6, 7]);
        assert!(!take_in(&mut trail, &[news(8, &[20])]), "events are missing in between");
        assert!(!take_in(&mut trail, &[]), "notices without news say nothing");
    }

    #[test]
    fn links_and_previews_of_files_depend_on_their_names() {
        let mut job = running_job();
        let artifact =
            |path: &str, bytes| gpubnb_events::spec::Artifact { path: path.to_owned(), bytes, sha256: String::new() };
        job.outputs = vec![artifact("plots/loss 1.PNG", 10), artifact("log.txt", PREVIEW + 1)];
        let card = Artifacts { job: &job };
        assert!(card.is_picture("plots/loss 1.PNG") && !card.is_picture("log.txt"));
        assert!(card.is_text("log.txt", PREVIEW) && !card.is_text("log.txt", PREVIEW + 1));
        assert_eq!(card.link("plots/loss 1.PNG"), format!("/jobs/{}/artifacts/plots/loss%201.PNG", job.job));
        assert_eq!(card.total(), PREVIEW + 11);
    }
}
