//! Placement: which machine, and why. A pure function of the world, so that it can be explained and replayed.

use std::{cmp::Reverse, collections::BTreeMap};

use gpubnb_events::{
    HourlyRate, MachineId, Timestamp,
    command::SubmitJob,
    spec::{
        Chosen, JobSpec, Placement, PlacementExplanation, Reject, RejectCount, Requirements, Resources, Strategy,
        Winner, Won,
    },
};

use super::{
    World,
    job::{Job, Phase},
    machine::{Availability, Machine, Presence},
};

/// A placement, or why there is none.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The winner.
    pub machine: Option<MachineId>,
    /// Candidates, rejects and how the winner was chosen.
    pub explanation: PlacementExplanation,
}

/// The request for a machine: of a job that waits, or of one that would be submitted.
pub struct Request<'a> {
    /// The specification of the job.
    pub spec: &'a JobSpec,
    /// Where.
    pub placement: &'a Placement,
    /// Machines to leave alone, and until when.
    pub avoid: &'a BTreeMap<MachineId, Option<Timestamp>>,
    /// The time before which no machine may take it.
    pub not_before: Option<Timestamp>,
}

impl<'a> Request<'a> {
    /// Of a job.
    pub fn of(job: &'a Job) -> Self {
        Self { spec: &job.spec, placement: &job.placement, avoid: &job.avoid, not_before: job.not_before }
    }
}

/// Chooses a machine for a request.
pub fn choose(world: &World, request: &Request<'_>, now: Timestamp) -> Choice {
    let mut rejected: BTreeMap<Reject, u32> = BTreeMap::new();
    let mut candidates = 0;
    let mut best: Option<(&MachineId, &Machine)> = None;
    // The strategy of the request decides; then the lower price, fewer jobs, the smaller id: always the same answer.
    let score = |(id, m): &(&MachineId, &Machine)| (Reverse(rank(request, m)), m.offer.price, m.leases.len(), **id);
    for (id, machine) in world.machines() {
        if let Some(reason) = reject(world, *id, machine, request, now) {
            *rejected.entry(reason).or_default() += 1;
        } else {
            candidates += 1;
            if best.as_ref().is_none_or(|best| score(&(id, machine)) < score(best)) {
                best = Some((id, machine));
            }
        }
    }
    let chosen = best.map(|(_, m)| Chosen::Winner(winner(request, m)));
    let rejected = rejected.into_iter().map(|(reason, machines)| RejectCount { reason, machines }).collect();
    Choice { machine: best.map(|(id, _)| *id), explanation: PlacementExplanation { candidates, rejected, chosen } }
}

/// How good a machine is at what was asked for: the greatest wins.
fn rank(request: &Request<'_>, machine: &Machine) -> u64 {
    match request.placement.strategy {
        Strategy::Cheapest => 0,
        Strategy::Fastest => speed(request, machine).unwrap_or(0),
        Strategy::MostReliable => machine.record.expected(),
    }
}

/// The speed of what the job gets: a GPU, or a core. MFLOP/s.
fn speed(request: &Request<'_>, machine: &Machine) -> Option<u64> {
    if request.spec.resources.gpus > 0 { machine.speed.gpu() } else { machine.speed.core }
}

/// The machine that won, and why.
fn winner(request: &Request<'_>, m: &Machine) -> Winner {
    let gpu = request.spec.resources.gpus > 0;
    let won = match request.placement.strategy {
        _ if request.placement.requirements.machine.is_some() => Won::Named,
        Strategy::Cheapest => Won::Cheapest,
        Strategy::Fastest => Won::Fastest { mflops: speed(request, m), gpu },
        Strategy::MostReliable => Won::MostReliable { percent: m.record.percent(), attempts: m.record.attempts() },
    };
    Winner { name: m.offer.name.clone(), price: m.offer.price, won }
}

