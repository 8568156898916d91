//! Renders the parts of the job page that live updates replace: summary, receipt, files and trail.

use std::sync::Arc;

use askama::Template;
use gpubnb_events::{
    JobId, Lease, MicroUsd, Millis, Seq, Timestamp,
    command::ExplainJob,
    output::{JobMetrics, Progress},
    spec::PlacementExplanation,
};
use gpubnb_query::{
    request::{TrailOf, TrailQuery},
    view::{JobChange, JobState, JobView, MachineState, MachineView, Receipt, TrailEvent},
};
use gpubnb_runtime::rpc::RpcError;

use super::remedies::{Remedy, remedies};
use crate::{
    access::SignedIn,
    app::App,
    error::Problem,
    escape, format,
    live::output,
    page::{csrf_field, pretty_json, render_fragment},
};

#[derive(Template)]
#[template(path = "job_summary.html")]
struct SummaryCard<'a> {
    job: &'a JobView,
    machine: Option<&'a MachineView>,
    progress: String,
    /// The reason why a queued job waits for a machine.
    waiting: Option<PlacementExplanation>,
    /// What the job's owner can do about its failure.
    remedies: Vec<Remedy>,
    now: Timestamp,
    csrf: String,
}

/// A step on the way of a job, as the page shows it.
struct Step {
    name: &'static str,
    /// `done`, `current`, `next`, or `failed` for the last step of a job that failed or was cancelled.
    class: &'static str,
    /// The time that the step took or has taken so far, if it is known.
    time: Option<Millis>,
    /// When the present step began.
    since: Option<Timestamp>,
}

impl SummaryCard<'_> {
    /// The steps of the job's last attempt: waiting, preparing, running and saving files.
    fn steps(&self) -> [Step; 4] {
        let job = self.job;
        // A job that was given back waits again.
        let is_given_back = |ended: &str| matches!(ended, "Requeued" | "Declined");
        let attempt = job.attempts.last().filter(|attempt| !attempt.ended.as_deref().is_some_and(is_given_back));
        let assigned = attempt.map(|attempt| attempt.assigned_at);
        let started = job.started_at.filter(|started| assigned.is_some_and(|assigned| *started >= assigned));
        // Nobody knows since when a job waits that an earlier machine gave back.
        let is_first = job.attempts.len() <= usize::from(attempt.is_some());
        let submitted = is_first.then_some(job.submitted_at);
        let saving = job.exited_at.filter(|_| started.is_some());
        let steps = [
            ("Waiting", true, submitted, assigned),
            ("Preparing", assigned.is_some(), assigned, started),
            ("Running", started.is_some(), started, job.exited_at.or(job.ended_at)),
            ("Saving files", saving.is_some(), saving, job.ended_at),
        ];
        let last = steps.iter().rposition(|(_, has_begun, ..)| *has_begun).unwrap_or(0);
        std::array::from_fn(|number| {
            let (name, has_begun, began, end) = steps[number];
            let is_last = number == last;
            let class = match job.state {
                _ if !has_begun => "next",
                JobState::Failed | JobState::Cancelled if is_last => "failed",
                state if is_last && !state.is_over() => "current",
                _ => "done",
            };
            let time = began.map(|began| end.or(job.ended_at).unwrap_or(self.now).since(began));
            Step { name, class, time, since: began.filter(|_| class == "current") }
        })
    }

    /// True if the job is tried again after a failure of its machine.
    fn can_try_again(&self) -> bool {
        self.job.attempts.len() < self.job.limits.max_attempts as usize
    }

    /// True if the machine that runs the job has missed heartbeats.
    fn is_machine_silent(&self) -> bool {
        let is_running = self.job.attempt().is_some() && !self.job.state.is_over();
        is_running && self.machine.is_some_and(|machine| machine.listed.state() == MachineState::Suspect)
    }
}

#[derive(Template)]
#[template(path = "job_events.html")]
struct TrailCard<'a> {
    trail: &'a [TrailEvent],
    now: Timestamp,
}

