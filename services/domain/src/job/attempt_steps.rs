//! The commands of a machine about its attempt, step by step: the machine accepts or declines the job, starts the job,
//! adds output, says that the program has exited, and reports the end. Each step needs the live lease.

use gpubnb_events::{
    Lease, MachineId, Timestamp,
    command::{Accept, Decline, Exit, Grant, Outcome, Report, Start},
    event::{Accepted, Cancelled, Completed, Declined, Exited, Fault, Reason, Started},
    text::{is_plain, is_sha256_hex},
};

use super::{Attempt, Job, Phase, ending::is_worker_reason};
use crate::{
    Decision, DomainError, Settings,
    rules::{check_outputs, check_traffic},
};

/// Longest signature of a report, bytes. A signature of Ed25519 has 86 or 88 characters.
const MAX_SIGNATURE: usize = 128;

/// Longest digest of an image, bytes. `sha256:` and 64 digits are 71.
const MAX_IMAGE_DIGEST: usize = 128;

/// Checks the lengths of the signatures and of the log's digest. The services have checked the signatures before.
fn check_signatures(c: &Report) -> Result<(), DomainError> {
    let signatures = [c.signature.as_ref(), c.log.as_ref().map(|log| &log.signature)];
    if signatures.into_iter().flatten().any(|signature| signature.len() > MAX_SIGNATURE) {
        return Err(DomainError::field("signature", format!("A signature has at most {MAX_SIGNATURE} bytes.")));
    }
    if c.log.as_ref().is_some_and(|log| !is_sha256_hex(&log.sha256)) {
        return Err(DomainError::field("log", "The digest of a log has 64 hexadecimal digits."));
    }
    Ok(())
}

impl Job {
    /// True if the machine holds this live lease, and has accepted the job, or, with `needs_start`, has started it.
    pub fn takes_output(&self, machine: MachineId, lease: Lease, needs_start: bool) -> bool {
        let attempt = self.live_attempt(machine, lease);
        attempt.is_ok_and(|attempt| self.phase != Phase::Assigned && (!needs_start || attempt.started.is_some()))
    }

    /// The live attempt. Fails if the attempt has another lease or is on another machine.
    pub(super) fn live_attempt(&self, machine: MachineId, lease: Lease) -> Result<&Attempt, DomainError> {
        self.attempt
            .as_ref()
            .filter(|a| self.phase.is_live() && a.lease == lease && a.machine == machine)
            .ok_or(DomainError::StaleLease)
    }

    /// The machine accepts the job.
    pub(crate) fn accept(&self, machine: MachineId, c: Accept) -> Result<Decision, DomainError> {
        self.live_attempt(machine, c.lease)?;
        if self.phase != Phase::Assigned {
            return Ok(Decision::AlreadyDone(self.last));
        }
        Ok(self.propose(Accepted { job: self.id, lease: c.lease }, format!("{}.accepted", c.lease), c.lease.0))
    }

    /// The answer to a machine that accepted the job. The endpoint adds the permits for files and the secrets.
    pub fn grant(&self) -> Grant {
        Grant {
            spec: self.spec.clone(),
            time: self.limits.time.millis(),
            budget: self.attempt.as_ref().and_then(|a| a.terms.price.time_for(self.hold)),
            started: matches!(self.phase, Phase::Running | Phase::Collecting),
            upload: None,
            inputs: Vec::new(),
            datasets: Vec::new(),
            env: None,
        }
    }

    /// The machine declines the job, which it has not accepted.
    pub(crate) fn decline(&self, machine: MachineId, c: &Decline) -> Result<Decision, DomainError> {
        if let Some(seq) = self.past.get(&c.lease) {
            return Ok(Decision::AlreadyDone(*seq));
        }
        self.live_attempt(machine, c.lease)?;
        if self.phase != Phase::Assigned {
            return Err(DomainError::WrongState("The job was accepted. Report its end instead."));
        }
        let event = Declined { job: self.id, lease: c.lease, machine, reason: c.reason };
        Ok(self.propose(event, format!("{}.ended", c.lease), c.lease.0))
    }

