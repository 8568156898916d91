//! Reading the log of a job, which may be very long: the last lines, any range of lines, and a search through the whole
//! log. The log is not held in memory: a line is found in the stream OUTPUT by binary search. A worker sends the log in
//! chunks; each message of OUTPUT is one chunk of several lines.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    time::Duration,
};

use async_nats::{
    Client,
    jetstream::{message::StreamMessage, stream::Stream},
};
use futures_util::StreamExt as _;
use gpubnb_events::{
    JobId, Lease, MachineId,
    output::{JobMetrics, LogLine, LogLines, LogStream},
    subject::{self, OutputKind},
};
use gpubnb_log::{ReadError, message, stream::OUTPUT};
use gpubnb_query::view::JobView;
use tokio::time::timeout;

use super::output::{self, OutputItem, OutputReader, unavailable};
use crate::{ansi, app::App, error::Problem};

/// The number of lines that a page shows when it opens.
const TAIL_LINES: u64 = 1_000;
/// The maximum number of lines in one answer.
pub(crate) const MAX_LINES: u64 = 500;
/// The maximum number of lines that a search returns.
const MAX_FOUND: usize = 200;
/// The maximum number of points in a chart.
const MAX_POINTS: usize = 1_000;
/// The maximum duration of reading a range of lines.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum duration of a search.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(20);

/// A line of a log: the lease of its attempt, its line number (from 0) within the attempt, and the line itself.
pub(crate) type NumberedLine = (Lease, u64, LogLine);

/// The sequence of OUTPUT at which the last [`TAIL_LINES`] lines of a job begin. The result is 1, the start of the log,
/// if the log has at most twice as many lines or if the broker does not answer.
pub(crate) async fn tail_start(app: &App, row: &JobView) -> u64 {
    let Some(attempt) = row.attempts.last() else { return 1 };
    let Ok(log) = JobOutput::open(app, attempt.machine, row.job).await else { return 1 };
    match log.last().await {
        // The last chunk may belong to an earlier attempt on the same machine.
        Ok(Some((_, chunk))) if chunk.lease == attempt.lease => {
            let end = chunk.first_line + chunk.lines.len() as u64;
            if end <= 2 * TAIL_LINES {
                return 1;
            }
            log.find(attempt.lease, end - TAIL_LINES).await.ok().flatten().unwrap_or(1)
        }
        _ => 1,
    }
}

/// Reads at most [`MAX_LINES`] lines of an attempt, beginning with line `from`.
pub(crate) async fn lines(app: &App, row: &JobView, lease: Lease, from: u64) -> Result<Vec<NumberedLine>, Problem> {
    let Some(attempt) = row.attempts.iter().find(|a| a.lease == lease) else { return Ok(Vec::new()) };
    let log = JobOutput::open(app, attempt.machine, row.job).await?;
    let Some(start) = log.find(lease, from).await? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    log.read_lines(app, row, start, BROKER_TIMEOUT, |line| {
        if line.0 == lease && line.1 >= from {
            found.push(line);
        }
        (found.len() as u64) < MAX_LINES
    })
    .await?;
    Ok(found)
}

/// Finds the lines of the log that contain a text; capital letters make no difference. The boolean is true if the whole
/// log was searched.
pub(crate) async fn search(app: &App, row: &JobView, text: &str) -> Result<(Vec<NumberedLine>, bool), Problem> {
    let Ok(_permit) = app.searches.try_acquire() else {
        return Err(Problem::too_many("Too many searches are running.", 5));
    };
    let text = text.to_lowercase();
    let (mut found, mut is_complete) = (Vec::new(), true);
    let machines: HashSet<MachineId> = row.attempts.iter().map(|a| a.machine).collect();
    for machine in machines {
        let log = JobOutput::open(app, machine, row.job).await?;
        if log.last().await?.is_none() {
            continue;
        }
        let is_end_reached = log
            .read_lines(app, row, 1, SEARCH_TIMEOUT, |line| {
                if ansi::plain(&line.2.text).to_lowercase().contains(&text) {
                    found.push(line);
                }
                found.len() < MAX_FOUND
            })
            .await?;
        is_complete &= is_end_reached;
    }
    found.sort_by_key(|(lease, number, _)| (*lease, *number));
    Ok((found, is_complete))
}

/// The metrics of the newest attempt, oldest first. Of more than [`MAX_POINTS`] metrics, only every second, fourth or
/// eighth is returned, and so on.
pub(crate) async fn metrics(app: &App, row: &JobView) -> Result<Vec<JobMetrics>, Problem> {
    let (mut points, mut step, mut seen) = (Vec::new(), 1_usize, 0_usize);
    read_metrics(app, row, |metrics| {
        if seen.is_multiple_of(step) {
            points.push(metrics);
        }
        seen += 1;
        if points.len() == MAX_POINTS {
            // Drops every second point.
            let mut is_kept = false;
            points.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
            step *= 2;
        }
    })
    .await?;
    Ok(points)
}

/// The last value of each measurement of the newest attempt.
pub(crate) async fn last_metrics(app: &App, row: &JobView) -> Result<BTreeMap<String, f64>, Problem> {
    let mut last = BTreeMap::new();
    read_metrics(app, row, |metrics| last.extend(metrics.values)).await?;
    Ok(last)
}