/// When a request can start: now, or when the first machine that would fit comes free at the latest, by the time
/// limits of what it runs. `None`: no machine fits, or what it prepares has no limit yet.
pub(crate) fn start(world: &World, request: &Request<'_>, choice: &Choice, now: Timestamp) -> Option<Timestamp> {
    if choice.machine.is_some() {
        return Some(now);
    }
    let free_at = |(id, m): (&MachineId, &Machine)| {
        let jobs = m.leases.keys().filter_map(|job| world.job(*job));
        // A job that is still being prepared has no limit yet.
        let end = |job: &Job| matches!(job.phase, Phase::Running | Phase::Collecting).then(|| job.since.plus(job.limits.time.millis()).max(now));
        let ends: Option<Vec<Timestamp>> = jobs.map(end).collect();
        match reject(world, *id, m, request, now)? {
            Reject::NoFreeSlot if request.spec.resources.gpus == 0 => ends?.into_iter().min(),
            // Which job holds what it needs, only the last of them says for sure.
            Reject::NoFreeSlot | Reject::Busy => ends?.into_iter().max(),
            _ => None,
        }
    };
    world.machines().filter_map(free_at).min()
}

/// The dearest price a submission could meet among the machines that fit it now, whether free or not.
pub(crate) fn dearest(world: &World, c: &SubmitJob, now: Timestamp) -> Option<HourlyRate> {
    if let Some(cap) = c.placement.requirements.price_cap {
        return Some(cap);
    }
    let avoid = BTreeMap::new();
    let request = Request { spec: &c.spec, placement: &c.placement, avoid: &avoid, not_before: None };
    let fits = |reason| matches!(reason, None | Some(Reject::NoFreeSlot | Reject::Busy));
    world.machines().filter(|(id, m)| fits(reject(world, **id, m, &request, now))).map(|(_, m)| m.offer.price).max()
}

