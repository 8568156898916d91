//! The lines that a job has begun and not finished, such as a progress bar that writes over itself. No stream stores
//! them: a worker publishes the newest state of the lines, and repeats it every few seconds.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use gpubnb_events::{
    JobId, MachineId,
    output::{MAX_UNFINISHED, UnfinishedLines},
    subject,
};
use gpubnb_query::view::JobView;
use tokio::sync::watch;

use super::output::unavailable;
use crate::{ansi, app::App, error::Problem};

/// The most machines whose lines are kept. A job runs on one machine at a time, and few machines have run it before.
const MAX_MACHINES: usize = 64;
/// The largest message that is read, in bytes. A message has two lines, and JSON may write a byte as six characters,
/// for example `\u001b`.
const MAX_MESSAGE: usize = 16 * MAX_UNFINISHED;

/// The newest unfinished lines of a job, of each machine that sent some.
pub(crate) struct UnfinishedReader {
    newest: watch::Receiver<HashMap<MachineId, UnfinishedLines>>,
}

impl UnfinishedReader {
    /// Subscribes to the unfinished lines of a job. The messages are read at once and only the newest is kept, however
    /// slow the caller is and whatever a machine sends.
    pub(crate) async fn open(app: &App, job: JobId) -> Result<Self, Problem> {
        let subject = subject::unfinished_of_job(job);
        let mut messages = app.js.client().subscribe(subject).await.map_err(|e| unavailable(&e))?;
        let (sender, newest) = watch::channel(HashMap::new());
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = messages.next() => message,
                    () = sender.closed() => return,
                };
                let Some(message) = message else { return };
                if message.payload.len() > MAX_MESSAGE {
                    continue;
                }
                let lines = serde_json::from_slice::<UnfinishedLines>(&message.payload);
                if let (Some(machine), Ok(lines)) = (subject::machine_of_unfinished(&message.subject), lines) {
                    sender.send_modify(|newest| {
                        if newest.len() >= MAX_MACHINES && !newest.contains_key(&machine) {
                            newest.clear();
                        }
                        newest.insert(machine, lines);
                    });
                }
            }
        });
        Ok(Self { newest })
    }

    /// Waits for newer lines. Never returns if the connection to the broker was closed.
    pub(crate) async fn changed(&mut self) {
        if self.newest.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The newest lines. `None` unless the machine that sent them holds the job's present lease.
    pub(crate) fn newest(&mut self, job: &JobView) -> Option<UnfinishedLines> {
        let newest = self.newest.borrow_and_update();
        let attempt = job.attempt().filter(|_| job.ended_at.is_none())?;
        newest.get(&attempt.machine).filter(|lines| lines.lease == attempt.lease).cloned()
    }
}

/// Renders the lines as HTML. The text of a job may be hostile, so it is escaped.
pub(crate) fn unfinished_html(lines: Option<&UnfinishedLines>) -> String {
    let Some(lines) = lines else { return String::new() };
    let line = |class: &str, text: &str| {
        if text.is_empty() {
            return String::new();
        }
        format!("<div class=\"{class}\"><code>{}</code></div>", ansi::html(text))
    };
    line("line", &lines.stdout) + &line("line err", &lines.stderr)
}
