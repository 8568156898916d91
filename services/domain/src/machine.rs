//! A machine: its offer, its availability, its presence, and its leases.
//!
//! The *availability* is what the owner decides, such as a pause. The *presence* is what the watchdog finds out: a
//! machine without heartbeats is suspect first, and lost later.

mod bounds;

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Event, JobId, Lease, MachineId, Seq, Timestamp,
    command::{MachineChange, RecordTest},
    event::{
        Check, MachineDelisted, MachineDrainStarted, MachineListed, MachineLost, MachinePaused, MachineRecovered,
        MachineRepriced, MachineResumed, MachineSettingsRequested, MachineSuspected, MachineTested, Speed, all_passed,
    },
    message::{EventId, Proposal},
    record::MachineRecord,
    spec::{MachineSettings, Offer, Setting},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::bounds::{COMPLETE_TEST, MAX_SLOTS};
use self::bounds::{check_offer, check_price, check_settings, check_test};
use super::{
    Decision, DomainError, Listing,
    daily_bytes::{self, DailyBytes},
};

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
    /// The settings that the owner asked for, while the machine has not taken them.
    pub requested: Option<MachineSettings>,
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
    /// True if every check of the last self-test passed but recommendations.
    pub verified: bool,
    /// The last self-test: its sequence and the hash of its checks. The same self-test again appends nothing.
    last_test: Option<(Seq, [u8; 16])>,
    /// The bytes of today's offers, self-tests and other changes, which nobody pays for (`daily_bytes.rs`).
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
            requested: None,
            availability: Availability::Ready,
            away: false,
            presence: Presence::Online,
            leases: BTreeMap::new(),
            record: MachineRecord::default(),
            speed: Speed::default(),
            verified: false,
            last_test: None,
            daily_bytes: DailyBytes::default(),
            listed: seq,
        }
    }

    /// True if the machine has a free slot.
    pub fn has_free_slot(&self) -> bool {
        self.leases.len() < self.offer.slots as usize
    }

    /// The settings that the owner wants the machine to have. A new price holds at once.
    pub fn desired_settings(&self) -> MachineSettings {
        let requested = self.requested.clone().unwrap_or_else(|| self.offer.settings());
        MachineSettings { price: self.offer.price, ..requested }
    }

    /// Fails if the owner pinned this setting on the machine itself.
    fn check_not_pinned(&self, setting: Setting) -> Result<(), DomainError> {
        if !self.offer.policy.pinned.contains(&setting) {
            return Ok(());
        }
        Err(DomainError::field(setting.name(), "This is pinned on the machine, and can be changed only there."))
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
                self.check_not_pinned(Setting::Price)?;
                Ok(self.propose(MachineRepriced { machine, price }))
            }
            (MachineChange::Configure(settings), _) => {
                check_settings(&settings)?;
                let differing = self.desired_settings().differing(&settings);
                if differing.is_empty() {
                    return already;
                }
                differing.into_iter().try_for_each(|setting| self.check_not_pinned(setting))?;
                Ok(self.propose(MachineSettingsRequested { machine, settings }))
            }
        }
    }

    /// Records the results of a self-test.
    pub(crate) fn record_test(&self, machine: MachineId, c: &RecordTest) -> Result<Decision, DomainError> {
        check_test(&c.checks)?;
        if let Some((seq, _)) = self.last_test.filter(|(_, hash)| *hash == hash_of(&c.checks)) {
            return Ok(Decision::AlreadyDone(seq));
        }
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
        // Events of the watchdog do not count: neither the machine nor its owner caused them.
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
                    let requested = m.requested.take().and_then(|r| r.after_listing(&m.offer, &e.offer));
                    *m = Self {
                        requested,
                        availability,
                        leases,
                        away: m.away,
                        record: m.record,
                        speed: m.speed,
                        verified: m.verified,
                        last_test: m.last_test,
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
            Event::MachineSettingsRequested(e) => machine.requested = machine.offer.apply_request(&e.settings),
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
                machine.last_test = Some((seq, hash_of(&e.checks)));
            }
            _ => {}
        }
    }
}

