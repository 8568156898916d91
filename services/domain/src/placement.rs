//! Placement: chooses a machine for a job, and explains the choice. The same state, request and time always give the
//! same choice.
//!
//! A machine is a *candidate* if it meets every condition. The other machines are *rejected*, each for one reason.
//! Among the candidates, the strategy of the job chooses the winner, for example the cheapest machine.

use std::{cmp::Reverse, collections::BTreeMap};

use gpubnb_events::{
    HourlyRate, MachineId, Timestamp,
    command::SubmitJob,
    spec::{
        Chosen, CudaVersion, JobSpec, Placement, PlacementExplanation, Reject, RejectCount, Resources, Strategy,
        WinReason, Winner,
    },
};

use super::{
    World,
    job::{Job, Phase, ending::UPLOAD_LIMIT},
    machine::{Availability, Machine, Presence},
};

/// The result of a placement.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The machine that won; `None` if there was no candidate.
    pub machine: Option<MachineId>,
    /// The number of candidates, the rejected machines by reason, and the reason why the winner won.
    pub explanation: PlacementExplanation,
}

/// A request for a machine. It is made for a waiting job, or for a quote: a preview of a job that is not submitted yet.
pub struct Request<'a> {
    /// The specification of the job.
    pub spec: &'a JobSpec,
    /// The conditions that a machine must meet, and the strategy.
    pub placement: &'a Placement,
    /// Machines that must not get the job before this time; `None` means never. See [`Job::avoid`].
    pub avoid: &'a BTreeMap<MachineId, Option<Timestamp>>,
    /// The time before which no machine may take the job.
    pub not_before: Option<Timestamp>,
    /// The highest price that the hold of the job pays for. See [`gpubnb_events::spec::Limits::max_price`].
    pub max_price: Option<HourlyRate>,
}

impl<'a> Request<'a> {
    /// The request of a submission. `avoid` is empty.
    pub(crate) fn of_submission(c: &'a SubmitJob, avoid: &'a BTreeMap<MachineId, Option<Timestamp>>) -> Self {
        Self { spec: &c.spec, placement: &c.placement, avoid, not_before: None, max_price: None }
    }

    /// The request of a waiting job.
    pub fn of(job: &'a Job) -> Self {
        Self {
            spec: &job.spec,
            placement: &job.placement,
            avoid: &job.avoid,
            not_before: job.not_before,
            max_price: job.limits.max_price,
        }
    }
}