impl TrailCard<'_> {
    fn is_failure(&self, event: &str) -> bool {
        matches!(event, "Failed" | "Requeued" | "Cancelled" | "Declined")
    }

    /// The names of the events, each once, as the choices of the filter.
    fn event_names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.trail.iter().map(|e| e.event.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The time of the event by its sender's clock, if the event has this time.
    fn occurred_at(&self, event: &TrailEvent) -> Option<Timestamp> {
        event.body.get("occurred_at")?.as_str()?.parse().ok()
    }

    /// The number of the attempt that this event begins. The table has a heading above such an event.
    fn begun_attempt(&self, event: &TrailEvent) -> Option<u64> {
        (event.event == "JobAssigned").then(|| event.body.get("attempt").and_then(serde_json::Value::as_u64)).flatten()
    }

    fn body_json(&self, event: &TrailEvent) -> String {
        pretty_json(&event.body)
    }
}

#[derive(Template)]
#[template(path = "job_receipt.html")]
struct ReceiptCard<'a> {
    job: &'a JobView,
    receipt: Option<&'a Receipt>,
}

impl ReceiptCard<'_> {
    /// The money of the hold that the job did not cost.
    fn returned(&self, settled: &gpubnb_events::event::Settled) -> MicroUsd {
        self.job.hold - settled.cost
    }

    /// The sum of all postings, which is always zero.
    fn sum(&self, receipt: &Receipt) -> MicroUsd {
        receipt.settled.postings.iter().map(|p| p.amount).sum()
    }
}

#[derive(Template)]
#[template(path = "job_artifacts.html")]
struct ArtifactsCard<'a> {
    job: &'a JobView,
}

impl ArtifactsCard<'_> {
    fn is_image(&self, path: &str) -> bool {
        let extension = path.rsplit('.').next().unwrap_or_default().to_lowercase();
        matches!(extension.as_str(), "png" | "jpg" | "jpeg" | "gif" | "webp")
    }

    /// True for a text file that is small enough for a preview.
    fn has_text_preview(&self, path: &str, bytes: u64) -> bool {
        let extension = path.rsplit('.').next().unwrap_or_default().to_lowercase();
        bytes <= MAX_PREVIEW_BYTES
            && matches!(extension.as_str(), "txt" | "json" | "jsonl" | "csv" | "md" | "log" | "yaml" | "toml")
    }

    fn total_bytes(&self) -> u64 {
        self.job.outputs.iter().map(|a| a.bytes).sum()
    }

    fn link(&self, path: &str) -> String {
        let segments: Vec<_> = path.split('/').map(escape::url).collect();
        format!("/jobs/{}/artifacts/{}", self.job.job, segments.join("/"))
    }
}

/// The data of the summary that is kept between two renderings, to avoid queries.
#[derive(Default)]
pub(super) struct SummaryCache {
    /// The machine of the newest attempt, with the attempt's lease.
    machine: Option<(Lease, Arc<MachineView>)>,
    /// The sequence that the next look-up of the machine must reflect.
    machine_seq: Seq,
    progress: Option<Progress>,
    /// True if the job has ended, so that `progress` is final.
    is_progress_final: bool,
}

impl SummaryCache {
    /// Makes the next rendering look up the machine again, as of an event of the machine.
    pub(super) fn forget_machine(&mut self, seq: Seq) {
        (self.machine, self.machine_seq) = (None, seq);
    }
}

/// Maximum size of a text file with a preview on the page, bytes.
const MAX_PREVIEW_BYTES: u64 = 64 * 1024;
/// Minimum run time before the remaining time is estimated.
const MIN_RUN_TIME: Millis = Millis(3_000);
/// Events in one query of the trail.
const TRAIL_QUERY_SIZE: u32 = 200;
/// Maximum number of events in a trail.
const MAX_EVENTS: usize = 2_000;

/// Shows the error message in place of a part that cannot be rendered.
fn or_error(part: Result<String, Problem>) -> String {
    part.unwrap_or_else(|p| format!("<p class=\"hint\">{}</p>", escape::html(&p.detail)))
}

