//! A machine: its offer, its availability, its presence, and its leases.
//!
//! The *availability* is what the owner decides, such as a pause. The *presence* is what the watchdog finds out: a
//! machine without heartbeats is suspect first, and lost later.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Event, HourlyRate, JobId, Lease, MachineId, MicroUsd, Seq, Timestamp,
    command::{MachineChange, RecordTest},
    event::{
        Check, MachineDelisted, MachineDrainStarted, MachineListed, MachineLost, MachinePaused, MachineRecovered,
        MachineRepriced, MachineResumed, MachineSuspected, MachineTested, Speed, all_passed,
    },
    message::{EventId, Proposal},
    record::MachineRecord,
    spec::Offer,
};
use serde::{Deserialize, Serialize};

use super::{
    Decision, DomainError, Listing,
    daily_bytes::{self, DailyBytes},
};

/// Greatest price of a machine per hour.
const MAX_PRICE: MicroUsd = MicroUsd::dollars(1_000);
/// Most slots of a machine. A machine runs one job in each slot.
pub const MAX_SLOTS: u32 = 256;

/// Longest name of a hardware component, bytes.
const MAX_HARDWARE_NAME: usize = 128;
/// The most registries that an offer names.
const MAX_REGISTRIES: usize = 64;
/// Most checks of a self-test.
const MAX_CHECKS: usize = 64;
/// Longest text in a check, bytes.
const MAX_CHECK_TEXT: usize = 400;
/// Longest texts of all checks of a self-test together, bytes.
const MAX_TEST_TEXT: usize = 32_768;

/// The presence of a machine, by its heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// Heartbeats arrive.
    Online,
    /// The last heartbeats are missing.
    Suspect,
    /// Heartbeats have been missing for too long. The machine's jobs are taken away.
    Lost,
}

/// The availability of a machine, as its owner decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    /// The machine takes jobs.
    Ready,
    /// The machine finishes its jobs and takes no new jobs. The owner paused it.
    Paused,
    /// The machine finishes its jobs and takes no new jobs. The owner wants it to be empty.
    Draining,
    /// Like `Draining`. Afterwards the owner works on the machine.
    Maintenance,
    /// The machine left the market.
    Delisted,
}

/// The state of one machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The sequence of the machine's last event, which is the guard of the next event.
    pub last: Seq,
    /// The account of the machine's owner.
    pub owner: AccountId,
    /// The machine's public key, which checks the signatures of its reports.
    pub public_key: Option<String>,
    /// The hardware, the price and the policy that the machine offers.
    pub offer: Offer,
    /// The availability that the owner decided.
    pub availability: Availability,
    /// True while the owner uses the machine. The machine itself reports this, and takes no jobs meanwhile.
    pub away: bool,
    /// The presence that the watchdog found out.
    pub presence: Presence,
    /// The live lease of each job on the machine.
    pub leases: BTreeMap<JobId, Lease>,
    /// The numbers of attempts that ended with and without a fault of the machine.
    pub record: MachineRecord,
    /// The speed that the last self-test measured.
    pub speed: Speed,
    /// True if every check of the last self-test passed.
    pub verified: bool,
    /// The bytes of today's events that nothing pays for.
    pub(crate) daily_bytes: DailyBytes,
    /// The sequence of the last `MachineListed`.
    listed: Seq,
}

impl Machine {
    fn new(seq: Seq, e: &MachineListed) -> Self {
        Self {
            last: seq,
            owner: e.owner,
            public_key: e.public_key.clone(),
            offer: e.offer.clone(),
            availability: Availability::Ready,
            away: false,
            presence: Presence::Online,
            leases: BTreeMap::new(),
            record: MachineRecord::default(),
            speed: Speed::default(),
            verified: false,
            daily_bytes: DailyBytes::default(),
            listed: seq,
        }
    }

    /// True if the machine has a free slot.
    pub fn has_free_slot(&self) -> bool {
        self.leases.len() < self.offer.slots as usize
    }

    /// Proposes an event of this machine.
    fn propose(&self, event: impl Into<Event>) -> Decision {
        let event = event.into();
        let id = EventId(format!("{}.{}.{}", event.aggregate(), event.name(), self.last).replace(' ', "."));
        Decision::Append(Proposal { event, id, expected: self.last, cause: None })
    }

