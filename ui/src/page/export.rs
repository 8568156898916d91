//! The export of an account: everything that the market knows about a person, as JSON lines.

use std::{io, mem};

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use gpubnb_events::{
    Actor, BatchId, Seq,
    command::{ListSecrets, StoredSecret},
};
use gpubnb_query::{
    request::{BatchesQuery, JobsQuery, StatementQuery, TaskOrder, TasksQuery},
    view::TaskView,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{access::SignedIn, app::App, error::PageError, error::Problem};

/// Jobs, and lines of the statement, in one query.
const JOBS: u32 = 100;
const LINES: u32 = 500;

/// The part of the export that comes next.
enum Next {
    /// What is known about the person.
    Account,
    /// The machines.
    Machines,
    /// The jobs after this cursor.
    Jobs(Option<String>),
    /// The batches after this cursor.
    Batches(Option<String>),
    /// The tasks of a batch after this number of them. Then the batches after it.
    Tasks(BatchId, u32),
    /// The lines of the statement before this sequence.
    Statement(Option<Seq>),
    /// Nothing.
    End,
}

/// `GET /account/export.jsonl`: the account, its machines, its jobs, its batches with their tasks, and its statement,
/// as a stream. Each line is one JSON object with its `kind`.
pub(crate) async fn export(State(app): State<App>, signed_in: SignedIn) -> Result<Response, PageError> {
    let parts = stream::try_unfold(Next::Account, move |mut next| {
        let app = app.clone();
        async move {
            if matches!(next, Next::End) {
                return Ok::<_, io::Error>(None);
            }
            let lines = part(&app, signed_in, &mut next).await;
            Ok(Some((lines.map_err(|problem| io::Error::other(problem.detail))?, next)))
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/jsonl; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"gpubnb-account.jsonl\""),
    ];
    Ok((headers, Body::from_stream(parts)).into_response())
}

/// The lines of one part. Moves `next` on.
async fn part(app: &App, signed_in: SignedIn, next: &mut Next) -> Result<String, Problem> {
    let (account, actor) = (signed_in.account, signed_in.actor());
    match mem::replace(next, Next::End) {
        Next::Account => {
            *next = Next::Machines;
            Ok(line("account", &person(app, signed_in, actor).await?))
        }
        Next::Machines => {
            *next = Next::Jobs(None);
            let machines = app.queries.machines_of(actor, account, Seq::ZERO).await?;
            Ok(machines.iter().map(|machine| line("machine", &machine.listed)).collect())
        }
        Next::Jobs(cursor) => {
            let query = JobsQuery { account: Some(account), cursor, limit: Some(JOBS), ..JobsQuery::default() };
            let page = app.queries.jobs(actor, query, Seq::ZERO).await?;
            *next = page.next.map_or(Next::Batches(None), |cursor| Next::Jobs(Some(cursor)));
            Ok(page.rows.iter().map(|job| line("job", job)).collect())
        }
        Next::Batches(cursor) => {
            let page = app.queries.batches(actor, BatchesQuery { account, cursor, limit: 1 }, Seq::ZERO).await?;
            *next = page.rows.first().map_or(Next::Statement(None), |batch| Next::Tasks(batch.batch, 0));
            Ok(page.rows.iter().map(|batch| line("batch", batch)).collect())
        }
        Next::Tasks(batch, skip) => {
            let query = TasksQuery { batch, state: None, order: TaskOrder::Number, skip, limit: JOBS };
            let page = app.queries.tasks(actor, query, Seq::ZERO).await?;
            let rest = page.next.and_then(|next| next.parse().ok());
            *next = rest.map_or_else(|| Next::Batches(Some(batch.to_string())), |skip| Next::Tasks(batch, skip));
            let with_batch = |task: &TaskView| json!({ "batch": batch, "task": task });
            Ok(page.rows.iter().map(|task| line("task", &with_batch(task))).collect())
        }
        Next::Statement(before) => {
            let page =
                app.queries.statement(actor, StatementQuery { account, before, limit: LINES }, Seq::ZERO).await?;
            let before = page.next.and_then(|next| next.parse().ok()).map(Seq);
            *next = before.map_or(Next::End, |before| Next::Statement(Some(before)));
            Ok(page.rows.iter().map(|posting| line("statement", posting)).collect())
        }
        Next::End => Ok(String::new()),
    }
}

/// What is known about a person outside of the log. Secrets are left out: whoever has them does not need them here.
async fn person(app: &App, signed_in: SignedIn, actor: Actor) -> Result<Value, Problem> {
    let (account, now) = (signed_in.account, app.now());
    let settings = app.notifications.settings(account).await?;
    let webhooks = settings.webhooks.iter().map(|webhook| json!({ "url": webhook.url, "kinds": webhook.kinds }));
    let secrets: Vec<StoredSecret> = app.command("account", "secrets", actor, &ListSecrets {}).await?;
    let sessions = app.sessions.list(account, now).await?;
    let sessions = sessions.iter().map(
        |session| json!({ "browser": session.browser, "since": session.created_at, "last_seen": session.last_seen }),
    );
    Ok(json!({
        "account": account,
        "email": app.users.email(account).await?,
        "balance": app.queries.balance(actor, account, Seq::ZERO).await?,
        "tokens": app.users.tokens(account, now).await?,
        "sessions": sessions.collect::<Vec<_>>(),
        "passkeys": app.passkeys.list(account).await?,
        "sign_ins": app.sign_ins.list(account).await?,
        "confirmed_address": settings.address,
        "mail": settings.mail,
        "webhooks": webhooks.collect::<Vec<_>>(),
        "secrets": secrets,
    }))
}

fn line(kind: &str, content: &impl Serialize) -> String {
    let mut value = json!({ "kind": kind, "content": null });
    // Serialising a view cannot fail: every key is a text.
    value["content"] = serde_json::to_value(content).unwrap_or_default();
    format!("{value}\n")
}