/// A hash of a self-test.
fn hash_of(checks: &[Check]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for check in checks {
        for text in check.texts() {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.update([u8::from(check.passed), u8::from(check.recommended)]);
    }
    let hash: [u8; 32] = hash.finalize().into();
    std::array::from_fn(|index| hash[index])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, testing::*};
    use gpubnb_events::{HourlyRate, command::ChangeMachine};

    #[test]
    fn listing_the_same_offer_twice_writes_one_event() {
        let mut market = given();
        let list = Command::ListMachine(market.machine, market.listing(market.provider, market.offer()));
        assert_eq!(market.when(market.as_machine(), list).expect_already_done(), market.machine_state().listed);
    }

    #[test]
    fn the_same_self_test_again_appends_nothing() {
        let mut market = given();
        let machine = market.machine;
        let check = |actual: &str| Check {
            actual: actual.to_owned(),
            id: "disk.write".to_owned(),
            required: "20".to_owned(),
            unit: String::new(),
            passed: false,
            remedy: String::new(),
            recommended: false,
        };
        let test = |actual: &str| Command::RecordTest(machine, RecordTest { checks: vec![check(actual)] });
        let first = market.when(market.as_machine(), test("7")).expect_appended();
        assert_eq!(market.when(market.as_machine(), test("7")).expect_already_done(), first);
        market.when(market.as_machine(), test("8")).expect_appended();
        market.when(market.as_machine(), test("7")).expect_appended();
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
    fn the_machine_takes_the_settings_that_its_owner_asks_for() {
        let mut market = given();
        let machine = market.machine;
        let configure = |settings: &MachineSettings| {
            let change = MachineChange::Configure(settings.clone());
            Command::ChangeMachine(ChangeMachine { machine, change })
        };
        let listed = market.machine_state().offer.settings();
        let price = HourlyRate(listed.price.0 + listed.price.0);
        let wanted = MachineSettings { price, slots: 3, hours: Some("22:00-08:00".to_owned()), ..listed.clone() };
        market.when(market.as_provider(), configure(&wanted)).expect_appended();
        market.when(market.as_provider(), configure(&wanted)).expect_already_done();
        assert_eq!(market.machine_state().desired_settings(), wanted);
        let offered = market.machine_state().offer.settings();
        assert_eq!(offered, MachineSettings { price, ..listed.clone() }, "the machine has not taken the rest yet");
        // A listing that was made before the machine knew of the request.
        let mut offer = market.offer();
        offer.region = "eu-north".to_owned();
        offer.price = listed.price;
        let list = Command::ListMachine(machine, market.listing(market.provider, offer.clone()));
        market.when(market.as_machine(), list).expect_appended();
        assert_eq!(
            market.machine_state().desired_settings(),
            MachineSettings { price: listed.price, ..wanted.clone() }
        );
        offer.set(wanted.clone());
        let list = Command::ListMachine(machine, market.listing(market.provider, offer.clone()));
        market.when(market.as_machine(), list).expect_appended();
        assert_eq!((market.machine_state().requested.clone(), market.machine_state().offer.slots), (None, 3));

        for bad in [
            MachineSettings { slots: 0, ..wanted.clone() },
            MachineSettings { hours: Some("25:00-26:00".to_owned()), ..wanted.clone() },
            MachineSettings { idle_minutes: Some(100_000), ..wanted.clone() },
        ] {
            market.when(market.as_provider(), configure(&bad)).expect_refused();
        }
        offer.policy.pinned = vec![Setting::Hours];
        let list = Command::ListMachine(machine, market.listing(market.provider, offer));
        market.when(market.as_machine(), list).expect_appended();
        market
            .when(market.as_provider(), configure(&MachineSettings { hours: None, ..wanted.clone() }))
            .expect_refused();
        market.when(market.as_provider(), configure(&MachineSettings { slots: 4, ..wanted.clone() })).expect_appended();
        // The owner pins on the machine what the page asked for meanwhile.
        let mut offer = market.machine_state().offer.clone();
        offer.policy.pinned = vec![Setting::Hours, Setting::Slots];
        let list = Command::ListMachine(machine, market.listing(market.provider, offer));
        market.when(market.as_machine(), list).expect_appended();
        assert_eq!(market.machine_state().requested, None);
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
