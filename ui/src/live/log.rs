//! Reading the log of a job, however long it is: its end, any range of lines, and a search through all of it. Nothing
//! is kept in memory: a line is found in the stream OUTPUT by binary search.

use std::{collections::HashSet, fmt::Write as _, time::Duration};

use async_nats::jetstream::{
    message::StreamMessage,
    stream::{DirectGetErrorKind, Stream},
};
use futures_util::StreamExt as _;
use gpubnb_events::{
    JobId, Lease, MachineId,
    output::{JobMetrics, LogLine, LogLines, LogStream},
    subject::{self, OutputKind},
};
use gpubnb_log::stream::OUTPUT;
use gpubnb_query::view::JobView;
use tokio::time::timeout;

use super::output::{self, OutputReader, Said, unavailable};
use crate::{ansi, app::App, error::Problem};

/// Lines that a page shows when it opens.
const TAIL: u64 = 1_000;
/// Most lines in one answer.
pub(crate) const PART: u64 = 500;
/// Most lines that a search finds.
const MOST_FOUND: usize = 200;
/// Most points of a chart.
const MOST_POINTS: usize = 1_000;
/// How long reading waits for the broker.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a search may take.
const SEARCH_WITHIN: Duration = Duration::from_secs(20);

/// A line of a log: its attempt, its number within the attempt, its text.
pub(crate) type NumberedLine = (Lease, u64, LogLine);

/// The sequence of OUTPUT at which the last lines of a job begin. It is 1 if the log is short, or if the broker does
/// not answer.
pub(crate) async fn tail(app: &App, row: &JobView) -> u64 {
    let Some(attempt) = row.attempts.last() else { return 1 };
    let Ok(log) = Log::open(app, attempt.machine, row.job).await else { return 1 };
    match log.last().await {
        // The machine may have run an earlier attempt of the job, so the chunk's own lease is compared.
        Ok(Some((_, chunk))) if chunk.lease == attempt.lease => {
            let end = chunk.first_line + chunk.lines.len() as u64;
            if end <= 2 * TAIL {
                return 1;
            }
            log.find(attempt.lease, end - TAIL).await.ok().flatten().unwrap_or(1)
        }
        _ => 1,
    }
}

/// Lines of an attempt, beginning with line `from`, [`PART`] at most.
pub(crate) async fn part(app: &App, row: &JobView, lease: Lease, from: u64) -> Result<Vec<NumberedLine>, Problem> {
    let Some(attempt) = row.attempts.iter().find(|a| a.lease == lease) else { return Ok(Vec::new()) };
    let log = Log::open(app, attempt.machine, row.job).await?;
    let Some(start) = log.find(lease, from).await? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    log.read(app, row, start, PATIENCE, |line| {
        if line.0 == lease && line.1 >= from {
            found.push(line);
        }
        (found.len() as u64) < PART
    })
    .await?;
    Ok(found)
}

/// The lines of the whole log that contain a text, and true if the search reached the end of the log.
pub(crate) async fn search(app: &App, row: &JobView, text: &str) -> Result<(Vec<NumberedLine>, bool), Problem> {
    let Ok(_permit) = app.searches.try_acquire() else {
        return Err(Problem::too_many("Others are searching.", 5));
    };
    let text = text.to_lowercase();
    let (mut found, mut all) = (Vec::new(), true);
    let machines: HashSet<MachineId> = row.attempts.iter().map(|a| a.machine).collect();
    for machine in machines {
        let log = Log::open(app, machine, row.job).await?;
        if log.last().await?.is_none() {
            continue;
        }
        let reached = log
            .read(app, row, 1, SEARCH_WITHIN, |line| {
                if ansi::plain(&line.2.text).to_lowercase().contains(&text) {
                    found.push(line);
                }
                found.len() < MOST_FOUND
            })
            .await?;
        all &= reached;
    }
    found.sort_by_key(|(lease, number, _)| (*lease, *number));
    Ok((found, all))
}

/// The measurements of the newest attempt, oldest first: all of them, or every n-th if there are many.
pub(crate) async fn metrics(app: &App, row: &JobView) -> Result<Vec<JobMetrics>, Problem> {
    let Some(attempt) = row.attempts.last() else { return Ok(Vec::new()) };
    let stream = app.js.get_stream_no_info(OUTPUT).await.map_err(|e| unavailable(&e))?;
    let subject = subject::output(attempt.machine, row.job, OutputKind::Metrics);
    let log = Log { stream, subject };
    match log.stream.direct_get_last_for_subject(log.subject.clone()).await {
        Ok(_) => {}
        Err(e) if e.kind() == DirectGetErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unavailable(&e)),
    }
    let (mut kept, mut every, mut seen) = (Vec::new(), 1_usize, 0_usize);
    log.said(app, row, 1, PATIENCE, |said| {
        if let Said::Metrics(metrics) = said
            && metrics.lease == attempt.lease
        {
            if seen.is_multiple_of(every) {
                kept.push(metrics);
            }
            seen += 1;
            if kept.len() == MOST_POINTS {
                let mut odd = false;
                kept.retain(|_| {
                    odd = !odd;
                    odd
                });
                every *= 2;
            }
        }
        true
    })
    .await?;
    Ok(kept)
}