/// Chooses a machine for a request.
pub fn choose(world: &World, request: &Request<'_>, now: Timestamp) -> Choice {
    let mut rejected: BTreeMap<Reject, u32> = BTreeMap::new();
    let mut candidates = 0;
    let mut best: Option<(&MachineId, &Machine)> = None;
    // The least score wins. The strategy counts first, then the lower price, then the fewer jobs. The id comes last, so
    // that no two scores are equal.
    let score = |(id, m): &(&MachineId, &Machine)| (Reverse(rank(request, m)), m.offer.price, m.leases.len(), **id);
    for (id, machine) in world.machines() {
        if let Some(reason) = reject_reason(world, *id, machine, request, now) {
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

/// The rank of a machine by the strategy of the request. The greatest rank wins.
fn rank(request: &Request<'_>, machine: &Machine) -> u64 {
    match request.placement.strategy {
        Strategy::Cheapest => 0,
        Strategy::Fastest => speed(request, machine).unwrap_or(0),
        Strategy::MostReliable => machine.record.success_probability_ppm(),
    }
}

/// The measured speed of one GPU, or of one core for a job without GPUs, in MFLOP/s. `None` without a measurement.
fn speed(request: &Request<'_>, machine: &Machine) -> Option<u64> {
    if request.spec.resources.gpus > 0 { machine.speed.gpu() } else { machine.speed.core }
}

/// Describes the machine that won, and the reason.
fn winner(request: &Request<'_>, m: &Machine) -> Winner {
    let gpu = request.spec.resources.gpus > 0;
    let won = match request.placement.strategy {
        _ if request.placement.requirements.machine.is_some() => WinReason::Named,
        Strategy::Cheapest => WinReason::Cheapest,
        Strategy::Fastest => WinReason::Fastest { mflops: speed(request, m), gpu },
        Strategy::MostReliable => {
            WinReason::MostReliable { percent: m.record.percent(), attempts: m.record.attempts() }
        }
    };
    Winner { name: m.offer.name.clone(), price: m.offer.price, won }
}

/// The latest time at which a request can start. It is now, if a machine is free. Otherwise it is the first time at
/// which a suitable machine is free, if the jobs on that machine run until their time limits. `None` if no machine is
/// suitable, or if each suitable machine still prepares a job: the time limit of this job has not begun yet.
pub(crate) fn estimate_start(
    world: &World,
    request: &Request<'_>,
    choice: &Choice,
    now: Timestamp,
) -> Option<Timestamp> {
    if choice.machine.is_some() {
        return Some(now);
    }
    let free_at = |(id, m): (&MachineId, &Machine)| {
        let jobs = m.leases.keys().filter_map(|job| world.job(*job));
        // A job that does not run yet has no end.
        let limit = |job: &Job| match job.phase {
            Phase::Running => Some(job.limits.time.millis()),
            Phase::Collecting => Some(UPLOAD_LIMIT),
            _ => None,
        };
        let end = |job: &Job| limit(job).map(|limit| job.since.plus(limit).max(now));
        let ends: Option<Vec<Timestamp>> = jobs.map(end).collect();
        match reject_reason(world, *id, m, request, now)? {
            Reject::NoFreeSlot if request.spec.resources.gpus == 0 => ends?.into_iter().min(),
            // One of the jobs uses the resources that the request needs, but it is not known which job. All of them
            // must end.
            Reject::NoFreeSlot | Reject::Busy => ends?.into_iter().max(),
            _ => None,
        }
    };
    world.machines().filter_map(free_at).min()
}

/// The lowest and the highest price of the machines that are suitable for a submission, free or busy. `None` if no
/// machine is suitable.
pub(crate) fn suitable_prices(world: &World, c: &SubmitJob, now: Timestamp) -> Option<(HourlyRate, HourlyRate)> {
    let avoid = BTreeMap::new();
    let request = Request::of_submission(c, &avoid);
    let is_suitable = |reason| matches!(reason, None | Some(Reject::NoFreeSlot | Reject::Busy));
    let suitable = world.machines().filter(|(id, m)| is_suitable(reject_reason(world, **id, m, &request, now)));
    suitable.map(|(_, m)| m.offer.price).fold(None, |range, price| {
        let (lowest, highest) = range.unwrap_or((price, price));
        Some((lowest.min(price), highest.max(price)))
    })
}

/// The first reason to reject a machine; `None` for a candidate.
fn reject_reason(
    world: &World,
    id: MachineId,
    machine: &Machine,
    request: &Request<'_>,
    now: Timestamp,
) -> Option<Reject> {
    let requirements = &request.placement.requirements;
    if requirements.machine.is_some_and(|named| named != id) {
        return Some(Reject::NotNamed);
    }
    let is_too_early = request.not_before.is_some_and(|until| now < until);
    let is_avoided = is_too_early || request.avoid.get(&id).is_some_and(|until| until.is_none_or(|until| now < until));
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
    if is_avoided {
        return Some(Reject::Excluded);
    }
    if fitting_gpus < resources.gpus as usize {
        return Some(Reject::GpuTooSmall);
    }
    let is_large_enough = hardware.memory >= resources.memory
        && u64::from(hardware.cpu_cores) * 1_000 >= u64::from(resources.cpu_millis)
        && hardware.disk >= resources.disk_size()
        && machine.offer.policy.allows(resources);
    if !is_large_enough {
        return Some(Reject::TooSmall);
    }
    if !machine.offer.policy.egress.allows_all(&request.spec.egress) {
        return Some(Reject::NoEgress);
    }
    if !machine.offer.policy.allows_image(request.spec) {
        return Some(Reject::ImageNotAllowed);
    }
    if let Some(reason) = unmet_requirement(request, machine) {
        return Some(reason);
    }
    if !machine.has_free_slot() {
        return Some(Reject::NoFreeSlot);
    }
    (!has_capacity(world, machine, resources, fitting_gpus)).then_some(Reject::Busy)
}

/// True if the jobs on the machine leave enough GPUs, memory and disk for one more job. Cores are not counted, because
/// jobs can share them. The owner limits this sharing by the number of slots.
fn has_capacity(world: &World, machine: &Machine, wanted: &Resources, fitting_gpus: usize) -> bool {
    let (mut gpus, mut memory, mut disk) = (wanted.gpus as usize, wanted.memory.0, wanted.disk_size().0);
    for job in machine.leases.keys().filter_map(|job| world.job(*job)) {
        let used = &job.spec.resources;
        // Only the machine knows which GPUs a job uses. Assume that the job uses GPUs which the new job needs.
        gpus = gpus.saturating_add(if wanted.gpus > 0 { used.gpus as usize } else { 0 });
        memory = memory.saturating_add(used.memory.0);
        disk = disk.saturating_add(used.disk_size().0);
    }
    let hardware = &machine.offer.hardware;
    gpus <= fitting_gpus && memory <= hardware.memory.0 && disk <= hardware.disk.0
}

/// The first requirement of the request that the machine does not meet.
fn unmet_requirement(request: &Request<'_>, machine: &Machine) -> Option<Reject> {
    let (requirements, wants_gpu) = (&request.placement.requirements, request.spec.resources.gpus > 0);
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
    // A version that cannot be read meets no requirement.
    let supports = |least: CudaVersion| {
        hardware.cuda.as_ref().and_then(|cuda| cuda.parse::<CudaVersion>().ok()).is_some_and(|cuda| cuda >= least)
    };
    if requirements.min_cuda.is_some_and(|least| !supports(least)) {
        return Some(Reject::Cuda);
    }
    if requirements.region.as_ref().is_some_and(|region| *region != machine.offer.region) {
        return Some(Reject::Region);
    }
    if [requirements.price_cap, request.max_price].into_iter().flatten().any(|most| machine.offer.price > most) {
        return Some(Reject::Price);
    }
    if requirements.verified && !machine.verified {
        return Some(Reject::NotVerified);
    }
    // A machine without a record meets no floor but zero.
    let is_unreliable = |floor: u32| floor > 0 && machine.record.percent().is_none_or(|percent| percent < floor);
    requirements.reliability.is_some_and(is_unreliable).then_some(Reject::Reliability)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use gpubnb_events::{MicroUsd, spec::Requirements};

    #[test]
    fn the_cheapest_candidate_wins_and_rejected_machines_are_counted_by_reason() {
        let mut market = given();
        let mut cheap = market.offer();
        cheap.price = HourlyRate(cheap.price.0 - MicroUsd(1_000));
        let winner = market.list_machine(cheap.clone());
        let mut small = cheap.clone();
        small.hardware.memory = gpubnb_events::spec::Mebibytes(1);
        market.list_machine(small);
        let job = market.submit_default();
        let job = market.job(job);
        let choice = choose(&market.world, &Request::of(job), market.now);
        assert_eq!(choice.machine, Some(winner));
        assert_eq!(choice.explanation.candidates, 2);
        assert_eq!(choice.explanation.rejected, [RejectCount { reason: Reject::TooSmall, machines: 1 }]);
    }

    fn choose_for(market: &TestMarket, placement: &Placement) -> Choice {
        let submit = market.new_submission();
        let avoid = BTreeMap::new();
        choose(&market.world, &Request { placement, ..Request::of_submission(&submit, &avoid) }, market.now)
    }

    #[test]
    fn the_fastest_core_wins_over_slower_and_unmeasured_machines() {
        let mut market = given();
        let (slow, fast) = (market.list_machine(market.offer()), market.list_machine(market.offer()));
        for (machine, rate) in [(slow, "900"), (fast, "1100")] {
            market.record_test(machine, &[("cpu.matmul", rate, true)]);
        }
        let requirements = Requirements::default();
        let choice = choose_for(&market, &Placement { strategy: Strategy::Fastest, requirements });
        assert_eq!((choice.machine, choice.explanation.candidates), (Some(fast), 3));
        assert!(choice.explanation.description().contains("1 GFLOP/s a core"), "{:?}", choice.explanation.chosen);
    }

    #[test]
    fn the_best_record_wins_and_a_reliability_floor_rejects_a_machine_without_a_record() {
        let mut market = given();
        let with_record = market.machine;
        let (job, lease) = market.start_default();
        market.complete(job, lease, gpubnb_events::Millis(1));
        let without_record = market.list_machine(market.offer());
        let reliable = |floor| Requirements { reliability: floor, ..Requirements::default() };
        let choice = choose_for(&market, &Placement { strategy: Strategy::MostReliable, requirements: reliable(None) });
        assert_eq!((choice.machine, choice.explanation.candidates), (Some(with_record), 2));
        let choice = choose_for(&market, &Placement { requirements: reliable(Some(90)), ..Placement::default() });
        assert_eq!(choice.explanation.rejected, [RejectCount { reason: Reject::Reliability, machines: 1 }]);
        assert_ne!(choice.machine, Some(without_record));
    }

    #[test]
    fn an_image_of_a_registry_that_the_owner_does_not_allow_is_rejected_and_a_template_is_not() {
        let mut market = given();
        let mut offer = market.offer();
        offer.policy.registries = Some(vec!["ghcr.io".to_owned()]);
        let machine = market.list_machine(offer);
        let choose_image = |image: &str, template: Option<&str>| {
            let mut spec = market.new_submission().spec;
            (spec.image, spec.template) = (image.to_owned(), template.map(str::to_owned));
            let requirements = Requirements { machine: Some(machine), ..Requirements::default() };
            let (placement, avoid) = (Placement { requirements, ..Placement::default() }, BTreeMap::new());
            let request =
                Request { spec: &spec, placement: &placement, avoid: &avoid, not_before: None, max_price: None };
            choose(&market.world, &request, market.now)
        };
        assert_eq!(choose_image("ghcr.io/team/tool:1", None).machine, Some(machine));
        assert_eq!(choose_image("quay.io/team/tool:1", Some("prime-search")).machine, Some(machine));
        for image in ["quay.io/team/tool:1", "tool:1", "ghcr.io.example.org/team/tool:1"] {
            let rejected = choose_image(image, None).explanation.rejected;
            assert!(rejected.iter().any(|count| count.reason == Reject::ImageNotAllowed), "{image}: {rejected:?}");
        }
    }

    #[test]
    fn a_verified_placement_rejects_machines_that_did_not_pass_their_self_test() {
        let mut market = given();
        let (good, bad) = (market.list_machine(market.offer()), market.list_machine(market.offer()));
        market.record_test(good, &[("disk.write", "1", true)]);
        market.record_test(bad, &[("disk.write", "0", false)]);
        let requirements = Requirements { verified: true, ..Requirements::default() };
        let choice = choose_for(&market, &Placement { requirements, ..Placement::default() });
        assert_eq!(choice.machine, Some(good));
        assert_eq!(choice.explanation.rejected, [RejectCount { reason: Reject::NotVerified, machines: 2 }]);
    }

    #[test]
    fn a_gpu_in_use_is_not_given_to_a_second_job() {
        let mut market = given();
        let mut offer = market.offer();
        offer.slots = 2;
        let list = crate::Command::ListMachine(market.machine, market.listing(market.provider, offer));
        market.when(market.as_machine(), list).expect_appended();
        let with_gpu = |market: &TestMarket| {
            let mut submit = market.new_submission();
            submit.spec.resources.gpus = 1;
            submit
        };
        let first = market.submit(with_gpu(&market));
        let lease = market.assign(first);
        let second = market.submit(with_gpu(&market));
        let choice = choose(&market.world, &Request::of(market.job(second)), market.now);
        assert_eq!(choice.explanation.rejected, [RejectCount { reason: Reject::Busy, machines: 1 }]);
        // A job without a GPU can still use the second slot. The time limit of the first job shows when the GPU is
        // free.
        let third = market.submit_default();
        assert!(choose(&market.world, &Request::of(market.job(third)), market.now).machine.is_some());
        assert_eq!(
            estimate_start(&market.world, &Request::of(market.job(second)), &choice, market.now),
            None,
            "the first job does not run yet"
        );
        market.accept(first, lease);
        market.start(first, lease);
        let starts_at = estimate_start(&market.world, &Request::of(market.job(second)), &choice, market.now).unwrap();
        assert_eq!(starts_at, market.job(first).since.plus(market.job(first).limits.time.millis()));
        market.exit(first, lease, gpubnb_events::Millis(1));
        let starts_at = estimate_start(&market.world, &Request::of(market.job(second)), &choice, market.now).unwrap();
        assert_eq!(starts_at, market.job(first).since.plus(UPLOAD_LIMIT), "the program has ended");
    }

    #[test]
    fn a_machine_without_a_free_slot_is_rejected() {
        let mut market = given();
        let first = market.submit_default();
        market.assign(first);
        let second = market.submit_default();
        let choice = choose(&market.world, &Request::of(market.job(second)), market.now);
        assert_eq!(choice.machine, None);
        assert_eq!(choice.explanation.rejected[0].reason, Reject::NoFreeSlot);
    }
}
