//! A machine: its offer, its owner's wishes, its presence, and its leases.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Event, HourlyRate, JobId, Lease, MachineId, MicroUsd, Seq,
    command::{MachineChange, RecordTest},
    event::{
        Check, MachineDelisted, MachineDrainStarted, MachineListed, MachineLost, MachinePaused, MachineRecovered,
        MachineRepriced, MachineResumed, MachineSuspected, MachineTested, Speed, verified,
    },
    message::{EventId, Proposal},
    record::Record,
    spec::Offer,
};
use serde::{Deserialize, Serialize};

use super::{Decision, Listing, Refusal};

/// Greatest price of a machine per hour.
const MAX_PRICE: MicroUsd = MicroUsd::dollars(1_000);
/// Most slots of a machine.
pub const MAX_SLOTS: u32 = 256;

/// Longest name of a hardware component, bytes.
const MAX_NAME: usize = 128;
/// Most checks of a self-test.
const MAX_CHECKS: usize = 64;
/// Longest text of a check, bytes.
const MAX_TEXT: usize = 400;

/// The presence of a machine, as the watchdog sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// The machine is heard.
    Online,
    /// The machine missed heartbeats.
    Suspect,
    /// The machine was silent for too long.
    Lost,
}

/// The availability of a machine, as its owner wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    /// The machine takes jobs.
    Ready,
    /// The owner paused it.
    Paused,
    /// The machine finishes its jobs and takes no new ones.
    Draining,
    /// Like `Draining`; afterwards the owner works on the machine.
    Maintenance,
    /// The machine left the market.
    Delisted,
}