pub(super) async fn render_summary(app: &App, signed_in: SignedIn, job: &JobView, cache: &mut SummaryCache) -> String {
    // Only the job's owner may see the job's output, which includes the progress.
    let is_own = job.account == signed_in.account;
    let ((), (), waiting) = tokio::join!(
        update_machine(app, signed_in, job, cache.machine_seq, &mut cache.machine),
        update_progress(app, is_own, job, &mut cache.progress, &mut cache.is_progress_final),
        explain_waiting(app, signed_in, job),
    );
    let machine = cache.machine.as_ref().map(|(_, machine)| machine.as_ref());
    let progress = cache.progress.as_ref().map(|p| progress_bar(p, job)).unwrap_or_default();
    or_error(render_fragment(&SummaryCard {
        job,
        machine,
        progress,
        waiting,
        remedies: if is_own { remedies(job) } else { Vec::new() },
        now: app.now(),
        csrf: csrf_field(signed_in.viewer),
    }))
}

/// Renders the receipt, or a hint while the job has none.
pub(super) async fn render_receipt(app: &App, signed_in: SignedIn, job: &JobView) -> String {
    let receipt =
        if job.settled { app.queries.receipt(signed_in.reading_actor(), job.job, job.seq).await } else { Ok(None) };
    let card = |receipt: Option<Receipt>| render_fragment(&ReceiptCard { job, receipt: receipt.as_ref() });
    or_error(receipt.map_err(Problem::from).and_then(card))
}

pub(super) fn render_artifacts(job: &JobView) -> String {
    or_error(render_fragment(&ArtifactsCard { job }))
}

/// Appends the events of job changes to a trail, up to the first gap. Returns true if the trail is then complete. If
/// not, [`read_trail`] reads on from the end of the trail. An empty list of changes means that something unknown has
/// changed, so the trail is not complete.
pub(super) fn append_changes(trail: &mut Vec<TrailEvent>, changes: &[Arc<JobChange>]) -> bool {
    for change in changes {
        if trail.len() < change.before as usize {
            return false;
        }
        let last = trail.last().map_or(Seq::ZERO, |event| event.seq);
        trail.extend(change.trail.iter().filter(|event| event.seq > last).cloned());
    }
    !changes.is_empty()
}

/// Renders the trail. `trail` contains the known events. Unless the trail is complete, the function first reads the
/// missing events, from a read model that has folded the log at least up to `min_seq`.
pub(super) async fn render_trail(
    app: &App,
    signed_in: SignedIn,
    job: JobId,
    (min_seq, is_complete): (Seq, bool),
    trail: &mut Vec<TrailEvent>,
) -> String {
    let read = if is_complete { Ok(()) } else { read_trail(app, signed_in, job, min_seq, trail).await };
    or_error(read.map_err(Problem::from).and_then(|()| render_fragment(&TrailCard { trail, now: app.now() })))
}

/// Appends the events that follow the last event in `trail`.
pub(super) async fn read_trail(
    app: &App,
    signed_in: SignedIn,
    job: JobId,
    min_seq: Seq,
    trail: &mut Vec<TrailEvent>,
) -> Result<(), RpcError> {
    while trail.len() < MAX_EVENTS {
        let skip = u32::try_from(trail.len()).unwrap_or(u32::MAX);
        let query = TrailQuery { of: TrailOf::Job(job), skip, limit: TRAIL_QUERY_SIZE, from_end: false };
        let rows = app.queries.trail(signed_in.reading_actor(), query, min_seq).await?.rows;
        let is_last_page = rows.len() < TRAIL_QUERY_SIZE as usize;
        trail.extend(rows);
        if is_last_page {
            break;
        }
    }
    Ok(())
}

/// Looks up the machine of the newest attempt. If the query fails, the page shows no machine name.
async fn update_machine(
    app: &App,
    signed_in: SignedIn,
    job: &JobView,
    seq: Seq,
    cached: &mut Option<(Lease, Arc<MachineView>)>,
) {
    let Some(attempt) = job.attempts.last() else { return };
    if cached.as_ref().is_none_or(|(lease, _)| *lease != attempt.lease) {
        let machine = match app.machines.machine(attempt.machine).filter(|_| seq == Seq::ZERO) {
            Some(machine) => Some(machine),
            None => app.queries.machine(signed_in.reading_actor(), attempt.machine, seq).await.ok().map(Arc::new),
        };
        *cached = machine.map(|machine| (attempt.lease, machine));
    }
}

