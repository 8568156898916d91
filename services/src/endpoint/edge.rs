//! Commands that come through the web server, in the name of a signed-in account or of an operator.

use gpubnb_domain::{
    Command, DomainError,
    account::Account,
    job::{Job, Phase},
    placement,
};
use gpubnb_events::{
    Actor, Chain, Seq,
    command::{
        BatchQuote, CancelBatch, CancelJob, CloseAccount, ClosePayout, DeleteSecret, Deposit, Done, ExplainJob,
        FundAccount, ListSecrets, OpenAccount, Quote, RequestPayout, SetSecret, SetSuspension, StoredSecret,
        SubmitBatch, SubmitJob, Submitted, SubmittedBatch,
    },
    spec::PlacementExplanation,
    subject,
};
use gpubnb_runtime::rpc::{Incoming, Requester, RpcError, Server};
use tracing::warn;

use super::{
    context::{EndpointContext, account_of, done, endpoint},
    machine::change_machine,
};

pub(super) async fn serve(server: &Server, e: &EndpointContext) -> Result<(), async_nats::Error> {
    let edge = Requester::Edge;
    endpoint(server, e, subject::command("account", "open"), edge, open).await?;
    endpoint(server, e, subject::command("account", "deposit"), edge, deposit).await?;
    endpoint(server, e, subject::command("account", "fund"), edge, fund).await?;
    endpoint(server, e, subject::command("account", "request_payout"), edge, request_payout).await?;
    endpoint(server, e, subject::command("account", "close_payout"), edge, close_payout).await?;
    endpoint(server, e, subject::command("account", "set_suspension"), edge, set_suspension).await?;
    endpoint(server, e, subject::command("account", "close"), edge, close_account).await?;
    endpoint(server, e, subject::command("account", "set_secret"), edge, set_secret).await?;
    endpoint(server, e, subject::command("account", "delete_secret"), edge, delete_secret).await?;
    endpoint(server, e, subject::command("account", "secrets"), edge, list_secrets).await?;
    endpoint(server, e, subject::command("job", "submit"), edge, submit).await?;
    endpoint(server, e, subject::command("job", "cancel"), edge, cancel).await?;
    endpoint(server, e, subject::command("job", "explain"), edge, explain).await?;
    endpoint(server, e, subject::command("batch", "submit"), edge, submit_batch).await?;
    endpoint(server, e, subject::command("batch", "cancel"), edge, cancel_batch).await?;
    endpoint(server, e, subject::command("batch", "quote"), edge, quote_batch).await?;
    endpoint(server, e, subject::command("market", "quote"), edge, quote).await?;
    endpoint(server, e, subject::command("market", "machine"), edge, change_machine).await
}

async fn open(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let OpenAccount {} = r.parse()?;
    let account = account_of(r.actor)?;
    e.executor.execute(r.actor, &Command::OpenAccount(account)).await.map(done)
}

async fn fund(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let FundAccount { account, deposit, amount } = r.parse()?;
    e.executor.execute(r.actor, &Command::Deposit(account, Deposit { deposit, amount })).await.map(done)
}

async fn deposit(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let deposit: Deposit = r.parse()?;
    let account = account_of(r.actor)?;
    e.executor.execute(r.actor, &Command::Deposit(account, deposit)).await.map(done)
}

async fn request_payout(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let payout: RequestPayout = r.parse()?;
    let account = account_of(r.actor)?;
    e.executor.execute(r.actor, &Command::RequestPayout(account, payout)).await.map(done)
}

async fn close_payout(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let close: ClosePayout = r.parse()?;
    e.executor.execute(r.actor, &Command::ClosePayout(close)).await.map(done)
}

async fn set_suspension(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let suspension: SetSuspension = r.parse()?;
    e.executor.execute(r.actor, &Command::SetSuspension(suspension)).await.map(done)
}

async fn close_account(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let close: CloseAccount = r.parse()?;
    let account = account_of(r.actor)?;
    let closed = e.executor.execute(r.actor, &Command::CloseAccount(account, close)).await.map(done)?;
    // If this fails, the command is repeated, and the account is closed already.
    e.account_secrets.forget(account).await?;
    Ok(closed)
}

async fn set_secret(e: EndpointContext, r: Incoming) -> Result<StoredSecret, RpcError> {
    let set: SetSecret = r.parse()?;
    let account = account_of(r.actor)?;
    if !e.executor.replica.read(|w| w.account(account).is_some_and(Account::is_open)) {
        return Err(RpcError::Refused(DomainError::AccountClosed.into()));
    }
    let stored = e.account_secrets.set(account, &set, e.executor.clock.now()).await?;
    // The account may have been closed meanwhile: then nobody could delete the secret any more.
    e.executor.catch_up().await?;
    if !e.executor.replica.read(|w| w.account(account).is_some_and(Account::is_open)) {
        e.account_secrets.forget(account).await?;
        return Err(RpcError::Refused(DomainError::AccountClosed.into()));
    }
    Ok(stored)
}

async fn delete_secret(e: EndpointContext, r: Incoming) -> Result<(), RpcError> {
    let DeleteSecret { name } = r.parse()?;
    e.account_secrets.delete(account_of(r.actor)?, &name).await
}

async fn list_secrets(e: EndpointContext, r: Incoming) -> Result<Vec<StoredSecret>, RpcError> {
    let ListSecrets {} = r.parse()?;
    e.account_secrets.list(account_of(r.actor)?).await
}

async fn submit(e: EndpointContext, r: Incoming) -> Result<Submitted, RpcError> {
    let submit: SubmitJob = r.parse()?;
    let (account, job) = (account_of(r.actor)?, submit.job);
    let seq = submit_with_secrets(&e, r.actor, &submit, Command::Submit(account, submit.clone())).await?;
    Ok(Submitted { job, seq })
}

