//! Enrolling machines, renewing and revoking their credentials. A machine that redeems a code or renews its credential
//! has no session: the request itself holds the proof, a code or a signature.

use gpubnb_domain::World;
use gpubnb_events::{
    AccountId, Actor, MachineId, Refusal, RefusalKind,
    command::{
        AskChallenge, Challenge, CreateEnrollment, EnrollmentCode, MachineCredential, RedeemEnrollment,
        RenewCredential, RevokeMachine, Revoked,
    },
    subject,
};
use gpubnb_runtime::rpc::{Failure, Incoming, Requester, Server};

use super::context::{Endpoints, account_of, endpoint};
use crate::{credentials::signed_by, enrollment::Enrollment};

pub(super) async fn serve(server: &Server, e: &Endpoints) -> Result<(), async_nats::Error> {
    let edge = Requester::Edge;
    let on = |verb| subject::command("enrollment", verb);
    endpoint(server, e, on("create"), edge, create).await?;
    endpoint(server, e, on("redeem"), edge, redeem).await?;
    endpoint(server, e, on("challenge"), edge, challenge).await?;
    endpoint(server, e, on("renew"), edge, renew).await?;
    endpoint(server, e, on("revoke"), edge, revoke).await
}

async fn create(e: Endpoints, r: Incoming) -> Result<EnrollmentCode, Failure> {
    let CreateEnrollment {} = r.parse()?;
    let owner = account_of(r.actor)?;
    e.executor.catch_up().await?;
    in_good_standing(&e, owner)?;
    e.enrollments().create_code(owner, e.executor.clock.now()).await
}

async fn redeem(e: Endpoints, r: Incoming) -> Result<MachineCredential, Failure> {
    let redeem: RedeemEnrollment = r.parse()?;
    let applied = e.executor.replica.read(World::applied);
    let enrollment = e.enrollments().redeem(&redeem, e.executor.clock.now(), applied).await?;
    in_good_standing(&e, enrollment.owner)?;
    issue(&e, redeem.machine, enrollment)
}

async fn challenge(e: Endpoints, r: Incoming) -> Result<Challenge, Failure> {
    let AskChallenge { machine } = r.parse()?;
    let challenge = e.issuer.challenge(machine, e.executor.clock.now());
    let (nonce, expires) = challenge.map_err(|e| Failure::unavailable("the challenge could not be signed", &e))?;
    Ok(Challenge { nonce, expires })
}

async fn renew(e: Endpoints, r: Incoming) -> Result<MachineCredential, Failure> {
    let renew: RenewCredential = r.parse()?;
    let enrollment = e.enrollments().live(renew.machine).await?;
    let genuine = e.issuer.challenged(&renew.nonce, renew.machine, e.executor.clock.now())
        && signed_by(&enrollment.public_key, &renew.signed_text(), &renew.signature);
    if !genuine {
        return Err(Refusal::new(
            "BadSignature",
            RefusalKind::Forbidden,
            "The challenge has run out, or is not signed with this machine's key.",
        )
        .into());
    }
    in_good_standing(&e, enrollment.owner)?;
    issue(&e, renew.machine, enrollment)
}

/// Refuses an account that is suspended. Its machines get no new credential; running jobs go on until the present
/// credential expires.
pub(super) fn in_good_standing(e: &Endpoints, owner: AccountId) -> Result<(), Failure> {
    e.executor.replica.read(|w| gpubnb_domain::may_enroll(w, owner)).map_err(Failure::refused)
}

fn issue(e: &Endpoints, machine: MachineId, enrollment: Enrollment) -> Result<MachineCredential, Failure> {
    let issued = e.issuer.issue(machine, &enrollment.public_key, e.executor.clock.now());
    let issued = issued.map_err(|e| Failure::unavailable("the credential could not be signed", &e))?;
    Ok(MachineCredential { machine, owner: enrollment.owner, jwt: issued.jwt, expires: issued.expires })
}

async fn revoke(e: Endpoints, r: Incoming) -> Result<Revoked, Failure> {
    let RevokeMachine { machine } = r.parse()?;
    let known = e.enrollments().of(machine).await?;
    let may = |enrollment: &&Enrollment| match r.actor {
        Actor::Operator(_) => true,
        Actor::Account(account) => account == enrollment.owner,
        Actor::Machine(_) | Actor::Platform => false,
    };
    // Somebody else's machine looks like none at all.
    known.as_ref().filter(may).ok_or_else(|| Failure::refused(gpubnb_domain::Refusal::UnknownMachine))?;
    e.revoker.revoke(machine, matches!(r.actor, Actor::Operator(_))).await?;
    Ok(Revoked {})
}
