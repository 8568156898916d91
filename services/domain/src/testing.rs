//! A small market for given/when/then tests: a log in memory, two accounts, one machine.

use gpubnb_events::template;
use gpubnb_events::{
    AccountId, Actor, CommandId, Event, HourlyRate, JobId, Lease, MachineId, MicroUsd, Millis, Recorded, Seconds, Seq,
    Timestamp,
    command::{Accept, Deposit, Exit, Outcome, RecordTest, Report, Start, SubmitJob},
    event::Check,
    message::Envelope,
    spec::{Gpu, Hardware, Mebibytes, Offer, OwnerPolicy, Placement, Usage},
};

use super::{Command, Decision, Listing, Refusal, Settings, World, account::Account, job::Job, machine::Machine};

pub(crate) struct Given {
    pub(crate) world: World,
    pub(crate) settings: Settings,
    pub(crate) now: Timestamp,
    pub(crate) consumer: AccountId,
    pub(crate) provider: AccountId,
    pub(crate) machine: MachineId,
    log: Vec<Event>,
}

#[derive(Debug)]
pub(crate) struct Then(Result<Decision, Refusal>, Seq);

impl Then {
    pub(crate) fn appended(self) -> Seq {
        assert!(matches!(self.0, Ok(Decision::Append(_))), "expected an event, got {:?}", self.0);
        self.1
    }

    pub(crate) fn already(self) -> Seq {
        match self.0 {
            Ok(Decision::Already(seq)) => seq,
            other => panic!("expected it to be done before, got {other:?}"),
        }
    }

    pub(crate) fn refused(self) -> Refusal {
        self.0.expect_err("expected a refusal")
    }
}

/// Two accounts, $100 of play money, and one machine with one slot.
pub(crate) fn given() -> Given {
    let mut given = Given {
        world: World::default(),
        settings: Settings { test_funds: true, ..Settings::default() },
        // Ids carry the time of the real clock, so the time of the market begins there.
        now: JobId::generate().made_at(),
        consumer: AccountId::generate(),
        provider: AccountId::generate(),
        machine: MachineId::generate(),
        log: Vec::new(),
    };
    let (consumer, provider) = (given.consumer, given.provider);
    given.when(Actor::Account(consumer), Command::OpenAccount(consumer)).appended();
    given.when(Actor::Account(provider), Command::OpenAccount(provider)).appended();
    let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(100) };
    given.when(Actor::Operator(None), Command::Deposit(consumer, deposit)).appended();
    let list = given.listing(provider, given.offer());
    given.when(given.as_machine(), Command::ListMachine(given.machine, list)).appended();
    given
}

impl Given {
    pub(crate) fn as_operator(&self) -> Actor {
        Actor::Operator(None)
    }

    pub(crate) fn as_consumer(&self) -> Actor {
        Actor::Account(self.consumer)
    }

    pub(crate) fn as_provider(&self) -> Actor {
        Actor::Account(self.provider)
    }

    pub(crate) fn as_machine(&self) -> Actor {
        Actor::Machine(self.machine)
    }

    pub(crate) fn when(&mut self, actor: Actor, command: Command) -> Then {
        let decision = self.world.decide(actor, &command, None, self.now, &self.settings);
        let mut seq = self.world.applied();
        if let Ok(Decision::Append(proposal)) = &decision {
            seq = seq.next();
            self.now = self.now.plus(Millis(1));
            let envelope = Envelope { id: proposal.id.clone(), actor, cause: proposal.cause, correlation: None };
            let aggregate = Some(proposal.event.aggregate());
            let recorded =
                Recorded { seq, at: self.now, aggregate, entry: Ok((envelope, proposal.event.clone())), leaf: [0; 32] };
            self.world.apply(&recorded, &self.settings);
            self.log.push(proposal.event.clone());
        }
        Then(decision, seq)
    }

    pub(crate) fn last_event(&self) -> &Event {
        self.log.last().expect("something happened")
    }

    pub(crate) fn time_passes(&mut self, time: Millis) {
        self.now = self.now.plus(time);
    }

    pub(crate) fn account(&self, id: AccountId) -> &Account {
        self.world.account(id).expect("opened")
    }

    pub(crate) fn machine_state(&self) -> &Machine {
        self.world.machine(self.machine).expect("listed")
    }

    pub(crate) fn job(&self, id: JobId) -> &Job {
        self.world.job(id).expect("not settled")
    }