/// Calls `each` with all metrics of the newest attempt, oldest first.
async fn read_metrics(app: &App, row: &JobView, mut each: impl FnMut(JobMetrics)) -> Result<(), Problem> {
    let Some(attempt) = row.attempts.last() else { return Ok(()) };
    let stream = app.js.get_stream_no_info(OUTPUT).await.map_err(|e| unavailable(&e))?;
    let subject = subject::output(attempt.machine, row.job, OutputKind::Metrics);
    let log = JobOutput { client: app.js.client(), stream, subject };
    if message::last(&log.client, &log.stream, &log.subject).await.map_err(|e| unavailable(&e))?.is_none() {
        return Ok(());
    }
    log.read_items(app, row, 1, BROKER_TIMEOUT, |item| {
        if let OutputItem::Metrics(metrics) = item
            && metrics.lease == attempt.lease
        {
            each(metrics);
        }
        true
    })
    .await?;
    Ok(())
}

/// The messages of OUTPUT with one kind of output of one job on one machine.
struct JobOutput {
    client: Client,
    stream: Stream<()>,
    subject: String,
}

impl JobOutput {
    async fn open(app: &App, machine: MachineId, job: JobId) -> Result<Self, Problem> {
        let stream = app.js.get_stream_no_info(OUTPUT).await.map_err(|e| unavailable(&e))?;
        Ok(Self { client: app.js.client(), stream, subject: subject::output(machine, job, OutputKind::Log) })
    }

    /// The last chunk, with its sequence.
    async fn last(&self) -> Result<Option<(u64, LogLines)>, Problem> {
        chunk(message::last(&self.client, &self.stream, &self.subject).await)
    }

    /// The first chunk at or after the sequence `from`, with its sequence.
    async fn next(&self, from: u64) -> Result<Option<(u64, LogLines)>, Problem> {
        chunk(message::next(&self.client, &self.stream, &self.subject, from).await)
    }

    /// The sequence of the chunk that contains a line: the last chunk whose first line is not after this line.
    async fn find(&self, lease: Lease, line: u64) -> Result<Option<u64>, Problem> {
        let (Some((first, _)), Some((last, _))) = (self.next(1).await?, self.last().await?) else { return Ok(None) };
        let is_not_after = |chunk: &LogLines| chunk.lease < lease || (chunk.lease == lease && chunk.first_line <= line);
        let (mut low, mut high) = (first, last);
        // Most sequences from `low` to `high` belong to other jobs: `next` finds the first chunk at or after `middle`.
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.next(middle).await? {
                Some((seq, chunk)) if seq <= high && is_not_after(&chunk) => low = seq,
                _ => high = middle - 1,
            }
        }
        Ok(Some(low))
    }

    /// Passes the lines to `take`, beginning with the chunk at the sequence `from`, until `take` returns false or the
    /// time `within` is over. Returns true if the end of the log was reached.
    async fn read_lines(
        &self,
        app: &App,
        row: &JobView,
        from: u64,
        within: Duration,
        mut take: impl FnMut(NumberedLine) -> bool,
    ) -> Result<bool, Problem> {
        let line = |item| match item {
            OutputItem::Line(lease, number, line) => take((lease, number, line)),
            OutputItem::Progress(_) | OutputItem::Metrics(_) => true,
        };
        self.read_items(app, row, from, within, line).await
    }

    /// The same as `read_lines`, for output of every kind.
    async fn read_items(
        &self,
        app: &App,
        row: &JobView,
        from: u64,
        within: Duration,
        mut take: impl FnMut(OutputItem) -> bool,
    ) -> Result<bool, Problem> {
        let mut messages = output::follow_subject(app, self.subject.clone(), from).await?;
        let machines = output::machines_by_lease(row);
        let mut reader = OutputReader::default();
        let reading = async {
            while let Some(message) = messages.next().await {
                let Some(output) = reader.read(&message, &machines) else { continue };
                if !output.items.into_iter().all(&mut take) {
                    return false;
                }
                if output.pending == 0 {
                    return true;
                }
            }
            false
        };
        // After a time-out the result is false, and the caller uses the items that it has received.
        Ok(timeout(within, reading).await.unwrap_or(false))
    }
}

fn chunk(read: Result<Option<StreamMessage>, ReadError>) -> Result<Option<(u64, LogLines)>, Problem> {
    // A machine may send invalid messages. An invalid message is treated as missing.
    let decode = |message: StreamMessage| Some((message.sequence, serde_json::from_slice(&message.payload).ok()?));
    Ok(read.map_err(|e| unavailable(&e))?.and_then(decode))
}

/// Renders lines as HTML, each with an anchor. The text of a job may be hostile, so it is escaped. ANSI colours become
/// CSS classes, and other control sequences are dropped.
pub(crate) fn lines_html(lines: &[NumberedLine]) -> String {
    lines.iter().fold(String::new(), |mut html, (lease, number, line)| {
        let class = if line.stream == LogStream::Stderr { "line err" } else { "line" };
        let at = line.at.to_string();
        let clock = at.get(11..23).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(
            html,
            "<div class=\"{class}\" id=\"L{lease}-{number}\"><a class=\"no\" href=\"#L{lease}-{number}\" \
             aria-label=\"Line {shown}\">{shown}</a><span class=\"at\">{clock}</span><code>{}{}</code></div>",
            ansi::html(&line.text),
            line.cut_mark(),
            shown = number + 1,
        );
        html
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{Seq, Timestamp};

    #[test]
    fn a_job_cannot_write_html_into_its_log() {
        let line = LogLine {
            stream: LogStream::Stdout,
            at: Timestamp::EPOCH,
            text: "<script>alert(1)</script>\u{1b}[31m & \"".to_owned(),
            cut: 0,
        };
        let html = lines_html(&[(Lease(Seq(1)), 0, line)]);
        assert!(!html.contains("<script>") && !html.contains('\u{1b}'), "{html}");
        assert!(html.contains("&#60;script&#62;") && html.contains("&#38; &#34;"));
    }
}
