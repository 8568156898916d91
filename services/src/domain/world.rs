//! The world: all that decisions need, folded from MARKET. Jobs leave it when they are settled.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gpubnb_events::{
    AccountId, Actor, Aggregate, Event, JobId, MachineId, Recorded, Seq, Timestamp,
    command::{Quote, SubmitJob},
    event::{AccountOpened, JobSubmitted},
    ledger,
    log::{EventId, Proposal},
    record,
    spec::Terms,
};
use serde::{Deserialize, Serialize};

use super::{
    Command, Decision, Refusal, Settings,
    account::Account,
    authorise::authorise,
    job::{Job, Phase},
    machine::{Machine, Presence},
    metering, placement,
    submission::{self, Submissions},
};

/// The version of the world's form and of the rules that fold it. Raise it with every change of either: a world that was
/// kept by another version is not taken up.
const VERSION: u32 = 2;

/// State of the whole market at one sequence.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct World {
    applied: Seq,
    accounts: HashMap<AccountId, Account>,
    machines: BTreeMap<MachineId, Machine>,
    jobs: BTreeMap<JobId, Job>,
    queued: BTreeSet<(Seq, JobId)>,
    ended: BTreeSet<JobId>,
    /// Where quarantined messages stand: no fold reads them, but the broker's guard counts them.
    #[serde(with = "pairs")]
    strays: HashMap<Aggregate, Seq>,
    pub(super) submissions: Submissions,
}

impl World {
    /// The version of what would be kept of it: of its form, its rules, and the one setting that they depend on.
    pub fn version(settings: &Settings) -> String {
        format!("{VERSION}-{}", settings.decline_pause.0)
    }

    /// The last sequence taken in.
    pub fn applied(&self) -> Seq {
        self.applied
    }

    /// An account that was opened.
    pub fn account(&self, id: AccountId) -> Option<&Account> {
        self.accounts.get(&id).filter(|a| a.last > Seq::ZERO)
    }

    /// A machine that was ever listed.
    pub fn machine(&self, id: MachineId) -> Option<&Machine> {
        self.machines.get(&id)
    }

    /// All machines.
    pub fn machines(&self) -> impl Iterator<Item = (&MachineId, &Machine)> {
        self.machines.iter()
    }

