//! Follows a job: shows its output and its progress until the job is settled.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    CANCELLED,
    api::Api,
    show::sanitize,
    stream::{Event, EventStream},
};

/// Time to wait for another line of output after the job is settled: the last lines may arrive late.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(700);
/// Time that a job may wait for a machine before the client prints the reason.
const EXPLAIN_AFTER: Duration = Duration::from_secs(3);
/// Exit code of the client if a job failed and the job has no exit code of its own.
const JOB_FAILED: u8 = 1;

/// `gpubnb logs`: prints the output of a job. With `follow`, also the output to come, until the job is settled.
pub(crate) async fn logs(api: &Api, job: &str, follow: bool, json: bool) -> anyhow::Result<u8> {
    if follow {
        return follow_until_settled(api, job, json, false).await.map(|_| 0);
    }
    let mut cursor = String::new();
    loop {
        let page = api.get(&format!("/jobs/{job}/logs{cursor}")).await?;
        for line in page["rows"].as_array().into_iter().flatten() {
            print_line(line, json);
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("?cursor={next}"),
            None => return Ok(0),
        }
    }
}

/// Prints a line of a job's output to the stream to which the job wrote the line: stdout or stderr. Control characters
/// are replaced, as they could control the terminal.
fn print_line(line: &Value, json: bool) {
    let text = sanitize(line["text"].as_str().unwrap_or_default());
    match (json, line["stream"].as_str()) {
        (true, _) => outln!("{line}"),
        (false, Some("stderr")) => eprintln!("{text}"),
        (false, _) => outln!("{text}"),
    }
}

/// Shows the progress and the output of a job until the job is settled, and returns the settled job. With
/// `cancels_on_ctrl_c`, the first Ctrl-C cancels the job, and the second Ctrl-C ends the client.
pub(crate) async fn follow_until_settled(
    api: &Api,
    job: &str,
    json: bool,
    cancels_on_ctrl_c: bool,
) -> anyhow::Result<Value> {
    // The bar counts in thousandths of the work.
    let bar = ProgressBar::new(1_000);
    bar.set_style(ProgressStyle::with_template("{msg:<44} [{bar:30}] {percent:>3} %")?.progress_chars("=> "));
    let mut events = EventStream::new(api, format!("/jobs/{job}/events/stream"));
    let mut output = EventStream::new(api, format!("/jobs/{job}/logs/stream"));
    let mut is_cancelling = false;
    let mut explain_timer = Box::pin(sleep(EXPLAIN_AFTER));
    let settled = loop {
        tokio::select! {
            () = &mut explain_timer, if !explain_timer.is_elapsed() => {
                if let Some(why) = waiting_reason(&api.get(&format!("/jobs/{job}")).await?) {
                    bar.suspend(|| eprintln!("{why}"));
                }
            }
            event = events.next() => {
                let event = event?;
                bar.set_message(event.name.clone());
                if event.name == "Settled" {
                    break event.data["seq"].as_u64().unwrap_or(0);
                }
            }
            event = output.next() => print_output(event?, &bar, json),
            pressed = tokio::signal::ctrl_c(), if cancels_on_ctrl_c => {
                pressed?;
                if is_cancelling {
                    anyhow::bail!("the job is being stopped; to follow the job: gpubnb logs -f {job}");
                }
                is_cancelling = true;
                bar.suspend(|| eprintln!("Asking the job to stop. Press Ctrl-C again to end the client."));
                if let Err(e) = api.post(&format!("/jobs/{job}/cancel"), &json!({})).await {
                    bar.suspend(|| eprintln!("{e:#}"));
                }
            }
        }
    };
    while let Ok(Ok(event)) = timeout(LAST_LINES_TIMEOUT, output.next()).await {
        print_output(event, &bar, json);
    }
    bar.finish_and_clear();
    api.get(&format!("/jobs/{job}?min_seq={settled}")).await
}

/// The reason why a job waits for a machine; `None` if the job does not wait.
fn waiting_reason(job: &Value) -> Option<String> {
    let waiting = job["waiting"].as_object()?;
    let count_and_reason = |r: &Value| format!("{} {}", r["machines"], r["reason"].as_str().unwrap_or_default());
    let rejected: Vec<_> = waiting["rejected"].as_array().into_iter().flatten().map(count_and_reason).collect();
    let chosen = waiting["chosen"].as_str().unwrap_or_default();
    let machines = if rejected.is_empty() { "there are no machines".to_owned() } else { rejected.join(", ") };
    Some(sanitize(&format!("The job waits: {chosen} ({machines}).")))
}

/// Prints a line of output, or moves the progress bar.
fn print_output(event: Event, bar: &ProgressBar, json: bool) {
    match event.name.as_str() {
        "line" => bar.suspend(|| print_line(&event.data, json)),
        "progress" => {
            let fraction = event.data["fraction"].as_f64().unwrap_or(0.0).clamp(0.0, 1.0);
            // The result is between 0 and 1,000, so the conversion loses nothing that matters.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            bar.set_position((fraction * 1_000.0) as u64);
            bar.set_message(sanitize(event.data["message"].as_str().unwrap_or_default()));
        }
        _ => {}
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
    fn the_client_exits_with_the_exit_code_of_the_job() {
        let code = |job: Value| exit_code(&job);
        assert_eq!(code(json!({ "state": "Completed" })), 0);
        assert_eq!(code(json!({ "state": "Failed", "reason": { "name": "NonZeroExit", "code": 3 } })), 3);
        assert_eq!(code(json!({ "state": "Failed", "reason": { "name": "TimeLimit" } })), 1);
        assert_eq!(code(json!({ "state": "Cancelled" })), 130);
    }
}