async fn update_progress(app: &App, is_own: bool, job: &JobView, progress: &mut Option<Progress>, is_final: &mut bool) {
    if is_own && !*is_final && !job.attempts.is_empty() {
        let newest = output::progress(app, job).await;
        // `None` may also mean that the broker did not answer, so it is never final: the next rendering asks again.
        *is_final = job.ended_at.is_some() && newest.is_some();
        *progress = newest.or(progress.take());
    }
}

async fn explain_waiting(app: &App, signed_in: SignedIn, job: &JobView) -> Option<PlacementExplanation> {
    if job.state != JobState::Queued {
        return None;
    }
    let body = ExplainJob { job: job.job };
    // If the command fails, the page shows the state without an explanation.
    app.command::<Option<PlacementExplanation>>("job", "explain", signed_in.reading_actor(), &body).await.ok().flatten()
}

/// Renders a progress bar with the job's message and an estimate of the remaining time.
pub(super) fn progress_bar(progress: &Progress, job: &JobView) -> String {
    // A job that has completed is done, whatever its last report said.
    let is_complete = job.state == JobState::Completed;
    let percent = if is_complete { 100.0 } else { progress.fraction.clamp(0.0, 1.0) * 100.0 };
    let message = escape::html(&progress.message);
    let left = remaining_time(progress, job)
        .map(|time| format!(" · about {} left", format::duration(time)))
        .unwrap_or_default();
    let stopped = if job.state.is_over() && !is_complete { "stopped at " } else { "" };
    format!(
        "<progress value=\"{percent:.1}\" max=\"100\" aria-label=\"Progress\"></progress>\
         <span class=\"percent\">{stopped}{percent:.0} %</span> <span class=\"hint\">{message}{left}</span>"
    )
}

/// Estimates the remaining time from the average pace so far, in whole seconds. `None` before [`MIN_RUN_TIME`], below
/// 1 % and at 100 %.
// The result is rounded down to seconds, so the casts lose nothing that is shown.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn remaining_time(progress: &Progress, job: &JobView) -> Option<Millis> {
    let started = job.started_at.filter(|_| job.ended_at.is_none())?;
    let (done, ran) = (f64::from(progress.fraction), progress.occurred_at.since(started));
    let can_estimate = (0.01..1.0).contains(&done) && ran >= MIN_RUN_TIME;
    can_estimate.then(|| Millis((ran.0 as f64 * (1.0 - done) / done) as u64 / 1_000 * 1_000))
}

