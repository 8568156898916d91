//! A machine: its offer, its owner's wishes, its presence, and the leases it holds.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Event, HourlyRate, JobId, Lease, MachineId, MicroUsd, Seq,
    command::{ListMachine, MachineWish, RecordTest},
    event::{
        MachineDelisted, MachineDrainStarted, MachineListed, MachineLost, MachinePaused, MachineRecovered,
        MachineRepriced, MachineResumed, MachineSuspected, MachineTested,
    },
    log::{EventId, Proposal},
    spec::Offer,
};

use super::{Decision, Refusal};

/// Most a machine may cost per hour.
const MAX_PRICE: MicroUsd = MicroUsd::dollars(1_000);
/// Most jobs a machine may run at once.
const MAX_SLOTS: u32 = 256;

/// Whether a machine is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is heard.
    Online,
    /// It missed heartbeats.
    Suspect,
    /// It was silent past the grace.
    Lost,
}

/// Whether a machine takes jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Yes.
    Ready,
    /// The owner paused it.
    Paused,
    /// It finishes what it has.
    Draining,
    /// It left the market.
    Delisted,
}

/// State of one machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Last sequence of its own events: the guard.
    pub last: Seq,
    /// Who owns it.
    pub owner: AccountId,
    /// What it offers.
    pub offer: Offer,
    /// Whether it takes jobs.
    pub availability: Availability,
    /// Whether it is there.
    pub presence: Presence,
    /// The live leases it holds.
    pub leases: BTreeMap<JobId, Lease>,
    listed: Seq,
}

impl Machine {
    fn new(seq: Seq, e: &MachineListed) -> Self {
        Self {
            last: seq,
            owner: e.owner,
            offer: e.offer.clone(),
            availability: Availability::Ready,
            presence: Presence::Online,
            leases: BTreeMap::new(),
            listed: seq,
        }
    }

    /// Whether another lease fits.
    pub fn has_free_slot(&self) -> bool {
        self.leases.len() < self.offer.slots as usize
    }

    fn propose(&self, event: impl Into<Event>) -> Decision {
        let event = event.into();
        let id = EventId(format!("{}.{}.{}", event.aggregate(), event.name(), self.last).replace(' ', "."));
        Decision::Append(Proposal { event, id, expected: self.last, cause: None })
    }

    /// Offers a machine, for the first time or with changes.
    pub(super) fn list(known: Option<&Self>, machine: MachineId, c: &ListMachine) -> Result<Decision, Refusal> {
        check_offer(&c.offer)?;
        let event = MachineListed { machine, owner: c.owner, public_key: None, offer: c.offer.clone() };
        let Some(known) = known else {
            let id = EventId(format!("{machine}.listed"));
            return Ok(Decision::Append(Proposal { event: event.into(), id, expected: Seq::ZERO, cause: None }));
        };
        if known.owner != c.owner {
            return Err(Refusal::NotAllowed("the machine belongs to another account"));
        }
        if known.offer == c.offer && known.availability != Availability::Delisted {
            return Ok(Decision::Already(known.listed));
        }
        Ok(known.propose(event))
    }

    /// What the owner wants.
    pub(super) fn change(&self, machine: MachineId, wish: MachineWish) -> Result<Decision, Refusal> {
        use Availability::{Delisted, Draining, Paused, Ready};
        let already = Ok(Decision::Already(self.last));
        match (wish, self.availability) {
            (MachineWish::Delist, Delisted) => already,
            (_, Delisted) => Err(Refusal::WrongState("The machine has left the market. List it again first.")),
            (MachineWish::Pause, Paused) | (MachineWish::Resume, Ready) | (MachineWish::Drain, Draining) => already,
            (MachineWish::Pause, _) => Ok(self.propose(MachinePaused { machine })),
            (MachineWish::Resume, _) => Ok(self.propose(MachineResumed { machine })),
            (MachineWish::Drain, _) => Ok(self.propose(MachineDrainStarted { machine })),
            (MachineWish::Delist, _) if !self.leases.is_empty() => {
                Err(Refusal::WrongState("The machine still runs jobs. Drain it, and delist it when they have ended."))
            }
            (MachineWish::Delist, _) => Ok(self.propose(MachineDelisted { machine })),
            (MachineWish::Reprice(price), _) if price == self.offer.price => already,
            (MachineWish::Reprice(price), _) => {
                check_price(price)?;
                Ok(self.propose(MachineRepriced { machine, price }))
            }
        }
    }