    /// A job that is not settled yet.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All jobs that are not settled yet.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Jobs that wait for a machine, oldest submission first.
    pub fn queued(&self) -> impl Iterator<Item = JobId> + '_ {
        self.queued_after(Seq::ZERO).map(|job| job.id)
    }

    /// Jobs that wait for a machine, submitted after `seq`, oldest first.
    pub fn queued_after(&self, seq: Seq) -> impl Iterator<Item = &Job> {
        self.queued.range((seq.next(), JobId::LEAST)..).filter_map(|(_, job)| self.jobs.get(job))
    }

    /// Jobs that ended and are not settled.
    pub fn ended(&self) -> impl Iterator<Item = JobId> + '_ {
        self.ended.iter().copied()
    }

    /// Decides a command. `absent` is the command's job where it has left memory and was loaded from the log.
    pub fn decide(
        &self,
        actor: Actor,
        command: &Command,
        absent: Option<&Job>,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Decision, Refusal> {
        let job = command.job().and_then(|id| self.job(id)).or(absent);
        authorise(self, job, actor, command, settings)?;
        let decision = self.decide_allowed(command, job, now, settings)?;
        Ok(self.past_strays(decision))
    }

    /// A guard that also covers messages which no fold reads: one of them must not lock an aggregate for ever.
    ///
    /// A job knows its own: one that was loaded may be older than this world, and a stray that only the world
    /// has seen would lift its guard over events that it has not.
    fn past_strays(&self, decision: Decision) -> Decision {
        match decision {
            Decision::Append(mut proposal) => {
                let aggregate = proposal.event.aggregate();
                if !matches!(aggregate, Aggregate::Job(_)) {
                    proposal.expected = proposal.expected.max(self.stray(aggregate));
                }
                Decision::Append(proposal)
            }
            already @ Decision::Already(_) => already,
        }
    }

    fn stray(&self, aggregate: Aggregate) -> Seq {
        self.strays.get(&aggregate).copied().unwrap_or_default()
    }

    fn decide_allowed(
        &self,
        command: &Command,
        job: Option<&Job>,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Decision, Refusal> {
        let job = || job.ok_or(Refusal::UnknownJob);
        let machine = |id: MachineId| self.machine(id).ok_or(Refusal::UnknownMachine);
        let account = |id: AccountId| self.account(id).ok_or(Refusal::UnknownAccount);
        match command {
            Command::OpenAccount(id) => Ok(self.open(*id)),
            Command::Deposit(id, c) => account(*id)?.deposit(*id, c),
            Command::RequestPayout(id, c) => account(*id)?.request_payout(*id, c),
            Command::ClosePayout(c) => account(c.account)?.close_payout(c),
            Command::SetSuspension(c) => Ok(account(c.account)?.set_suspension(c)),
            Command::Submit(id, c) => submission::submit(self, *id, c, now, settings),
            Command::Cancel(_) => job()?.cancel(),
            Command::ListMachine(id, c) => {
                account(c.owner)?;
                Machine::list(self.machine(*id), *id, c)
            }
            Command::ChangeMachine(c) => machine(c.machine)?.change(c.machine, c.wish),
            Command::RecordTest(id, c) => machine(*id)?.record_test(*id, c),
            Command::Accept(id, c) => job()?.accept(*id, *c),
            Command::Decline(id, c) => job()?.decline(*id, c),
            Command::Start(id, c) => job()?.start(*id, c),
            Command::Report(id, c) => job()?.report(*id, c),
            Command::Assign(_) => self.assign(job()?, now, settings),
            Command::Expire(_) => job()?.expire(now, settings).ok_or(Refusal::WrongState("Nothing took too long.")),
            Command::Abandon(_) => self.abandon(job()?),
            Command::Settle(_) => metering::settle(job()?),
            Command::Suspect(id) => Ok(machine(*id)?.suspect(*id)),
            Command::Lose(id) => machine(*id)?.lose(*id),
            Command::Recover(id) => Ok(machine(*id)?.recover(*id)),
        }
    }

    fn open(&self, id: AccountId) -> Decision {
        match self.account(id) {
            Some(account) => Decision::Already(account.opened),
            None => Decision::Append(Proposal {
                event: AccountOpened { account: id }.into(),
                id: EventId(format!("{id}.opened")),
                expected: Seq::ZERO,
                cause: None,
            }),
        }
    }

    /// Only a machine that is lost loses its jobs.
    fn abandon(&self, job: &Job) -> Result<Decision, Refusal> {
        let holder = job.attempt.as_ref().and_then(|attempt| self.machine(attempt.machine));
        if holder.is_none_or(|machine| machine.presence != Presence::Lost) {
            return Err(Refusal::WrongState("The job's machine is not lost."));
        }
        job.abandon()
    }

    fn assign(&self, job: &Job, now: Timestamp, settings: &Settings) -> Result<Decision, Refusal> {
        if job.phase != Phase::Queued {
            return Err(Refusal::WrongState("The job does not wait for a machine."));
        }
        let choice = placement::choose(self, &placement::Request::of(job), now);
        let id = choice.machine.ok_or(Refusal::NoMachineNow)?;
        let machine = self.machine(id).ok_or(Refusal::NoMachineNow)?;
        let terms =
            Terms { price: machine.offer.price, fee_basis_points: settings.fee_basis_points, provider: machine.owner };
        job.assign(id, terms, choice.explanation)
    }

    /// What a submission would mean now.
    pub fn quote(&self, id: AccountId, c: &SubmitJob, now: Timestamp, settings: &Settings) -> Result<Quote, Refusal> {
        let account = self.account(id).ok_or(Refusal::UnknownAccount)?;
        submission::check(c, settings)?;
        let avoid = BTreeMap::new();
        let request = placement::Request { spec: &c.spec, placement: &c.placement, avoid: &avoid };
        let choice = placement::choose(self, &request, now);
        let machine = choice.machine.and_then(|id| self.machine(id));
        Ok(Quote {
            machine: choice.machine,
            machine_name: machine.map(|m| m.offer.name.clone()),
            price: machine.map(|m| m.offer.price),
            hold: submission::hold(self, c, now, settings)?,
            available: account.available,
            start: placement::start(self, &request, &choice, now),
            waiting: u32::try_from(self.queued.len()).unwrap_or(u32::MAX),
            placement: choice.explanation,
        })
    }

    /// Takes in one message, in order. Quarantined messages change nothing.
    pub fn apply(&mut self, recorded: &Recorded, settings: &Settings) {
        debug_assert!(recorded.seq > self.applied);
        if let Some(event) = recorded.event() {
            self.apply_event(recorded.seq, recorded.at, event, settings);
        } else if let Some(aggregate) = recorded.aggregate {
            self.strays.insert(aggregate, recorded.seq);
            if let Aggregate::Job(id) = aggregate
                && let Some(job) = self.jobs.get_mut(&id)
            {
                job.guard = recorded.seq;
            }
        }
        self.applied = recorded.seq;
    }

    fn apply_event(&mut self, seq: Seq, at: Timestamp, event: &Event, settings: &Settings) {
        for posting in ledger::postings(event) {
            if let ledger::LedgerAccount::Available(id) | ledger::LedgerAccount::Held(id) = posting.account {
                self.accounts.entry(id).or_default().post(&posting);
            }
        }
        match event.aggregate() {
            Aggregate::Account(id) => {
                self.accounts.entry(id).or_default().apply(seq, event);
                if let Event::JobSubmitted(e) = event {
                    self.submitted(seq, at, e);
                }
            }
            Aggregate::Machine(_) => Machine::apply(&mut self.machines, seq, event),
            Aggregate::Job(id) => self.job_event(id, seq, at, event, settings),
        }
    }

    fn submitted(&mut self, seq: Seq, at: Timestamp, e: &JobSubmitted) {
        // The first submission of an id is the job; a second one (two accounts racing with one id) only
        // holds its own account's money. See docs/adr/0003.
        if self.submissions.get(e.job).is_none() {
            let mut job = Job::submitted(seq, at, e);
            job.guard = self.stray(Aggregate::Job(e.job));
            self.jobs.insert(e.job, job);
            self.queued.insert((seq, e.job));
        }
        self.submissions.apply(seq, at, e);
    }

    fn job_event(&mut self, id: JobId, seq: Seq, at: Timestamp, event: &Event, settings: &Settings) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let before = job.attempt.as_ref().map(|a| a.machine);
        job.apply(seq, at, event, settings);
        let live = matches!(job.phase, Phase::Assigned | Phase::Accepted | Phase::Running);
        let holder = job.attempt.as_ref().filter(|_| live).map(|a| (a.machine, a.lease));
        if let Some(machine) = before.and_then(|m| self.machines.get_mut(&m)) {
            machine.leases.remove(&id);
            if let Some(mark) = record::mark(event) {
                machine.record.count(mark);
            }
        }
        if let Some((machine, lease)) = holder
            && let Some(machine) = self.machines.get_mut(&machine)
        {
            machine.leases.insert(id, lease);
        }
        let place = (job.submission, id);
        if job.phase == Phase::Queued {
            self.queued.insert(place)
        } else {
            self.queued.remove(&place)
        };
        if job.phase == Phase::Ended {
            self.ended.insert(id)
        } else {
            self.ended.remove(&id)
        };
        if job.phase == Phase::Settled {
            self.jobs.remove(&id);
        }
    }
}

