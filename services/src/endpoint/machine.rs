//! Commands of machines. A machine speaks for itself only: its id is part of the subject, and its credential allows it
//! to publish to that subject alone.

use gpubnb_domain::{
    Command, DomainError, Listing,
    job::Job,
    machine::{Availability, MAX_SLOTS, Machine},
};
use gpubnb_events::{
    Actor, Lease, MachineId, Millis, Seq,
    command::{
        Accept, AddOutput, ChangeMachine, DatasetGrant, Decline, DesiredLeaseState, DesiredMachineState, Done, Exit,
        Grant, Inventory, ListMachine, Listed, MachineChange, RecordTest, Report, RestoreQueue, Start, UploadGrant,
    },
    manifest,
    signed_log::SignedLog,
    spec::DatasetMount,
    subject,
};
use gpubnb_log::stream;
use gpubnb_runtime::{
    permit::{Permit, Purpose},
    rpc::{Incoming, Requester, RpcError, Server},
};

use sha2::{Digest as _, Sha256};

use super::{
    context::{EndpointContext, done, endpoint, endpoint_with_rate},
    enrollment::check_not_suspended,
};
use crate::{credentials::is_signed_by, job_output::writer_of};

/// The permits for a job's files are valid for this long after the job's time limit.
const PERMIT_SLACK: Millis = Millis(3_600_000);

pub(super) async fn serve(server: &Server, e: &EndpointContext) -> Result<(), async_nats::Error> {
    let machine = Requester::Machine;
    let on = subject::machine_command_filter;
    endpoint(server, e, on("list"), machine, list).await?;
    endpoint(server, e, on("queue"), machine, restore_queue).await?;
    endpoint(server, e, on("wish"), machine, change_machine).await?;
    endpoint(server, e, on("tested"), machine, tested).await?;
    endpoint(server, e, on("accept"), machine, accept).await?;
    endpoint(server, e, on("decline"), machine, decline).await?;
    endpoint(server, e, on("start"), machine, start).await?;
    endpoint(server, e, on("exit"), machine, exit).await?;
    endpoint(server, e, on("report"), machine, report).await?;
    endpoint_with_rate(server, e, on("output"), (machine, e.output_rate.clone()), add_output).await?;
    endpoint(server, e, on("sync"), machine, sync).await
}

fn machine_of(r: &Incoming) -> Result<MachineId, RpcError> {
    match r.actor {
        Actor::Machine(machine) => Ok(machine),
        _ => Err(RpcError::Refused(DomainError::UnknownMachine.into())),
    }
}

async fn list(e: EndpointContext, r: Incoming) -> Result<Listed, RpcError> {
    let (machine, ListMachine { offer }) = (machine_of(&r)?, r.parse()?);
    let slots = offer.slots;
    // The owner is the one who enrolled the machine: a machine cannot name its owner itself.
    let enrollment = e.enrollments().active(machine).await?;
    check_not_suspended(&e, enrollment.owner)?;
    let listing = Listing { owner: enrollment.owner, public_key: Some(enrollment.public_key), offer };
    let seq = e.executor.execute(r.actor, &Command::ListMachine(machine, listing)).await?;
    provision(&e, machine, seq, slots).await
}

/// Makes the queue of a listed machine again. The queue is the machine's consumer of DISPATCH, and may have been
/// deleted at the broker.
async fn restore_queue(e: EndpointContext, r: Incoming) -> Result<Listed, RpcError> {
    let (machine, RestoreQueue {}) = (machine_of(&r)?, r.parse()?);
    e.executor.catch_up().await?;
    let listed = e.executor.replica.read(|w| {
        let listed = w.machine(machine).filter(|m| m.availability != Availability::Delisted);
        listed.map(|m| (m.last, m.offer.slots))
    });
    let (seq, slots) = listed.ok_or(RpcError::refused(DomainError::UnknownMachine))?;
    provision(&e, machine, seq, slots).await
}