    /// The machine is about to start the job's container.
    pub(crate) fn start(&self, machine: MachineId, c: &Start) -> Result<Decision, DomainError> {
        let attempt = self.live_attempt(machine, c.lease)?;
        if c.image_digest.len() > MAX_IMAGE_DIGEST {
            return Err(DomainError::field("image_digest", format!("A digest has at most {MAX_IMAGE_DIGEST} bytes.")));
        }
        if self.cancel.is_some() {
            return Err(DomainError::WrongState("The job is being cancelled. Do not start it."));
        }
        match (self.phase, attempt.started) {
            (_, Some((seq, _))) => Ok(Decision::AlreadyDone(seq)),
            (Phase::Accepted, None) => {
                let event = Started { job: self.id, lease: c.lease, image_digest: c.image_digest.clone() };
                Ok(self.propose(event, format!("{}.started", c.lease), self.last))
            }
            _ => Err(DomainError::WrongState("The job was not accepted yet.")),
        }
    }

    /// The program has exited, and the machine begins to upload its files.
    pub(crate) fn exit(&self, machine: MachineId, c: &Exit) -> Result<Decision, DomainError> {
        if let Some(seq) = self.past.get(&c.lease) {
            return Ok(Decision::AlreadyDone(*seq));
        }
        let attempt = self.live_attempt(machine, c.lease)?;
        match (self.phase, attempt.exited) {
            (_, Some((seq, _, _))) => Ok(Decision::AlreadyDone(seq)),
            (Phase::Running, None) => {
                let event = Exited { job: self.id, lease: c.lease, usage: c.usage };
                Ok(self.propose(event, format!("{}.exited", c.lease), self.last))
            }
            _ => Err(DomainError::WrongState("The job was not started yet.")),
        }
    }

    /// The machine reports how the attempt ended.
    pub(crate) fn report(
        &self,
        machine: MachineId,
        c: &Report,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Decision, DomainError> {
        if let Some(seq) = self.past.get(&c.lease) {
            return Ok(Decision::AlreadyDone(*seq));
        }
        let attempt = self.live_attempt(machine, c.lease)?;
        if self.phase == Phase::Assigned {
            return Err(DomainError::WrongState("The job was not accepted yet. Decline it instead."));
        }
        check_outputs(&c.outputs, &c.left_out, self.spec.resources.output)?;
        c.traffic.as_ref().map_or(Ok(()), |traffic| check_traffic(traffic, &self.spec.egress))?;
        check_signatures(c)?;
        let id = format!("{}.ended", c.lease);
        match &c.outcome {
            Outcome::Completed if attempt.started.is_none() => {
                Err(DomainError::WrongState("The job never started, so it cannot have completed."))
            }
            Outcome::Completed => {
                let event = Completed {
                    signature: c.signature.clone(),
                    log: c.log.clone(),
                    job: self.id,
                    lease: c.lease,
                    outputs: c.outputs.clone(),
                    left_out: c.left_out.clone(),
                    usage: c.usage.unwrap_or_default(),
                    traffic: c.traffic.clone(),
                    occurred_at: c.occurred_at,
                };
                Ok(self.propose(event, id, self.last))
            }
            Outcome::Cancelled if self.cancel.is_none() => {
                Err(DomainError::WrongState("Nobody asked to cancel this job."))
            }
            Outcome::Cancelled => {
                let event = Cancelled {
                    job: self.id,
                    lease: Some(c.lease),
                    outputs: c.outputs.clone(),
                    left_out: c.left_out.clone(),
                    usage: c.usage,
                    traffic: c.traffic.clone(),
                    signature: c.signature.clone(),
                    log: c.log.clone(),
                };
                Ok(self.propose(event, id, self.last))
            }
            Outcome::Failed { reason, .. } if reason.is_after_run() && attempt.started.is_none() => {
                Err(DomainError::WrongState("The job never started, so it cannot have failed for this reason."))
            }
            Outcome::Failed { reason, detail } => {
                if !is_worker_reason(*reason) {
                    return Err(DomainError::field("reason", "A machine may not report this reason."));
                }
                let detail: String = detail.chars().filter(|c| is_plain(*c)).take(500).collect();
                // A reason that blames nobody, such as `RegistryUnavailable`, cannot end a program that has started.
                // Such a report counts as a fault of the machine.
                let is_too_late = attempt.started.is_some() && reason.fault() == Fault::Nobody;
                let reason = if is_too_late { Reason::RuntimeMisconfigured } else { *reason };
                Ok(self.end_attempt(attempt, reason, detail, Some(c), now, settings))
            }
        }
    }
}
