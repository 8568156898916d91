//! Follows a job: shows its output and its progress until the job is settled.

use std::{collections::HashMap, io::IsTerminal as _, time::Duration};

use anyhow::Context as _;
use gpubnb_events::{Clock as _, SystemClock, Timestamp, text::make_plain};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    CANCELLED,
    api::Api,
    args::LineFilter,
    show::rejections,
    signal::StopSignal,
    stream::{Event, EventStream},
};

/// Longest silence of the market between the settlement of a job and the end of its output.
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// Time that a job may wait for a machine before the client prints the reason.
const EXPLAIN_AFTER: Duration = Duration::from_secs(3);
/// The most characters of an unfinished line. The width of a small terminal.
const MAX_UNFINISHED: usize = 76;
/// Exit code of the client if a job failed and the job has no exit code of its own.
const JOB_FAILED: u8 = 1;

/// `gpubnb logs`: prints the output of a job. With `follow`, also the output to come, until the job is settled.
pub(crate) async fn logs(api: &Api, job: &str, follow: bool, filter: LineFilter, json: bool) -> anyhow::Result<u8> {
    let mut printer = LogPrinter::new(json, filter);
    if follow {
        return follow_with(api, job, printer, None).await.map(|_| 0);
    }
    let mut cursor = String::new();
    loop {
        let page = api.get(&format!("/jobs/{job}/logs{cursor}")).await?;
        for line in page["rows"].as_array().into_iter().flatten().filter(|line| printer.is_printed(line)) {
            print_line(line, json);
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("?cursor={next}"),
            None => return Ok(0),
        }
    }
}

/// Prints a line of a job's output to the stream to which the job wrote the line: stdout or stderr. For a terminal,
/// control characters are replaced, as they could control the terminal. A file or a pipe gets the line as it is.
fn print_line(line: &Value, json: bool) {
    let text = line["text"].as_str().unwrap_or_default();
    let for_terminal = |is_terminal: bool| if is_terminal { make_plain(text) } else { text.to_owned() };
    match (json, line["stream"].as_str()) {
        (true, _) => outln!("{line}"),
        (false, Some("stderr")) => errln!("{}", for_terminal(std::io::stderr().is_terminal())),
        (false, _) => outln!("{}", for_terminal(std::io::stdout().is_terminal())),
    }
}

/// Shows the progress and the output of a job until the job is settled, and returns the settled job. With `stop`, the
/// first signal cancels the job, and the second signal ends the client.
pub(crate) async fn follow_until_settled(
    api: &Api,
    job: &str,
    json: bool,
    stop: Option<&mut StopSignal>,
) -> anyhow::Result<Value> {
    follow_with(api, job, LogPrinter::new(json, LineFilter::default()), stop).await
}

async fn follow_with(
    api: &Api,
    job: &str,
    mut lines: LogPrinter,
    mut stop: Option<&mut StopSignal>,
) -> anyhow::Result<Value> {
    // The bar counts in thousandths of the work. Only a terminal shows the bar, and above it the line that the job has
    // not finished yet.
    let bar = ProgressBar::new(1_000);
    bar.set_style(ProgressStyle::with_template("{prefix}{msg:<44} [{bar:30}] {percent:>3} %")?.progress_chars("=> "));
    let mut events = EventStream::new(api, format!("/jobs/{job}/events/stream"));
    let mut output = EventStream::new(api, format!("/jobs/{job}/logs/stream"));
    let (mut is_cancelling, mut is_complete) = (false, false);
    let mut explain_timer = Box::pin(sleep(EXPLAIN_AFTER));
    let settled = loop {
        tokio::select! {
            () = &mut explain_timer, if !explain_timer.is_elapsed() => {
                if let Some(why) = waiting_reason(&api.get(&format!("/jobs/{job}")).await?) {
                    bar.suspend(|| errln!("{why}"));
                }
            }
            event = events.next() => {
                let event = event?;
                bar.set_message(event.name.clone());
                if let Some(seq) = settlement(&event) {
                    break seq;
                }
            }
            event = output.next(), if !is_complete => is_complete = lines.print(&event?, &bar),
            () = received(&mut stop) => {
                if is_cancelling {
                    anyhow::bail!("the job is being stopped; to follow the job: gpubnb logs -f {job}");
                }
                is_cancelling = true;
                bar.suspend(|| errln!("Asking the job to stop. Press Ctrl-C again to end the client."));
                if let Err(e) = api.post(&format!("/jobs/{job}/cancel"), &json!({})).await {
                    bar.suspend(|| errln!("{e:#}"));
                }
            }
        }
    };
    while !is_complete {
        let next = timeout(END_TIMEOUT, output.next());
        tokio::select! {
            event = next => {
                let event = event.context("the end of the job's output did not arrive")?;
                is_complete = lines.print(&event?, &bar);
            }
            () = received(&mut stop) => anyhow::bail!("the job has ended; the rest of its output: gpubnb logs {job}"),
        }
    }
    bar.finish_and_clear();
    api.get(&format!("/jobs/{job}?min_seq={settled}")).await
}

/// The reason why a job waits for a machine; `None` if the job does not wait.
fn waiting_reason(job: &Value) -> Option<String> {
    let waiting = job.get("waiting").filter(|waiting| waiting.is_object())?;
    Some(format!("The job waits ({}).", rejections(waiting)))
}