    /// Offers a machine, for the first time or with changes. `known` is the machine, if it was listed before.
    pub(crate) fn list(known: Option<&Self>, machine: MachineId, c: &Listing) -> Result<Decision, DomainError> {
        check_offer(&c.offer)?;
        let event = MachineListed { machine, owner: c.owner, public_key: c.public_key.clone(), offer: c.offer.clone() };
        let Some(known) = known else {
            let id = EventId(format!("{machine}.listed"));
            return Ok(Decision::Append(Proposal { event: event.into(), id, expected: Seq::ZERO, cause: None }));
        };
        if known.owner != c.owner {
            return Err(DomainError::NotAllowed("the machine belongs to another account"));
        }
        if known.offer == c.offer && known.public_key == c.public_key && known.availability != Availability::Delisted {
            return Ok(Decision::AlreadyDone(known.listed));
        }
        Ok(known.propose(event))
    }

    /// Changes the machine as its owner asks.
    pub(crate) fn change(&self, machine: MachineId, change: MachineChange) -> Result<Decision, DomainError> {
        use Availability::{Delisted, Draining, Maintenance, Paused, Ready};
        let already = Ok(Decision::AlreadyDone(self.last));
        match (change, self.availability) {
            (MachineChange::Delist, Delisted) => already,
            (_, Delisted) => Err(DomainError::WrongState("The machine has left the market. List it again first.")),
            (MachineChange::Pause, Paused)
            | (MachineChange::Resume, Ready)
            | (MachineChange::Drain, Draining)
            | (MachineChange::Maintain, Maintenance) => already,
            (MachineChange::Pause, _) => Ok(self.propose(MachinePaused { machine, away: false })),
            (MachineChange::Resume, _) => Ok(self.propose(MachineResumed { machine, away: false })),
            (MachineChange::Away, _) if self.away => already,
            (MachineChange::Back, _) if !self.away => already,
            (MachineChange::Away, _) => Ok(self.propose(MachinePaused { machine, away: true })),
            (MachineChange::Back, _) => Ok(self.propose(MachineResumed { machine, away: true })),
            (MachineChange::Drain, _) => Ok(self.propose(MachineDrainStarted { machine, maintenance: false })),
            (MachineChange::Maintain, _) => Ok(self.propose(MachineDrainStarted { machine, maintenance: true })),
            (MachineChange::Delist, _) if !self.leases.is_empty() => Err(DomainError::WrongState(
                "The machine still runs jobs. Drain it, and delist it when the jobs have ended.",
            )),
            (MachineChange::Delist, _) => Ok(self.propose(MachineDelisted { machine })),
            (MachineChange::Reprice(price), _) if price == self.offer.price => already,
            (MachineChange::Reprice(price), _) => {
                check_price(price)?;
                Ok(self.propose(MachineRepriced { machine, price }))
            }
        }
    }

    /// Records the results of a self-test.
    pub(crate) fn record_test(&self, machine: MachineId, c: &RecordTest) -> Result<Decision, DomainError> {
        check_test(&c.checks)?;
        Ok(self.propose(MachineTested { machine, checks: c.checks.clone(), speed: Speed::from_checks(&c.checks) }))
    }

    /// The watchdog missed heartbeats of the machine.
    pub(crate) fn suspect(&self, machine: MachineId) -> Decision {
        match self.presence {
            Presence::Online => self.propose(MachineSuspected { machine }),
            Presence::Suspect | Presence::Lost => Decision::AlreadyDone(self.last),
        }
    }

    /// The watchdog declares the machine lost. Only a suspect machine can be lost.
    pub(crate) fn lose(&self, machine: MachineId) -> Result<Decision, DomainError> {
        match self.presence {
            Presence::Online => Err(DomainError::WrongState("The machine sends heartbeats.")),
            Presence::Suspect => Ok(self.propose(MachineLost { machine })),
            Presence::Lost => Ok(Decision::AlreadyDone(self.last)),
        }
    }

    /// The watchdog received a heartbeat of the machine.
    pub(crate) fn recover(&self, machine: MachineId) -> Decision {
        match self.presence {
            Presence::Suspect | Presence::Lost => self.propose(MachineRecovered { machine }),
            Presence::Online => Decision::AlreadyDone(self.last),
        }
    }

    /// Folds an event of a machine.
    pub(crate) fn apply(machines: &mut BTreeMap<MachineId, Self>, seq: Seq, at: Timestamp, event: &Event) {
        Self::fold(machines, seq, event);
        // The watchdog's observations are not the machine's wish.
        let is_observed =
            matches!(event, Event::MachineSuspected(_) | Event::MachineLost(_) | Event::MachineRecovered(_));
        if let gpubnb_events::Aggregate::Machine(id) = event.aggregate()
            && let Some(machine) = machines.get_mut(&id).filter(|_| !is_observed)
        {
            machine.daily_bytes.add(at, daily_bytes::size_of(event));
        }
    }