/// One kind of output of one job on one machine, in OUTPUT.
struct Log {
    stream: Stream<()>,
    subject: String,
}

impl Log {
    async fn open(app: &App, machine: MachineId, job: JobId) -> Result<Self, Problem> {
        let stream = app.js.get_stream_no_info(OUTPUT).await.map_err(|e| unavailable(&e))?;
        Ok(Self { stream, subject: subject::output(machine, job, OutputKind::Log) })
    }

    async fn last(&self) -> Result<Option<(u64, LogLines)>, Problem> {
        chunk(self.stream.direct_get_last_for_subject(self.subject.clone()).await)
    }

    /// The first chunk at a sequence or after it.
    async fn next(&self, from: u64) -> Result<Option<(u64, LogLines)>, Problem> {
        chunk(self.stream.direct_get_next_for_subject(self.subject.clone(), Some(from)).await)
    }

    /// The sequence of the last chunk that begins with the line or before it.
    async fn find(&self, lease: Lease, line: u64) -> Result<Option<u64>, Problem> {
        let (Some((first, _)), Some((last, _))) = (self.next(1).await?, self.last().await?) else { return Ok(None) };
        let before = |chunk: &LogLines| chunk.lease < lease || (chunk.lease == lease && chunk.first_line <= line);
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.next(middle).await? {
                Some((seq, chunk)) if seq <= high && before(&chunk) => low = seq,
                _ => high = middle - 1,
            }
        }
        Ok(Some(low))
    }

    /// Reads lines, beginning with the chunk at a sequence, until `take` returns false. True if the end was reached.
    async fn read(
        &self,
        app: &App,
        row: &JobView,
        from: u64,
        within: Duration,
        mut take: impl FnMut(NumberedLine) -> bool,
    ) -> Result<bool, Problem> {
        let line = |said| match said {
            Said::Line(lease, number, line) => take((lease, number, line)),
            Said::Progress(_) | Said::Metrics(_) => true,
        };
        self.said(app, row, from, within, line).await
    }

    /// Reads output, beginning with the message at a sequence, until `take` returns false. True if the end was reached.
    async fn said(
        &self,
        app: &App,
        row: &JobView,
        from: u64,
        within: Duration,
        mut take: impl FnMut(Said) -> bool,
    ) -> Result<bool, Problem> {
        let mut messages = output::follow_subject(app, self.subject.clone(), from).await?;
        let attempts = output::attempts(row);
        let mut reader = OutputReader::default();
        let reading = async {
            while let Some(message) = messages.next().await {
                let Some(heard) = reader.read(&message, &attempts) else { continue };
                if !heard.said.into_iter().all(&mut take) {
                    return false;
                }
                if heard.pending == 0 {
                    return true;
                }
            }
            false
        };
        // After a time-out, the caller shows what it has.
        Ok(timeout(within, reading).await.unwrap_or(false))
    }
}

fn chunk(
    read: Result<StreamMessage, async_nats::jetstream::stream::DirectGetError>,
) -> Result<Option<(u64, LogLines)>, Problem> {
    match read {
        // A message that cannot be read as a log is treated as missing: a machine may send anything.
        Ok(message) => Ok(serde_json::from_slice(&message.payload).ok().map(|lines| (message.sequence, lines))),
        Err(e) if e.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(e) => Err(unavailable(&e)),
    }
}

/// Lines as HTML, each with an anchor. The text of a job may be hostile: it is escaped, and control sequences become
/// classes or are dropped.
pub(crate) fn lines_html(lines: &[NumberedLine]) -> String {
    lines.iter().fold(String::new(), |mut html, (lease, number, line)| {
        let class = if line.stream == LogStream::Stderr { "line err" } else { "line" };
        let at = line.at.to_string();
        let clock = at.get(11..23).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(
            html,
            "<div class=\"{class}\" id=\"L{lease}-{number}\"><a class=\"no\" href=\"#L{lease}-{number}\" \
             aria-label=\"Line {shown}\">{shown}</a><span class=\"at\">{clock}</span><code>{}</code></div>",
            ansi::html(&line.text),
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
        };
        let html = lines_html(&[(Lease(Seq(1)), 0, line)]);
        assert!(!html.contains("<script>") && !html.contains('\u{1b}'), "{html}");
        assert!(html.contains("&#60;script&#62;") && html.contains("&#38; &#34;"));
    }
}