/// State of one machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Last sequence of the machine's own events, which is the guard.
    pub last: Seq,
    /// The account that owns the machine.
    pub owner: AccountId,
    /// The machine's public key.
    pub public_key: Option<String>,
    /// The offer.
    pub offer: Offer,
    /// The availability.
    pub availability: Availability,
    /// True if the owner uses the machine, as the machine itself reports.
    pub away: bool,
    /// The presence.
    pub presence: Presence,
    /// The machine's live leases.
    pub leases: BTreeMap<JobId, Lease>,
    /// The record of attempts.
    pub record: Record,
    /// The speed in the last self-test.
    pub speed: Speed,
    /// True if every check of the last self-test passed.
    pub verified: bool,
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
            record: Record::default(),
            speed: Speed::default(),
            verified: false,
            listed: seq,
        }
    }

    /// True if a slot is free.
    pub fn has_free_slot(&self) -> bool {
        self.leases.len() < self.offer.slots as usize
    }

    fn propose(&self, event: impl Into<Event>) -> Decision {
        let event = event.into();
        let id = EventId(format!("{}.{}.{}", event.aggregate(), event.name(), self.last).replace(' ', "."));
        Decision::Append(Proposal { event, id, expected: self.last, cause: None })
    }

    /// Offers a machine, for the first time or with changes.
    pub(crate) fn list(known: Option<&Self>, machine: MachineId, c: &Listing) -> Result<Decision, Refusal> {
        check_offer(&c.offer)?;
        let event = MachineListed { machine, owner: c.owner, public_key: c.public_key.clone(), offer: c.offer.clone() };
        let Some(known) = known else {
            let id = EventId(format!("{machine}.listed"));
            return Ok(Decision::Append(Proposal { event: event.into(), id, expected: Seq::ZERO, cause: None }));
        };
        if known.owner != c.owner {
            return Err(Refusal::NotAllowed("the machine belongs to another account"));
        }
        if known.offer == c.offer && known.public_key == c.public_key && known.availability != Availability::Delisted {
            return Ok(Decision::Already(known.listed));
        }
        Ok(known.propose(event))
    }

    /// Changes the machine as its owner wishes.
    pub(crate) fn change(&self, machine: MachineId, wish: MachineChange) -> Result<Decision, Refusal> {
        use Availability::{Delisted, Draining, Maintenance, Paused, Ready};
        let already = Ok(Decision::Already(self.last));
        match (wish, self.availability) {
            (MachineChange::Delist, Delisted) => already,
            (_, Delisted) => Err(Refusal::WrongState("The machine has left the market. List it again first.")),
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
            (MachineChange::Delist, _) if !self.leases.is_empty() => {
                Err(Refusal::WrongState("The machine still runs jobs. Drain it, and delist it when they have ended."))
            }
            (MachineChange::Delist, _) => Ok(self.propose(MachineDelisted { machine })),
            (MachineChange::Reprice(price), _) if price == self.offer.price => already,
            (MachineChange::Reprice(price), _) => {
                check_price(price)?;
                Ok(self.propose(MachineRepriced { machine, price }))
            }
        }
    }

    /// Records a self-test.
    pub(crate) fn record_test(&self, machine: MachineId, c: &RecordTest) -> Result<Decision, Refusal> {
        check_test(&c.checks)?;
        Ok(self.propose(MachineTested { machine, checks: c.checks.clone(), speed: Speed::of(&c.checks) }))
    }

    /// The watchdog missed heartbeats of the machine.
    pub(crate) fn suspect(&self, machine: MachineId) -> Decision {
        match self.presence {
            Presence::Online => self.propose(MachineSuspected { machine }),
            Presence::Suspect | Presence::Lost => Decision::Already(self.last),
        }
    }

    /// The watchdog gives the machine up. Only a suspect machine can be lost.
    pub(crate) fn lose(&self, machine: MachineId) -> Result<Decision, Refusal> {
        match self.presence {
            Presence::Online => Err(Refusal::WrongState("The machine is heard.")),
            Presence::Suspect => Ok(self.propose(MachineLost { machine })),
            Presence::Lost => Ok(Decision::Already(self.last)),
        }
    }

    /// The watchdog heard the machine again.
    pub(crate) fn recover(&self, machine: MachineId) -> Decision {
        match self.presence {
            Presence::Suspect | Presence::Lost => self.propose(MachineRecovered { machine }),
            Presence::Online => Decision::Already(self.last),
        }
    }

    /// Folds an event of a machine.
    pub(crate) fn apply(machines: &mut BTreeMap<MachineId, Self>, seq: Seq, event: &Event) {
        if let Event::MachineListed(e) = event {
            machines
                .entry(e.machine)
                .and_modify(|m| {
                    let leases = std::mem::take(&mut m.leases);
                    // A new listing changes the offer. It does not end the owner's pause.
                    let availability = match m.availability {
                        Availability::Delisted => Availability::Ready,
                        kept => kept,
                    };
                    *m = Self {
                        availability,
                        leases,
                        away: m.away,
                        record: m.record,
                        speed: m.speed,
                        verified: m.verified,
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
                machine.verified = verified(&e.checks);
            }
            _ => {}
        }
    }
}

fn check_price(price: HourlyRate) -> Result<(), Refusal> {
    if price.0 < MicroUsd::ZERO || price.0 > MAX_PRICE {
        return Err(Refusal::field("price", format!("The price per hour must be from $0 to {MAX_PRICE}.")));
    }
    Ok(())
}

fn check_offer(offer: &Offer) -> Result<(), Refusal> {
    crate::rules::check_text("name", &offer.name, 80)?;
    crate::rules::check_text("region", &offer.region, 40)?;
    check_price(offer.price)?;
    if offer.slots == 0 || offer.slots > MAX_SLOTS {
        return Err(Refusal::field("slots", format!("A machine has from 1 to {MAX_SLOTS} slots.")));
    }
    if let Some(hours) = &offer.policy.hours {
        crate::rules::check_text("hours", hours, 80)?;
    }
    let hardware = &offer.hardware;
    if hardware.gpus.len() > 16 {
        return Err(Refusal::field("gpus", "A machine has at most 16 GPUs."));
    }
    let of_gpus = hardware.gpus.iter().flat_map(|gpu| [&gpu.uuid, &gpu.model]);
    let versions = hardware.driver.iter().chain(&hardware.cuda);
    let names = of_gpus.chain(versions).chain([&hardware.cpu_model]);
    if names.into_iter().any(|name| name.len() > MAX_NAME) {
        return Err(Refusal::field("hardware", format!("A name has at most {MAX_NAME} bytes.")));
    }
    Ok(())
}

fn check_test(checks: &[Check]) -> Result<(), Refusal> {
    let text = |c: &Check| [&c.id, &c.actual, &c.required, &c.unit, &c.remedy].into_iter().any(|t| t.len() > MAX_TEXT);
    if checks.len() > MAX_CHECKS || checks.iter().any(text) {
        return Err(Refusal::field(
            "checks",
            format!("A self-test has at most {MAX_CHECKS} checks, each text of at most {MAX_TEXT} bytes."),
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
    fn listing_the_same_offer_again_changes_nothing() {
        let mut w = given();
        let list = Command::ListMachine(w.machine, w.listing(w.provider, w.offer()));
        assert_eq!(w.when(w.as_machine(), list).already(), w.machine_state().listed);
    }

    #[test]
    fn being_away_and_being_paused_are_two_things() {
        let mut w = given();
        let change = |wish| Command::ChangeMachine(ChangeMachine { machine: w.machine, wish });
        let [away, pause, back, resume] =
            [MachineChange::Away, MachineChange::Pause, MachineChange::Back, MachineChange::Resume].map(change);
        w.when(w.as_machine(), away.clone()).appended();
        w.when(w.as_machine(), away.clone()).already();
        w.when(w.as_provider(), pause).appended();
        w.when(w.as_machine(), back).appended();
        assert_eq!((w.machine_state().away, w.machine_state().availability), (false, Availability::Paused));
        w.when(w.as_provider(), resume).appended();
        assert_eq!(w.machine_state().availability, Availability::Ready);
        // Only the machine itself knows whether its owner uses it.
        w.when(w.as_provider(), away).refused();
    }

    #[test]
    fn maintenance_is_a_drain_that_is_announced() {
        let mut w = given();
        let change = |wish| Command::ChangeMachine(ChangeMachine { machine: w.machine, wish });
        let (drain, maintain, resume) =
            (change(MachineChange::Drain), change(MachineChange::Maintain), change(MachineChange::Resume));
        w.when(w.as_provider(), drain.clone()).appended();
        w.when(w.as_provider(), maintain.clone()).appended();
        w.when(w.as_provider(), maintain).already();
        assert_eq!(w.machine_state().availability, Availability::Maintenance);
        w.when(w.as_provider(), drain).appended();
        assert_eq!(w.machine_state().availability, Availability::Draining);
        w.when(w.as_provider(), resume).appended();
        assert_eq!(w.machine_state().availability, Availability::Ready);
    }

    #[test]
    fn an_offer_made_anew_does_not_end_the_owners_pause() {
        let mut w = given();
        let change = |wish| Command::ChangeMachine(ChangeMachine { machine: w.machine, wish });
        let (pause, delist) = (change(MachineChange::Pause), change(MachineChange::Delist));
        w.when(w.as_provider(), pause).appended();
        let mut offer = w.offer();
        offer.slots += 1;
        let list = Command::ListMachine(w.machine, w.listing(w.provider, offer));
        w.when(w.as_machine(), list.clone()).appended();
        assert_eq!(w.machine_state().availability, Availability::Paused);
        w.when(w.as_provider(), delist).appended();
        w.when(w.as_machine(), list).appended();
        assert_eq!(w.machine_state().availability, Availability::Ready);
    }

    #[test]
    fn only_a_machine_under_suspicion_is_given_up() {
        let mut w = given();
        let lose = Command::Lose(w.machine);
        let heard = w.when(gpubnb_events::Actor::Platform, lose.clone()).refused();
        assert!(matches!(heard, Refusal::WrongState(_)));
        w.when(gpubnb_events::Actor::Platform, Command::Suspect(w.machine)).appended();
        w.when(gpubnb_events::Actor::Platform, lose).appended();
        assert_eq!(w.machine_state().presence, Presence::Lost);
    }

    #[test]
    fn a_machine_cannot_be_taken_over_by_listing_it() {
        let mut w = given();
        let list = Command::ListMachine(w.machine, w.listing(w.consumer, w.offer()));
        assert!(matches!(w.when(w.as_machine(), list).refused(), Refusal::NotAllowed(_)));
    }

    #[test]
    fn a_machine_with_live_leases_is_not_delisted() {
        let mut w = given();
        let job = w.submitted();
        w.assigned(job);
        let delist = Command::ChangeMachine(ChangeMachine { machine: w.machine, wish: MachineChange::Delist });
        assert!(matches!(w.when(w.as_provider(), delist.clone()).refused(), Refusal::WrongState(_)));
        assert!(matches!(w.when(w.as_consumer(), delist).refused(), Refusal::NotAllowed(_)));
    }
}
