//! Enrolls machines, and renews and revokes their credentials. A machine that redeems a code or renews its credential
//! has no session: the request contains a code or a signature instead.

use gpubnb_domain::World;
use gpubnb_events::{
    AccountId, Actor, MachineId, Refusal, RefusalKind,
    command::{
        Challenge, CreateEnrollment, EnrollmentCode, MachineCredential, RedeemEnrollment, RenewCredential,
        RequestChallenge, RevokeMachine, Revoked,
    },
    subject,
};
use gpubnb_runtime::rpc::{Incoming, Requester, RpcError, Server};

use super::context::{EndpointContext, account_of, endpoint};
use crate::{credentials::is_signed_by, enrollment::Enrollment};

pub(super) async fn serve(server: &Server, e: &EndpointContext) -> Result<(), async_nats::Error> {
    let edge = Requester::Edge;
    let on = |verb| subject::command("enrollment", verb);
    endpoint(server, e, on("create"), edge, create).await?;
    endpoint(server, e, on("redeem"), edge, redeem).await?;
    endpoint(server, e, on("challenge"), edge, challenge).await?;
    endpoint(server, e, on("renew"), edge, renew).await?;
    endpoint(server, e, on("revoke"), edge, revoke).await
}

async fn create(e: EndpointContext, r: Incoming) -> Result<EnrollmentCode, RpcError> {
    let CreateEnrollment {} = r.parse()?;
    let owner = account_of(r.actor)?;
    e.executor.catch_up().await?;
    check_not_suspended(&e, owner)?;
    e.enrollments().create_code(owner, e.executor.clock.now()).await
}

async fn redeem(e: EndpointContext, r: Incoming) -> Result<MachineCredential, RpcError> {
    let redeem: RedeemEnrollment = r.parse()?;
    let applied = e.executor.replica.read(World::applied);
    let enrollment = e.enrollments().redeem(&redeem, e.executor.clock.now(), applied).await?;
    check_not_suspended(&e, enrollment.owner)?;
    issue(&e, redeem.machine, enrollment)
}

async fn challenge(e: EndpointContext, r: Incoming) -> Result<Challenge, RpcError> {
    let RequestChallenge { machine } = r.parse()?;
    let challenge = e.issuer.challenge(machine, e.executor.clock.now());
    let (nonce, expires) = challenge.map_err(|e| RpcError::unavailable("the challenge could not be signed", &e))?;
    Ok(Challenge { nonce, expires })
}

async fn renew(e: EndpointContext, r: Incoming) -> Result<MachineCredential, RpcError> {
    let renew: RenewCredential = r.parse()?;
    let enrollment = e.enrollments().active(renew.machine).await?;
    let is_genuine = e.issuer.is_valid_challenge(&renew.nonce, renew.machine, e.executor.clock.now())
        && is_signed_by(&enrollment.public_key, &renew.signed_text(), &renew.signature);
    if !is_genuine {
        return Err(Refusal::new(
            "BadSignature",
            RefusalKind::Forbidden,
            "The challenge has run out, or is not signed with this machine's key.",
        )
        .into());
    }
    check_not_suspended(&e, enrollment.owner)?;
    issue(&e, renew.machine, enrollment)
}

/// Refuses an account that is suspended. Its machines get no new credential; running jobs continue until the current
/// credential expires.
pub(super) fn check_not_suspended(e: &EndpointContext, owner: AccountId) -> Result<(), RpcError> {
    e.executor.replica.read(|w| gpubnb_domain::may_enroll(w, owner)).map_err(RpcError::refused)
}

fn issue(e: &EndpointContext, machine: MachineId, enrollment: Enrollment) -> Result<MachineCredential, RpcError> {
    let issued = e.issuer.issue(machine, &enrollment.public_key, e.executor.clock.now());
    let issued = issued.map_err(|e| RpcError::unavailable("the credential could not be signed", &e))?;
    Ok(MachineCredential { machine, owner: enrollment.owner, jwt: issued.jwt, expires: issued.expires })
}

async fn revoke(e: EndpointContext, r: Incoming) -> Result<Revoked, RpcError> {
    let RevokeMachine { machine } = r.parse()?;
    let known = e.enrollments().get(machine).await?;
    let may_revoke = |enrollment: &&Enrollment| match r.actor {
        Actor::Operator(_) => true,
        Actor::Account(account) => account == enrollment.owner,
        Actor::Machine(_) | Actor::Platform => false,
    };
    // A machine of another account is reported as unknown, so that nobody learns that it exists.
    known.as_ref().filter(may_revoke).ok_or_else(|| RpcError::refused(gpubnb_domain::DomainError::UnknownMachine))?;
    e.revoker.revoke(machine, matches!(r.actor, Actor::Operator(_))).await?;
    Ok(Revoked {})
}