    pub(crate) fn offer(&self) -> Offer {
        Offer {
            name: "attic".to_owned(),
            region: "eu-west".to_owned(),
            hardware: Hardware {
                cpu_model: "a CPU".to_owned(),
                cpu_cores: 8,
                memory: Mebibytes(32_768),
                disk: Mebibytes(100_000),
                gpus: vec![Gpu {
                    uuid: "GPU-1".to_owned(),
                    model: "RTX 4090".to_owned(),
                    memory: Mebibytes(24_564),
                    capability: None,
                    pci: None,
                }],
                driver: None,
                cuda: None,
                simulated: false,
            },
            price: HourlyRate(MicroUsd(360_000)),
            slots: 1,
            policy: OwnerPolicy::default(),
        }
    }

    #[allow(clippy::unused_self)] // reads well where it is used
    pub(crate) fn listing(&self, owner: AccountId, offer: Offer) -> Listing {
        Listing { owner, public_key: Some("UKEY".to_owned()), offer }
    }

    pub(crate) fn listed(&mut self, offer: Offer) -> MachineId {
        let machine = MachineId::generate();
        let list = self.listing(self.provider, offer);
        self.when(Actor::Machine(machine), Command::ListMachine(machine, list)).appended();
        machine
    }

    /// A self-test with these checks: id, what was measured, whether it passed.
    pub(crate) fn tested(&mut self, machine: MachineId, checks: &[(&str, &str, bool)]) {
        let check = |&(id, actual, passed): &(&str, &str, bool)| Check {
            id: id.to_owned(),
            actual: actual.to_owned(),
            required: String::new(),
            unit: String::new(),
            passed,
            remedy: String::new(),
        };
        let test = RecordTest { checks: checks.iter().map(check).collect() };
        self.when(Actor::Machine(machine), Command::RecordTest(machine, test)).appended();
    }

    pub(crate) fn a_submission(&self) -> SubmitJob {
        let template = template::find("noop").expect("a template");
        SubmitJob {
            job: JobId::generate(),
            spec: template.spec("a job"),
            placement: Placement::default(),
            time: Seconds(600),
            budget: None,
            max_attempts: Some(2),
            queue: None,
            env: std::collections::BTreeMap::new(),
        }
    }

    pub(crate) fn submit(&mut self, submit: SubmitJob) -> JobId {
        let job = submit.job;
        self.when(self.as_consumer(), Command::Submit(self.consumer, submit)).appended();
        job
    }

    pub(crate) fn submitted(&mut self) -> JobId {
        let mut submit = self.a_submission();
        submit.placement = Placement::default();
        submit.time = Seconds(3_600);
        self.submit(submit)
    }

    pub(crate) fn assigned(&mut self, job: JobId) -> Lease {
        Lease(self.when(Actor::Platform, Command::Assign(job)).appended())
    }

    pub(crate) fn accepted(&mut self, job: JobId, lease: Lease) {
        self.when(self.as_machine(), Command::Accept(self.machine, Accept { job, lease })).appended();
    }

    pub(crate) fn started(&mut self, job: JobId, lease: Lease) {
        let start = Start { job, lease, image_digest: "sha256:0".to_owned() };
        self.when(self.as_machine(), Command::Start(self.machine, start)).appended();
    }

    pub(crate) fn report(&self, job: JobId, lease: Lease, outcome: Outcome) -> Command {
        let report =
            Report { job, lease, outcome, outputs: Vec::new(), usage: None, occurred_at: self.now, signature: None };
        Command::Report(self.machine, report)
    }

    pub(crate) fn report_after(&self, job: JobId, lease: Lease, outcome: Outcome, run: Millis) -> Command {
        let Command::Report(machine, report) = self.report(job, lease, outcome) else { unreachable!() };
        Command::Report(machine, Report { usage: Some(Usage { run }), ..report })
    }

    pub(crate) fn exited(&mut self, job: JobId, lease: Lease, run: Millis) -> Seq {
        let exit = Exit { job, lease, usage: Usage { run } };
        self.when(self.as_machine(), Command::Exit(self.machine, exit)).appended()
    }

    pub(crate) fn completed(&mut self, job: JobId, lease: Lease, run: Millis) {
        let report = Report {
            job,
            lease,
            outcome: Outcome::Completed,
            outputs: Vec::new(),
            usage: Some(Usage { run }),
            occurred_at: self.now,
            signature: None,
        };
        self.when(self.as_machine(), Command::Report(self.machine, report)).appended();
    }
}