async fn submit_batch(e: EndpointContext, r: Incoming) -> Result<SubmittedBatch, RpcError> {
    let submit: SubmitBatch = r.parse()?;
    let (account, batch) = (account_of(r.actor)?, submit.batch);
    let command = Command::SubmitBatch(account, submit.clone());
    let seq = submit_with_secrets(&e, r.actor, &submit.job, command).await?;
    Ok(SubmittedBatch { batch, seq })
}

/// Stores the secrets of a submission and executes it. `submit` is the job of `command`, or the job that each task of
/// its batch runs.
async fn submit_with_secrets(
    e: &EndpointContext,
    actor: Actor,
    submit: &SubmitJob,
    command: Command,
) -> Result<Seq, RpcError> {
    let (account, job) = (account_of(actor)?, submit.job);
    let names = submit.spec.secrets.clone();
    if !names.is_empty() {
        // A repeated submission must be recognised: its named secrets may be deleted by now.
        e.executor.catch_up().await?;
    }
    // Store the secrets before the event is written, so that a job in the log always has its secrets.
    let are_new = if e.executor.replica.read(|w| w.is_submitted(job)) {
        false
    } else {
        refuse_early(e, actor, &command, submit).await?;
        let named = e.account_secrets.values(account, &names).await?;
        e.secrets.store(account, submit, named).await?
    };
    let submitted = e.executor.execute(actor, &command).await;
    // After `Unavailable` the submission may be in the log. Otherwise the newest state tells whether the job needs
    // them: the submission may have been refused, or repeated after the job was settled.
    if are_new && !matches!(submitted, Err(RpcError::Unavailable(_))) {
        e.executor.catch_up().await?;
        if !e.executor.replica.read(|w| w.needs_environment(account, job)) {
            e.secrets.delete(account, job).await?;
        }
    }
    let seq = submitted?;
    if are_new && !names.is_empty() {
        let (secrets, now) = (e.account_secrets.clone(), e.executor.clock.now());
        // Nobody waits for this: the job has its secrets, and only the time of their last use may be wrong.
        tokio::spawn(async move {
            if let Err(e) = secrets.mark_used(account, &names, now).await {
                warn!(error = %Chain(&e), %account, "the use of secrets was not recorded");
            }
        });
    }
    Ok(seq)
}

/// Refuses a submission that the newest state refuses, before its secrets are stored: it then costs the broker nothing.
async fn refuse_early(
    e: &EndpointContext,
    actor: Actor,
    command: &Command,
    submit: &SubmitJob,
) -> Result<(), RpcError> {
    if submit.spec.env.is_empty() {
        return Ok(());
    }
    let (now, settings) = (e.executor.clock.now(), &e.executor.settings);
    let refusal = || e.executor.replica.read(|w| w.decide(actor, command, None, now, settings).err());
    if refusal().is_none() {
        return Ok(());
    }
    e.executor.catch_up().await?;
    refusal().map_or(Ok(()), |refusal| Err(RpcError::Refused(refusal.into())))
}

async fn cancel(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let CancelJob { job } = r.parse()?;
    e.executor.execute(r.actor, &Command::Cancel(job)).await.map(done)
}

async fn cancel_batch(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let CancelBatch { batch } = r.parse()?;
    e.executor.catch_up().await?;
    let account = e.executor.replica.read(|w| w.batch(batch).map(|batch| batch.submitted.account));
    let done = e.executor.execute(r.actor, &Command::CancelBatch(batch)).await.map(done)?;
    // A batch without open tasks is over at once. The secrets of the others go with their last task.
    if let Some(account) = account.filter(|_| e.executor.replica.read(|w| w.batch(batch).is_none())) {
        e.secrets.delete(account, batch.as_job()).await?;
    }
    Ok(done)
}

async fn quote_batch(e: EndpointContext, r: Incoming) -> Result<BatchQuote, RpcError> {
    let submit: SubmitBatch = r.parse()?;
    let account = account_of(r.actor)?;
    e.account_secrets.check(account, &submit.job.spec.secrets).await?;
    let (now, settings) = (e.executor.clock.now(), &e.executor.settings);
    let quote = e.executor.replica.read(|w| w.quote_batch(account, &submit, now, settings));
    quote.map_err(|refusal| RpcError::Refused(refusal.into()))
}

async fn quote(e: EndpointContext, r: Incoming) -> Result<Quote, RpcError> {
    let submit: SubmitJob = r.parse()?;
    let account = account_of(r.actor)?;
    e.account_secrets.check(account, &submit.spec.secrets).await?;
    let (now, settings) = (e.executor.clock.now(), &e.executor.settings);
    let quote = e.executor.replica.read(|w| w.quote(account, &submit, now, settings));
    quote.map_err(|refusal| RpcError::Refused(refusal.into()))
}

/// Explains why a job waits; `None` for a job that does not wait.
async fn explain(e: EndpointContext, r: Incoming) -> Result<Option<PlacementExplanation>, RpcError> {
    let ExplainJob { job } = r.parse()?;
    let now = e.executor.clock.now();
    let may_see = |found: &&Job| matches!(r.actor, Actor::Operator(_)) || r.actor == Actor::Account(found.account);
    e.executor.replica.read(|w| {
        let found = w.job(job).filter(may_see).ok_or_else(|| RpcError::Refused(DomainError::UnknownJob.into()))?;
        Ok((found.phase == Phase::Queued)
            .then(|| placement::choose(w, &placement::Request::of(found), now).explanation))
    })
}