/// Makes the queue of jobs of a listed machine. `seq` goes into the answer: the sequence of `MachineListed`, or, for a
/// queue that is restored, of the machine's last event.
async fn provision(e: &EndpointContext, machine: MachineId, seq: Seq, slots: u32) -> Result<Listed, RpcError> {
    stream::provision_machine(&e.executor.log.jetstream(), machine, slots)
        .await
        .map_err(|e| RpcError::unavailable("the machine's queue of jobs cannot be made now; try again", &e))?;
    Ok(Listed { seq, stream: stream::DISPATCH.to_owned(), consumer: stream::machine_consumer(machine) })
}

/// Records the result of the machine's self-test.
async fn tested(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let (machine, test): (_, RecordTest) = (machine_of(&r)?, r.parse()?);
    e.executor.execute(r.actor, &Command::RecordTest(machine, test)).await.map(done)
}

async fn accept(e: EndpointContext, r: Incoming) -> Result<Grant, RpcError> {
    let (machine, accept): (_, Accept) = (machine_of(&r)?, r.parse()?);
    e.executor.wait_for_lease(accept.lease.0).await?;
    e.executor.execute(r.actor, &Command::Accept(machine, accept)).await?;
    let known = e.executor.replica.read(|w| w.job(accept.job).cloned());
    let job = match known {
        Some(job) => job,
        None => e.executor.load(accept.job).await?.ok_or(RpcError::refused(DomainError::UnknownJob))?,
    };
    if job.desired_lease_state(machine, accept.lease) == DesiredLeaseState::Abandon {
        return Err(RpcError::refused(DomainError::StaleLease));
    }
    let mut grant = job.grant();
    add_permits(&e, &job, accept.lease, &mut grant)?;
    if !job.spec.env.is_empty() {
        let enrollment = e.enrollments().active(machine).await?;
        let env = e.secrets.seal_for((job.account, job.environment_id()), &enrollment.sealing_key).await?;
        let missing = || RpcError::Unavailable("the values of the job's environment are missing".to_owned());
        grant.env = Some(env.ok_or_else(missing)?);
    }
    Ok(grant)
}

/// Adds the permits to download and to upload the files of this attempt.
fn add_permits(e: &EndpointContext, job: &Job, lease: Lease, grant: &mut Grant) -> Result<(), RpcError> {
    let Some(transfer) = &e.file_transfer else { return Ok(()) };
    let expires = e.executor.clock.now().plus(job.limits.time.millis()).plus(PERMIT_SLACK);
    let sign = |purpose| {
        let signed = transfer.key.sign(&Permit { purpose, expires });
        signed.ok_or_else(|| RpcError::Unavailable("the permit could not be signed".to_owned()))
    };
    let token = sign(Purpose::Upload { job: job.id, lease, max_bytes: job.spec.resources.output.bytes() })?;
    grant.upload = Some(UploadGrant { url: format!("{}/transfer/{}/{lease}", transfer.url, job.id), token, expires });
    for input in &job.spec.inputs {
        let permit = sign(Purpose::Input { job: job.id, lease, account: job.account, input: input.input })?;
        grant.inputs.push(format!("{}/transfer/permit/{permit}", transfer.url));
    }
    let cache = gpubnb_events::hex(Sha256::digest(format!("cache of {}", job.account)));
    for DatasetMount { dataset, .. } in &job.spec.datasets {
        let dataset = dataset.clone();
        let permit = sign(Purpose::Dataset { job: job.id, lease, account: job.account, dataset })?;
        let url = format!("{}/transfer/permit/{permit}", transfer.url);
        grant.datasets.push(DatasetGrant { url, cache: cache.clone() });
    }
    Ok(())
}

async fn add_output(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let (machine, add): (_, AddOutput) = (machine_of(&r)?, r.parse()?);
    e.executor.wait_for_lease(add.output.lease().0).await?;
    let now = e.executor.clock.now();
    let writer = || e.executor.replica.read(|w| writer_of(w, add.job, machine, &add.output, now));
    let writer = match writer() {
        // Another replica may have appended the start of the job. A refusal is final: the worker drops the output.
        Err(RpcError::Refused(_)) => {
            e.executor.catch_up().await?;
            writer()?
        }
        writer => writer?,
    };
    e.output.add(writer, add.job, add.output).await.map(done)
}

