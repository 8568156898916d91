//! Placement: which machine, and why. A pure function of the world, so that it can be explained and replayed.

use std::collections::BTreeMap;

use gpubnb_events::{
    HourlyRate, MachineId, Timestamp,
    command::SubmitJob,
    spec::{JobSpec, Placement, PlacementExplanation, Reject, RejectCount, Requirements},
};

use super::{
    World,
    job::Job,
    machine::{Availability, Machine, Presence},
    submission::price_cap,
};

/// A placement, or why there is none.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The winner.
    pub machine: Option<MachineId>,
    /// Candidates, rejects and how the winner was chosen.
    pub explanation: PlacementExplanation,
}

/// What is placed: a job, or one that would be submitted.
pub struct Request<'a> {
    /// What to run.
    pub spec: &'a JobSpec,
    /// Where.
    pub placement: &'a Placement,
    /// Machines to leave alone, and until when.
    pub avoid: &'a BTreeMap<MachineId, Option<Timestamp>>,
}

impl<'a> Request<'a> {
    /// Of a job.
    pub fn of(job: &'a Job) -> Self {
        Self { spec: &job.spec, placement: &job.placement, avoid: &job.avoid }
    }
}

/// Chooses a machine for a request.
pub fn choose(world: &World, request: &Request<'_>, now: Timestamp) -> Choice {
    let mut rejected: BTreeMap<Reject, u32> = BTreeMap::new();
    let mut candidates = 0;
    let mut best: Option<(&MachineId, &Machine)> = None;
    for (id, machine) in world.machines() {
        if let Some(reason) = reject(world, *id, machine, request, now) {
            *rejected.entry(reason).or_default() += 1;
        } else {
            candidates += 1;
            // Cheapest first; among equals the emptiest, then the smallest id: always the same answer.
            let score = |(id, m): &(&MachineId, &Machine)| (m.offer.price, m.leases.len(), **id);
            if best.as_ref().is_none_or(|best| score(&(id, machine)) < score(best)) {
                best = Some((id, machine));
            }
        }
    }
    let chosen = match (best, request.placement) {
        (Some((_, m)), Placement::Machine { .. }) => format!("you named {}", m.offer.name),
        (Some((_, m)), Placement::Cheapest { .. }) => {
            format!("{} is the cheapest that fits, at {}", m.offer.name, m.offer.price)
        }
        (None, _) => "no machine fits now".to_owned(),
    };
    let rejected = rejected.into_iter().map(|(reason, machines)| RejectCount { reason, machines }).collect();
    Choice { machine: best.map(|(id, _)| *id), explanation: PlacementExplanation { candidates, rejected, chosen } }
}

/// The dearest price a submission could meet among the machines that fit it now, whether free or not.
pub(super) fn dearest(world: &World, c: &SubmitJob, now: Timestamp) -> Option<HourlyRate> {
    if let Some(cap) = price_cap(&c.placement) {
        return Some(cap);
    }
    let avoid = BTreeMap::new();
    let request = Request { spec: &c.spec, placement: &c.placement, avoid: &avoid };
    world
        .machines()
        .filter(|(id, m)| matches!(reject(world, **id, m, &request, now), None | Some(Reject::NoFreeSlot)))
        .map(|(_, m)| m.offer.price)
        .max()
}

/// The first reason why a machine is not taken.
fn reject(world: &World, id: MachineId, machine: &Machine, request: &Request<'_>, now: Timestamp) -> Option<Reject> {
    let named = match request.placement {
        Placement::Machine { machine, .. } if *machine != id => return Some(Reject::NotNamed),
        Placement::Machine { price_cap, .. } if price_cap.is_some_and(|cap| machine.offer.price > cap) => {
            return Some(Reject::Price);
        }
        Placement::Machine { .. } => None,
        Placement::Cheapest { requirements } => Some(requirements),
    };
    let avoided = request.avoid.get(&id).is_some_and(|until| until.is_none_or(|until| now < until));
    let resources = &request.spec.resources;
    let hardware = &machine.offer.hardware;
    let fitting_gpus = hardware.gpus.iter().filter(|g| g.memory >= resources.vram).count();
    match machine.availability {
        Availability::Delisted => return Some(Reject::Delisted),
        Availability::Paused | Availability::Draining => return Some(Reject::Paused),
        Availability::Ready => {}
    }
    if machine.away {
        return Some(Reject::Away);
    }
    if world.account(machine.owner).is_some_and(|owner| owner.suspended.is_some()) {
        return Some(Reject::OwnerSuspended);
    }
    if machine.presence != Presence::Online {
        return Some(Reject::Offline);
    }
    if avoided {
        return Some(Reject::Excluded);
    }
    if fitting_gpus < resources.gpus as usize {
        return Some(Reject::GpuTooSmall);
    }
    let room = hardware.memory >= resources.memory
        && u64::from(hardware.cpu_cores) * 1_000 >= u64::from(resources.cpu_millis)
        && hardware.disk >= resources.output;
    if !room {
        return Some(Reject::TooSmall);
    }
    if request.spec.egress && !machine.offer.policy.egress {
        return Some(Reject::NoEgress);
    }
    if let Some(reason) = named.and_then(|r| reject_by(r, machine, resources.gpus > 0)) {
        return Some(reason);
    }
    (!machine.has_free_slot()).then_some(Reject::NoFreeSlot)
}

fn reject_by(requirements: &Requirements, machine: &Machine, wants_gpu: bool) -> Option<Reject> {
    let hardware = &machine.offer.hardware;
    if wants_gpu && hardware.simulated && !requirements.allow_simulated {
        return Some(Reject::Simulated);
    }
    if let Some(model) = &requirements.gpu_model {
        let model = model.to_lowercase();
        if !hardware.gpus.iter().any(|g| g.model.to_lowercase().contains(&model)) {
            return Some(Reject::GpuModel);
        }
    }
    if requirements.region.as_ref().is_some_and(|region| *region != machine.offer.region) {
        return Some(Reject::Region);
    }
    requirements.price_cap.is_some_and(|cap| machine.offer.price > cap).then_some(Reject::Price)
}

#[cfg(test)]
mod tests {
    use super::super::given::*;
    use super::*;
    use gpubnb_events::MicroUsd;

    #[test]
    fn the_cheapest_that_fits_wins_and_the_rest_is_counted_by_reason() {
        let mut w = given();
        let mut cheap = w.offer();
        cheap.price = HourlyRate(MicroUsd(1_000));
        let winner = w.listed(cheap.clone());
        let mut small = cheap.clone();
        small.hardware.memory = gpubnb_events::spec::Mebibytes(1);
        w.listed(small);
        let job = w.submitted();
        let job = w.job(job);
        let choice = choose(&w.world, &Request::of(job), w.now);
        assert_eq!(choice.machine, Some(winner));
        assert_eq!(choice.explanation.candidates, 2);
        assert_eq!(choice.explanation.rejected, [RejectCount { reason: Reject::TooSmall, machines: 1 }]);
    }

    #[test]
    fn a_full_machine_is_not_given_more() {
        let mut w = given();
        let first = w.submitted();
        w.assigned(first);
        let second = w.submitted();
        let choice = choose(&w.world, &Request::of(w.job(second)), w.now);
        assert_eq!(choice.machine, None);
        assert_eq!(choice.explanation.rejected[0].reason, Reject::NoFreeSlot);
    }
}