/// One report of measurements as JSON for the charts: `{"lease":7,"at":<Unix milliseconds>,"values":[["loss",0.3]]}`.
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
        assert_eq!(remaining_time(&progress(0.25, 10_000), &job), Some(Millis(30_000)));
        assert_eq!(remaining_time(&progress(0.25, 1_000), &job), None, "the job has not run long enough");
        assert_eq!(remaining_time(&progress(0.0, 10_000), &job), None, "without progress there is no pace");
        assert_eq!(remaining_time(&progress(1.0, 10_000), &job), None, "the job is complete");
        job.ended_at = Some(Timestamp::EPOCH);
        assert_eq!(remaining_time(&progress(0.25, 10_000), &job), None, "the job has ended");
    }

    #[test]
    fn the_steps_of_a_job_follow_its_state() {
        let mut job = running_job();
        let steps = |job: &JobView| {
            let card = SummaryCard {
                job,
                machine: None,
                progress: String::new(),
                waiting: None,
                remedies: Vec::new(),
                now: Timestamp::EPOCH.plus(Millis(9_000)),
                csrf: String::new(),
            };
            card.steps().map(|step| (step.class, step.time.map(|time| time.0)))
        };
        job.state = JobState::Queued;
        job.started_at = None;
        assert_eq!(steps(&job), [("current", Some(9_000)), ("next", None), ("next", None), ("next", None)]);
        let attempt = serde_json::json!({
            "lease": 1, "machine": gpubnb_events::MachineId::generate(),
            "assigned_at": Timestamp::EPOCH.plus(Millis(1_000)),
            "terms": { "price": 1, "fee_basis_points": 0, "provider": job.account },
            "placement": { "candidates": 1, "rejected": [], "chosen": null },
        });
        job.attempts = vec![serde_json::from_value(attempt).unwrap()];
        job.state = JobState::Running;
        job.started_at = Some(Timestamp::EPOCH.plus(Millis(3_000)));
        assert_eq!(steps(&job)[..3], [("done", Some(1_000)), ("done", Some(2_000)), ("current", Some(6_000))]);
        job.exited_at = Some(Timestamp::EPOCH.plus(Millis(5_000)));
        job.ended_at = Some(Timestamp::EPOCH.plus(Millis(6_000)));
        job.state = JobState::Completed;
        assert_eq!(steps(&job)[2..], [("done", Some(2_000)), ("done", Some(1_000))]);
        job.state = JobState::Failed;
        assert_eq!(steps(&job).map(|(class, _)| class), ["done", "done", "done", "failed"]);
        // A job whose machine was lost waits again, and its end is no end of the lost attempt.
        job.attempts[0].ended = Some("Requeued".to_owned());
        job.state = JobState::Queued;
        assert_eq!(steps(&job).map(|(class, _)| class), ["current", "next", "next", "next"]);
        job.state = JobState::Cancelled;
        assert_eq!(steps(&job)[0], ("failed", None));
    }

    #[test]
    fn a_progress_bar_stays_within_its_bounds_and_escapes_the_jobs_message() {
        let html = progress_bar(&progress(7.0, 10_000), &running_job());
        assert!(html.contains("value=\"100.0\"") && html.contains("100 %") && !html.contains("<epoch"), "{html}");
        let html = progress_bar(&progress(0.5, 10_000), &running_job());
        assert!(html.contains("about 10.0 s left"), "{html}");
        let mut job = running_job();
        job.state = JobState::Completed;
        assert!(progress_bar(&progress(0.5, 10_000), &job).contains("100 %"));
        job.state = JobState::Cancelled;
        assert!(progress_bar(&progress(0.39, 10_000), &job).contains("stopped at 39 %"));
    }

    #[test]
    fn a_trail_is_complete_if_no_event_is_missing_before_the_changes() {
        let change = |before, seqs: &[u64]| {
            Arc::new(JobChange { job: running_job(), before, trail: seqs.iter().map(|seq| event(*seq)).collect() })
        };
        let mut trail = vec![event(1), event(2)];
        assert!(append_changes(&mut trail, &[change(2, &[5])]));
        assert!(
            append_changes(&mut trail, &[change(2, &[5]), change(3, &[6, 7])]),
            "known events are not appended again"
        );
        assert_eq!(trail.iter().map(|e| e.seq.0).collect::<Vec<_>>(), [1, 2, 5, 6, 7]);
        assert!(!append_changes(&mut trail, &[change(8, &[20])]), "events before the change are missing");
        assert_eq!(trail.len(), 5, "the trail is read on from its end, so nothing may stand behind a gap");
        assert!(!append_changes(&mut trail, &[]), "something unknown has changed");
    }

    #[test]
    fn links_and_previews_of_artifacts_depend_on_their_paths_and_sizes() {
        let mut job = running_job();
        let artifact =
            |path: &str, bytes| gpubnb_events::spec::Artifact { path: path.to_owned(), bytes, sha256: String::new() };
        job.outputs = vec![artifact("plots/loss 1.PNG", 10), artifact("log.txt", MAX_PREVIEW_BYTES + 1)];
        let card = ArtifactsCard { job: &job };
        assert!(card.is_image("plots/loss 1.PNG") && !card.is_image("log.txt"));
        assert!(
            card.has_text_preview("log.txt", MAX_PREVIEW_BYTES)
                && !card.has_text_preview("log.txt", MAX_PREVIEW_BYTES + 1)
        );
        assert_eq!(card.link("plots/loss 1.PNG"), format!("/jobs/{}/artifacts/plots/loss%201.PNG", job.job));
        assert_eq!(card.total_bytes(), MAX_PREVIEW_BYTES + 11);
    }
}