async fn decline(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let (machine, decline): (_, Decline) = (machine_of(&r)?, r.parse()?);
    e.executor.wait_for_lease(decline.lease.0).await?;
    e.executor.execute(r.actor, &Command::Decline(machine, decline)).await.map(done)
}

async fn start(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let (machine, start): (_, Start) = (machine_of(&r)?, r.parse()?);
    e.executor.execute(r.actor, &Command::Start(machine, start)).await.map(done)
}

async fn exit(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let (machine, exit): (_, Exit) = (machine_of(&r)?, r.parse()?);
    e.executor.execute(r.actor, &Command::Exit(machine, exit)).await.map(done)
}

async fn report(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let (machine, report): (_, Report) = (machine_of(&r)?, r.parse()?);
    if check_signatures(&e, machine, &report).is_err() {
        // Another replica may have listed the machine with this key.
        e.executor.catch_up().await?;
        check_signatures(&e, machine, &report)?;
    }
    e.executor.execute(r.actor, &Command::Report(machine, report)).await.map(done)
}

/// Checks the signatures of the manifest, which is the list of a job's output files, and of the job's log. MARKET keeps
/// all of them, so that anyone can check the signatures later.
fn check_signatures(e: &EndpointContext, machine: MachineId, report: &Report) -> Result<(), RpcError> {
    let (job, lease) = (report.job, report.lease);
    let key = e.executor.replica.read(|w| w.machine(machine).and_then(|m| m.public_key.clone()));
    let is_genuine = |text: &str, signature: Option<&String>| {
        key.as_ref().zip(signature).is_some_and(|(key, signature)| is_signed_by(key, text, signature))
    };
    let has_list = !report.outputs.is_empty() || report.signature.is_some();
    if has_list && !is_genuine(&manifest::signed_text(job, lease, &report.outputs), report.signature.as_ref()) {
        let text = "The manifest is not signed with this machine's key.";
        return Err(RpcError::refused(DomainError::field("signature", text)));
    }
    if let Some(log) = &report.log
        && !is_genuine(&SignedLog::signed_text(job, lease, log.lines, &log.sha256), Some(&log.signature))
    {
        return Err(RpcError::refused(DomainError::field("log", "The log is not signed with this machine's key.")));
    }
    Ok(())
}

/// Changes a machine for its owner, who asks on a page or on the machine itself.
pub(super) async fn change_machine(e: EndpointContext, r: Incoming) -> Result<Done, RpcError> {
    let change: ChangeMachine = r.parse()?;
    let changed = e.executor.execute(r.actor, &Command::ChangeMachine(change.clone())).await.map(done)?;
    if change.change == MachineChange::Delist {
        // A machine that left the market loses its credential.
        e.revoker.reconcile_now();
    }
    Ok(changed)
}

/// Tells a machine which of its leases to keep. Answers only from the newest state, so that no job is stopped because
/// this replica was behind.
async fn sync(e: EndpointContext, r: Incoming) -> Result<DesiredMachineState, RpcError> {
    let (machine, inventory): (_, Inventory) = (machine_of(&r)?, r.parse()?);
    e.executor.catch_up().await?;
    let mut leases = Vec::new();
    for Accept { job, lease } in inventory.leases.into_iter().take(MAX_SLOTS as usize) {
        let desired = match e.executor.replica.read(|w| w.job(job).map(|j| j.desired_lease_state(machine, lease))) {
            Some(desired) => desired,
            None => match e.executor.load(job).await? {
                Some(job) => job.desired_lease_state(machine, lease),
                // A job that is not found may still exist: the machine keeps the lease.
                None => DesiredLeaseState::Keep,
            },
        };
        leases.push((lease, desired));
    }
    let (takes_jobs, settings) = e.executor.replica.read(|w| {
        let listed = w.machine(machine).filter(|m| m.availability != Availability::Delisted);
        let takes_jobs = listed.is_some_and(|m| m.availability == Availability::Ready);
        (takes_jobs, listed.map(Machine::desired_settings))
    });
    Ok(DesiredMachineState { leases, takes_jobs, settings })
}