    fn fold(machines: &mut BTreeMap<MachineId, Self>, seq: Seq, event: &Event) {
        if let Event::MachineListed(e) = event {
            machines
                .entry(e.machine)
                .and_modify(|m| {
                    let leases = std::mem::take(&mut m.leases);
                    // A new listing changes the offer. It does not end the owner's pause.
                    let availability = match m.availability {
                        Availability::Delisted => Availability::Ready,
                        unchanged => unchanged,
                    };
                    *m = Self {
                        availability,
                        leases,
                        away: m.away,
                        record: m.record,
                        speed: m.speed,
                        verified: m.verified,
                        daily_bytes: m.daily_bytes,
                        ..Self::new(seq, e)
                    };
                })
                .or_insert_with(|| Self::new(seq, e));
            return;
        }
        let gpubnb_events::Aggregate::Machine(id) = event.aggregate() else { return };
        let Some(machine) = machines.get_mut(&id) else { return };
        machine.last = seq;
        match event {
            Event::MachineRepriced(e) => machine.offer.price = e.price,
            Event::MachinePaused(e) if e.away => machine.away = true,
            Event::MachineResumed(e) if e.away => machine.away = false,
            Event::MachinePaused(_) => machine.availability = Availability::Paused,
            Event::MachineResumed(_) => machine.availability = Availability::Ready,
            Event::MachineDrainStarted(e) if e.maintenance => machine.availability = Availability::Maintenance,
            Event::MachineDrainStarted(_) => machine.availability = Availability::Draining,
            Event::MachineDelisted(_) => machine.availability = Availability::Delisted,
            Event::MachineSuspected(_) => machine.presence = Presence::Suspect,
            Event::MachineLost(_) => machine.presence = Presence::Lost,
            Event::MachineRecovered(_) => machine.presence = Presence::Online,
            Event::MachineTested(e) => {
                machine.speed = e.speed;
                machine.verified = all_passed(&e.checks);
            }
            _ => {}
        }
    }
}

fn check_price(price: HourlyRate) -> Result<(), DomainError> {
    if price.0 < MicroUsd::ZERO || price.0 > MAX_PRICE {
        return Err(DomainError::field("price", format!("The price per hour must be from $0 to {MAX_PRICE}.")));
    }
    Ok(())
}

fn check_offer(offer: &Offer) -> Result<(), DomainError> {
    crate::rules::check_text("name", &offer.name, 80)?;
    crate::rules::check_text("region", &offer.region, 40)?;
    check_price(offer.price)?;
    if offer.slots == 0 || offer.slots > MAX_SLOTS {
        return Err(DomainError::field("slots", format!("A machine has from 1 to {MAX_SLOTS} slots.")));
    }
    if let Some(hours) = &offer.policy.hours {
        crate::rules::check_text("hours", hours, 80)?;
    }
    let registries = offer.policy.registries.iter().flatten();
    if registries.clone().count() > MAX_REGISTRIES || registries.clone().any(|r| r.len() > MAX_HARDWARE_NAME) {
        let message = format!("A machine names at most {MAX_REGISTRIES} registries of {MAX_HARDWARE_NAME} bytes each.");
        return Err(DomainError::field("registries", message));
    }
    let hardware = &offer.hardware;
    if hardware.gpus.len() > 16 {
        return Err(DomainError::field("gpus", "A machine has at most 16 GPUs."));
    }
    let gpu_names = hardware
        .gpus
        .iter()
        .flat_map(|gpu| [Some(&gpu.uuid), Some(&gpu.model), gpu.capability.as_ref(), gpu.pci.as_ref()]);
    let versions = hardware.driver.iter().chain(&hardware.cuda);
    let names = gpu_names.flatten().chain(versions).chain([&hardware.cpu_model]);
    if names.into_iter().any(|name| name.len() > MAX_HARDWARE_NAME) {
        return Err(DomainError::field(
            "hardware",
            format!("A name of a component has at most {MAX_HARDWARE_NAME} bytes."),
        ));
    }
    Ok(())
}