/// The first reason why a machine is not taken.
fn reject(world: &World, id: MachineId, machine: &Machine, request: &Request<'_>, now: Timestamp) -> Option<Reject> {
    let requirements = &request.placement.requirements;
    if requirements.machine.is_some_and(|named| named != id) {
        return Some(Reject::NotNamed);
    }
    let too_early = request.not_before.is_some_and(|until| now < until);
    let avoided = too_early || request.avoid.get(&id).is_some_and(|until| until.is_none_or(|until| now < until));
    let resources = &request.spec.resources;
    let hardware = &machine.offer.hardware;
    let fitting_gpus = hardware.gpus.iter().filter(|g| g.memory >= resources.vram).count();
    match machine.availability {
        Availability::Delisted => return Some(Reject::Delisted),
        Availability::Paused | Availability::Draining | Availability::Maintenance => return Some(Reject::Paused),
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
    if let Some(reason) = reject_by(requirements, machine, resources.gpus > 0) {
        return Some(reason);
    }
    if !machine.has_free_slot() {
        return Some(Reject::NoFreeSlot);
    }
    (!has_room(world, machine, resources, fitting_gpus)).then_some(Reject::Busy)
}

/// True if the machine's jobs leave enough. Cores are not counted: they are shared by time, and the owner says by the
/// number of slots how far; GPUs, memory and disk cannot be.
fn has_room(world: &World, machine: &Machine, wanted: &Resources, fitting_gpus: usize) -> bool {
    let (mut gpus, mut memory, mut output) = (wanted.gpus as usize, wanted.memory.0, wanted.output.0);
    for job in machine.leases.keys().filter_map(|job| world.job(*job)) {
        let held = &job.spec.resources;
        // Which GPUs they hold, only the machine knows: as if it were those that fit.
        gpus = gpus.saturating_add(if wanted.gpus > 0 { held.gpus as usize } else { 0 });
        memory = memory.saturating_add(held.memory.0);
        output = output.saturating_add(held.output.0);
    }
    let hardware = &machine.offer.hardware;
    gpus <= fitting_gpus && memory <= hardware.memory.0 && output <= hardware.disk.0
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
    if requirements.price_cap.is_some_and(|cap| machine.offer.price > cap) {
        return Some(Reject::Price);
    }
    if requirements.verified && !machine.verified {
        return Some(Reject::NotVerified);
    }
    let unreliable = |floor: u32| floor > 0 && machine.record.percent().is_none_or(|percent| percent < floor);
    requirements.reliability.is_some_and(unreliable).then_some(Reject::Reliability)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
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

    fn placed(w: &Given, placement: &Placement) -> Choice {
        let submit = w.a_submission();
        let avoid = BTreeMap::new();
        choose(&w.world, &Request { spec: &submit.spec, placement, avoid: &avoid, not_before: None }, w.now)
    }

    #[test]
    fn the_fastest_is_the_one_whose_core_is_and_one_that_never_measured_comes_last() {
        let mut w = given();
        let (slow, fast) = (w.listed(w.offer()), w.listed(w.offer()));
        for (machine, rate) in [(slow, "900"), (fast, "1100")] {
            w.tested(machine, &[("cpu.matmul", rate, true)]);
        }
        let requirements = Requirements::default();
        let choice = placed(&w, &Placement { strategy: Strategy::Fastest, requirements });
        assert_eq!((choice.machine, choice.explanation.candidates), (Some(fast), 3));
        assert!(choice.explanation.description().contains("1 GFLOP/s a core"), "{:?}", choice.explanation.chosen);
    }

    #[test]
    fn the_most_reliable_has_the_better_record_and_a_floor_refuses_those_without() {
        let mut w = given();
        let proven = w.machine;
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        w.completed(job, lease, gpubnb_events::Millis(1));
        let fresh = w.listed(w.offer());
        let reliable = |floor| Requirements { reliability: floor, ..Requirements::default() };
        let choice = placed(&w, &Placement { strategy: Strategy::MostReliable, requirements: reliable(None) });
        assert_eq!((choice.machine, choice.explanation.candidates), (Some(proven), 2));
        let choice = placed(&w, &Placement { requirements: reliable(Some(90)), ..Placement::default() });
        assert_eq!(choice.explanation.rejected, [RejectCount { reason: Reject::Reliability, machines: 1 }]);
        assert_ne!(choice.machine, Some(fresh));
    }

    #[test]
    fn only_a_machine_that_passed_its_self_test_is_verified() {
        let mut w = given();
        let (good, bad) = (w.listed(w.offer()), w.listed(w.offer()));
        w.tested(good, &[("disk.write", "1", true)]);
        w.tested(bad, &[("disk.write", "0", false)]);
        let requirements = Requirements { verified: true, ..Requirements::default() };
        let choice = placed(&w, &Placement { requirements, ..Placement::default() });
        assert_eq!(choice.machine, Some(good));
        assert_eq!(choice.explanation.rejected, [RejectCount { reason: Reject::NotVerified, machines: 2 }]);
    }

    #[test]
    fn a_gpu_that_a_job_holds_is_not_given_to_another() {
        let mut w = given();
        let mut offer = w.offer();
        offer.slots = 2;
        let list = crate::Command::ListMachine(w.machine, w.listing(w.provider, offer));
        w.when(w.as_machine(), list).appended();
        let with_gpu = |w: &Given| {
            let mut submit = w.a_submission();
            submit.spec.resources.gpus = 1;
            submit
        };
        let first = w.submit(with_gpu(&w));
        let lease = w.assigned(first);
        let second = w.submit(with_gpu(&w));
        let choice = choose(&w.world, &Request::of(w.job(second)), w.now);
        assert_eq!(choice.explanation.rejected, [RejectCount { reason: Reject::Busy, machines: 1 }]);
        // A job without a GPU has its slot all the same; and the first one's limit says when the GPU comes free.
        let third = w.submitted();
        assert!(choose(&w.world, &Request::of(w.job(third)), w.now).machine.is_some());
        assert_eq!(start(&w.world, &Request::of(w.job(second)), &choice, w.now), None, "nobody knows yet");
        w.accepted(first, lease);
        w.started(first, lease);
        let waits = start(&w.world, &Request::of(w.job(second)), &choice, w.now).unwrap();
        assert_eq!(waits, w.job(first).since.plus(w.job(first).limits.time.millis()));
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
