//! Commands that come through the web server, in the name of a signed-in account or of an operator.

use gpubnb_domain::{
    Command, DomainError,
    job::{Job, Phase},
    placement,
};
use gpubnb_events::{
    Actor,
    command::{
        CancelJob, CloseAccount, ClosePayout, Deposit, Done, ExplainJob, FundAccount, OpenAccount, Quote,
        RequestPayout, SetSuspension, SubmitJob, Submitted,
    },
    spec::PlacementExplanation,
    subject,
};
use gpubnb_runtime::rpc::{Incoming, Requester, RpcError, Server};

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
    endpoint(server, e, subject::command("job", "submit"), edge, submit).await?;
    endpoint(server, e, subject::command("job", "cancel"), edge, cancel).await?;
    endpoint(server, e, subject::command("job", "explain"), edge, explain).await?;
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
    e.executor.execute(r.actor, &Command::CloseAccount(account, close)).await.map(done)
}

async fn submit(e: EndpointContext, r: Incoming) -> Result<Submitted, RpcError> {
    let submit: SubmitJob = r.parse()?;
    let (account, job) = (account_of(r.actor)?, submit.job);
    // Store the secrets before the event is written, so that a job in the log always has its secrets.
    let are_new = e.secrets.store(account, &submit).await?;
    let submitted = e.executor.execute(r.actor, &Command::Submit(account, submit)).await;
    // After `Unavailable` the submission may be in the log. Otherwise the newest state tells whether the job needs
    // them: the submission may have been refused, or repeated after the job was settled.
    if are_new && !matches!(submitted, Err(RpcError::Unavailable(_))) {
        e.executor.catch_up().await?;
        let needs_secrets = |job: &Job| job.account == account && job.phase != Phase::Settled;
        if !e.executor.replica.read(|w| w.job(job).is_some_and(needs_secrets)) {
            e.secrets.delete(account, job).await?;
        }
    }
    Ok(Submitted { job, seq: submitted? })
}

async fn cancel(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let CancelJob { job } = r.parse()?;
    e.executor.execute(r.actor, &Command::Cancel(job)).await.map(done)
}

async fn quote(e: EndpointContext, r: Incoming) -> Result<Quote, RpcError> {
    let submit: SubmitJob = r.parse()?;
    let account = account_of(r.actor)?;
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