fn check_test(checks: &[Check]) -> Result<(), DomainError> {
    let has_long_text =
        |c: &Check| [&c.id, &c.actual, &c.required, &c.unit, &c.remedy].into_iter().any(|t| t.len() > MAX_CHECK_TEXT);
    let texts =
        |c: &Check| [&c.id, &c.actual, &c.required, &c.unit, &c.remedy].into_iter().map(String::len).sum::<usize>();
    if checks.iter().map(texts).sum::<usize>() > MAX_TEST_TEXT {
        return Err(DomainError::field("checks", format!("A self-test has at most {MAX_TEST_TEXT} bytes of text.")));
    }
    if checks.len() > MAX_CHECKS || checks.iter().any(has_long_text) {
        return Err(DomainError::field(
            "checks",
            format!("A self-test has at most {MAX_CHECKS} checks, with texts of at most {MAX_CHECK_TEXT} bytes."),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, testing::*};
    use gpubnb_events::command::ChangeMachine;

    #[test]
    fn listing_the_same_offer_twice_writes_one_event() {
        let mut market = given();
        let list = Command::ListMachine(market.machine, market.listing(market.provider, market.offer()));
        assert_eq!(market.when(market.as_machine(), list).expect_already_done(), market.machine_state().listed);
    }

    #[test]
    fn the_return_of_the_owner_does_not_end_a_pause() {
        let mut market = given();
        let change = |wish| Command::ChangeMachine(ChangeMachine { machine: market.machine, change: wish });
        let [away, pause, back, resume] =
            [MachineChange::Away, MachineChange::Pause, MachineChange::Back, MachineChange::Resume].map(change);
        market.when(market.as_machine(), away.clone()).expect_appended();
        market.when(market.as_machine(), away.clone()).expect_already_done();
        market.when(market.as_provider(), pause).expect_appended();
        market.when(market.as_machine(), back).expect_appended();
        assert_eq!((market.machine_state().away, market.machine_state().availability), (false, Availability::Paused));
        market.when(market.as_provider(), resume).expect_appended();
        assert_eq!(market.machine_state().availability, Availability::Ready);
        // Only the machine itself may report that its owner uses it.
        market.when(market.as_provider(), away).expect_refused();
    }

    #[test]
    fn a_machine_can_change_between_draining_and_maintenance() {
        let mut market = given();
        let change = |wish| Command::ChangeMachine(ChangeMachine { machine: market.machine, change: wish });
        let (drain, maintain, resume) =
            (change(MachineChange::Drain), change(MachineChange::Maintain), change(MachineChange::Resume));
        market.when(market.as_provider(), drain.clone()).expect_appended();
        market.when(market.as_provider(), maintain.clone()).expect_appended();
        market.when(market.as_provider(), maintain).expect_already_done();
        assert_eq!(market.machine_state().availability, Availability::Maintenance);
        market.when(market.as_provider(), drain).expect_appended();
        assert_eq!(market.machine_state().availability, Availability::Draining);
        market.when(market.as_provider(), resume).expect_appended();
        assert_eq!(market.machine_state().availability, Availability::Ready);
    }

    #[test]
    fn a_new_offer_does_not_end_a_pause_but_ends_a_delisting() {
        let mut market = given();
        let change = |wish| Command::ChangeMachine(ChangeMachine { machine: market.machine, change: wish });
        let (pause, delist) = (change(MachineChange::Pause), change(MachineChange::Delist));
        market.when(market.as_provider(), pause).expect_appended();
        let mut offer = market.offer();
        offer.slots += 1;
        let list = Command::ListMachine(market.machine, market.listing(market.provider, offer));
        market.when(market.as_machine(), list.clone()).expect_appended();
        assert_eq!(market.machine_state().availability, Availability::Paused);
        market.when(market.as_provider(), delist).expect_appended();
        market.when(market.as_machine(), list).expect_appended();
        assert_eq!(market.machine_state().availability, Availability::Ready);
    }

    #[test]
    fn only_a_suspect_machine_can_be_lost() {
        let mut market = given();
        let lose = Command::Lose(market.machine);
        let heard = market.when(gpubnb_events::Actor::Platform, lose.clone()).expect_refused();
        assert!(matches!(heard, DomainError::WrongState(_)));
        market.when(gpubnb_events::Actor::Platform, Command::Suspect(market.machine)).expect_appended();
        market.when(gpubnb_events::Actor::Platform, lose).expect_appended();
        assert_eq!(market.machine_state().presence, Presence::Lost);
    }

    #[test]
    fn a_listing_cannot_change_the_owner() {
        let mut market = given();
        let list = Command::ListMachine(market.machine, market.listing(market.consumer, market.offer()));
        assert!(matches!(market.when(market.as_machine(), list).expect_refused(), DomainError::NotAllowed(_)));
    }

    #[test]
    fn a_machine_with_live_leases_cannot_be_delisted() {
        let mut market = given();
        let job = market.submit_default();
        market.assign(job);
        let delist = Command::ChangeMachine(ChangeMachine { machine: market.machine, change: MachineChange::Delist });
        assert!(matches!(
            market.when(market.as_provider(), delist.clone()).expect_refused(),
            DomainError::WrongState(_)
        ));
        assert!(matches!(market.when(market.as_consumer(), delist).expect_refused(), DomainError::NotAllowed(_)));
    }
}