/// A map whose keys are no texts, as pairs.
mod pairs {
    use std::{collections::HashMap, hash::Hash};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S, K, V>(map: &HashMap<K, V>, to: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        K: Serialize,
        V: Serialize,
    {
        to.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D, K, V>(from: D) -> Result<HashMap<K, V>, D::Error>
    where
        D: Deserializer<'de>,
        K: Deserialize<'de> + Eq + Hash,
        V: Deserialize<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}

/// A job rebuilt from its own messages, for one that has left memory.
pub fn rebuild(submission: &Recorded, own: &[Recorded], settings: &Settings) -> Option<Job> {
    let Some(Event::JobSubmitted(e)) = submission.event() else { return None };
    let mut job = Job::submitted(submission.seq, submission.at, e);
    for recorded in own {
        if let Some(event) = recorded.event() {
            job.apply(recorded.seq, recorded.at, event, settings);
        }
        job.guard = recorded.seq;
    }
    Some(job)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gpubnb_events::{
        CommandId, MicroUsd, Millis,
        command::{Outcome, RequestPayout},
        event::Reason,
    };
    use serde_json::Value;

    use super::*;
    use crate::domain::given::given;

    /// Every place in a text, without ids and indices.
    fn places(value: &Value, at: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                let name = if key.starts_with(|c: char| c.is_ascii_digit()) { "*" } else { key };
                places(value, &format!("{at}.{name}"), found);
            }),
            Value::Array(all) => all.iter().for_each(|value| places(value, &format!("{at}[]"), found)),
            _ => drop(found.insert(at.to_owned())),
        }
    }

    #[test]
    fn a_world_that_is_kept_is_the_same_and_its_form_is_of_its_version() {
        let mut w = given();
        let first = w.machine;
        let payout = RequestPayout { payout: CommandId::generate(), amount: MicroUsd(1) };
        w.when(w.as_consumer(), Command::RequestPayout(w.consumer, payout)).appended();
        // One that failed on a machine and runs on another, being cancelled; one that ended; one that waits.
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        let failed = Outcome::Failed { reason: Reason::GpuLost, detail: String::new() };
        w.when(w.as_machine(), w.report(job, lease, failed)).appended();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        w.when(w.as_consumer(), Command::Cancel(job)).appended();
        let ended = w.submitted();
        w.machine = first;
        let lease = w.assigned(ended);
        w.accepted(ended, lease);
        w.started(ended, lease);
        w.completed(ended, lease, Millis(5));
        w.submitted();
        w.world.strays.insert(Aggregate::Account(w.consumer), Seq(1));

        let text = serde_json::to_value(&w.world).unwrap();
        let again: World = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), text);
        let mut found = BTreeSet::new();
        places(&text, "world", &mut found);
        let form: Vec<String> =
            std::iter::once(format!("version {VERSION}")).chain(found).map(|line| line + "\n").collect();
        assert_eq!(
            form.concat(),
            include_str!("world.form"),
            "what is kept of a world has another form: raise VERSION, and write the form anew"
        );
    }
}