    /// A self-test was made.
    pub(super) fn record_test(&self, machine: MachineId, c: &RecordTest) -> Result<Decision, Refusal> {
        if c.checks.len() > 100 {
            return Err(Refusal::field("checks", "A self-test has at most 100 checks."));
        }
        Ok(self.propose(MachineTested { machine, checks: c.checks.clone() }))
    }

    /// The watchdog missed heartbeats.
    pub(super) fn suspect(&self, machine: MachineId) -> Decision {
        match self.presence {
            Presence::Online => self.propose(MachineSuspected { machine }),
            Presence::Suspect | Presence::Lost => Decision::Already(self.last),
        }
    }

    /// The watchdog gave it up.
    pub(super) fn lose(&self, machine: MachineId) -> Decision {
        match self.presence {
            Presence::Online | Presence::Suspect => self.propose(MachineLost { machine }),
            Presence::Lost => Decision::Already(self.last),
        }
    }

    /// The watchdog heard it again.
    pub(super) fn recover(&self, machine: MachineId) -> Decision {
        match self.presence {
            Presence::Suspect | Presence::Lost => self.propose(MachineRecovered { machine }),
            Presence::Online => Decision::Already(self.last),
        }
    }

    /// Takes in one of a machine's events.
    pub(super) fn apply(machines: &mut BTreeMap<MachineId, Self>, seq: Seq, event: &Event) {
        if let Event::MachineListed(e) = event {
            machines
                .entry(e.machine)
                .and_modify(|m| {
                    let leases = std::mem::take(&mut m.leases);
                    *m = Self { leases, ..Self::new(seq, e) };
                })
                .or_insert_with(|| Self::new(seq, e));
            return;
        }
        let gpubnb_events::Aggregate::Machine(id) = event.aggregate() else { return };
        let Some(machine) = machines.get_mut(&id) else { return };
        machine.last = seq;
        match event {
            Event::MachineRepriced(e) => machine.offer.price = e.price,
            Event::MachinePaused(_) => machine.availability = Availability::Paused,
            Event::MachineResumed(_) => machine.availability = Availability::Ready,
            Event::MachineDrainStarted(_) => machine.availability = Availability::Draining,
            Event::MachineDelisted(_) => machine.availability = Availability::Delisted,
            Event::MachineSuspected(_) => machine.presence = Presence::Suspect,
            Event::MachineLost(_) => machine.presence = Presence::Lost,
            Event::MachineRecovered(_) => machine.presence = Presence::Online,
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
    super::submission::check_text("name", &offer.name, 80)?;
    super::submission::check_text("region", &offer.region, 40)?;
    check_price(offer.price)?;
    if offer.slots == 0 || offer.slots > MAX_SLOTS {
        return Err(Refusal::field("slots", format!("A machine has from 1 to {MAX_SLOTS} slots.")));
    }
    if offer.hardware.gpus.len() > 16 {
        return Err(Refusal::field("gpus", "A machine has at most 16 GPUs."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Command, given::*};
    use super::*;
    use gpubnb_events::command::ChangeMachine;

    #[test]
    fn listing_the_same_offer_again_changes_nothing() {
        let mut w = given();
        let list = Command::ListMachine(w.machine, ListMachine { owner: w.provider, offer: w.offer() });
        assert_eq!(w.when(w.as_machine(), list).already(), w.machine_state().listed);
    }

    #[test]
    fn a_machine_cannot_be_taken_over_by_listing_it() {
        let mut w = given();
        let list = Command::ListMachine(w.machine, ListMachine { owner: w.consumer, offer: w.offer() });
        assert!(matches!(w.when(w.as_machine(), list).refused(), Refusal::NotAllowed(_)));
    }

    #[test]
    fn a_machine_with_live_leases_is_not_delisted() {
        let mut w = given();
        let job = w.submitted();
        w.assigned(job);
        let delist = Command::ChangeMachine(ChangeMachine { machine: w.machine, wish: MachineWish::Delist });
        assert!(matches!(w.when(w.as_provider(), delist.clone()).refused(), Refusal::WrongState(_)));
        assert!(matches!(w.when(w.as_consumer(), delist).refused(), Refusal::NotAllowed(_)));
    }
}