/// The sequence of a job's settlement; `None` for another event.
fn settlement(event: &Event) -> Option<u64> {
    (event.name == "Settled").then(|| event.data["seq"].as_u64().unwrap_or(0))
}

/// `gpubnb wait`: waits until a job is settled. The exit code is that of the job.
pub(crate) async fn wait(api: &Api, job: &str, json: bool) -> anyhow::Result<u8> {
    let mut events = EventStream::new(api, format!("/jobs/{job}/events/stream"));
    let settled = loop {
        if let Some(seq) = settlement(&events.next().await?) {
            break seq;
        }
    };
    let ended = api.get(&format!("/jobs/{job}?min_seq={settled}")).await?;
    outln!("{}", if json { ended.to_string() } else { make_plain(ended["summary"].as_str().unwrap_or_default()) });
    Ok(exit_code(&ended))
}

/// Waits for a signal; for ever if there is none to wait for.
async fn received(stop: &mut Option<&mut StopSignal>) {
    match stop {
        Some(stop) => stop.received().await,
        None => std::future::pending().await,
    }
}

/// The newest characters of the lines that a job has not finished yet, each with a line end. The text could control the
/// terminal, so control characters are replaced.
fn unfinished_lines(event: &Value) -> String {
    let texts = [&event["stdout"], &event["stderr"]].map(|text| make_plain(text.as_str().unwrap_or_default()));
    texts.iter().filter(|text| !text.is_empty()).fold(String::new(), |mut lines, text| {
        let skipped = text.chars().count().saturating_sub(MAX_UNFINISHED);
        lines.extend(text.chars().skip(skipped).chain(['\n']));
        lines
    })
}

/// Prints each line of a job's output once, although a stream that is opened again may repeat lines.
struct LogPrinter {
    json: bool,
    /// Lines must have this text.
    text: Option<String>,
    /// Lines must not be older than this.
    since: Option<Timestamp>,
    /// The number of the next line of each attempt, by lease.
    next: HashMap<u64, u64>,
}

impl LogPrinter {
    fn new(json: bool, filter: LineFilter) -> Self {
        let since = filter.since.map(|age| {
            Timestamp::from_millis(SystemClock.now().millis().saturating_sub(i64::try_from(age.0).unwrap_or(i64::MAX)))
        });
        Self { json, text: filter.grep, since, next: HashMap::new() }
    }

    /// True for a line that was not printed before, and that the filter lets pass.
    fn is_printed(&mut self, line: &Value) -> bool {
        let has_text = self.text.as_deref().is_none_or(|text| line["text"].as_str().unwrap_or_default().contains(text));
        let at = line["at"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        let is_young = self.since.is_none_or(|since| at.is_none_or(|at| at >= since));
        self.is_new(line) && has_text && is_young
    }

    /// Prints a line, or moves the progress bar. Returns true at the end of the output.
    fn print(&mut self, event: &Event, bar: &ProgressBar) -> bool {
        match event.name.as_str() {
            "line" if self.is_printed(&event.data) => bar.suspend(|| print_line(&event.data, self.json)),
            "progress" => {
                let fraction = event.data["fraction"].as_f64().unwrap_or(0.0).clamp(0.0, 1.0);
                // The result is between 0 and 1,000, so the conversion loses nothing that matters.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                bar.set_position((fraction * 1_000.0) as u64);
                bar.set_message(make_plain(event.data["message"].as_str().unwrap_or_default()));
            }
            "unfinished" => bar.set_prefix(unfinished_lines(&event.data)),
            "end" => bar.set_prefix(""),
            _ => {}
        }
        event.name == "end"
    }

    fn is_new(&mut self, line: &Value) -> bool {
        let (Some(lease), Some(number)) = (line["lease"].as_u64(), line["number"].as_u64()) else { return true };
        let next = self.next.entry(lease).or_default();
        let is_new = number >= *next;
        *next = (*next).max(number + 1);
        is_new
    }
}

/// The exit code of the client for a job that has ended: the job's own exit code, if the job has one.
pub(crate) fn exit_code(job: &Value) -> u8 {
    match job["state"].as_str() {
        Some("Completed") => 0,
        Some("Cancelled") => CANCELLED,
        _ => job["reason"]["code"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(JOB_FAILED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_lines_are_shown_without_control_characters() {
        let event = json!({ "lease": 7, "stdout": "loading… ", "stderr": "10 %\u{1b}[2J" });
        let shown = unfinished_lines(&event);
        assert!(shown.starts_with("loading… \n10 %") && shown.ends_with('\n'), "{shown}");
        assert!(!shown.contains('\u{1b}'));
        assert_eq!(unfinished_lines(&json!({ "stdout": "", "stderr": "" })), "");
    }

    #[test]
    fn the_client_exits_with_the_exit_code_of_the_job() {
        let code = |job: Value| exit_code(&job);
        assert_eq!(code(json!({ "state": "Completed" })), 0);
        assert_eq!(code(json!({ "state": "Failed", "reason": { "name": "NonZeroExit", "code": 3 } })), 3);
        assert_eq!(code(json!({ "state": "Failed", "reason": { "name": "TimeLimit" } })), 1);
        assert_eq!(code(json!({ "state": "Cancelled" })), 130);
    }
}
