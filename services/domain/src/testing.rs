//! A small market for given/when/then tests: a log in memory, two accounts and one machine.
//!
//! For example, [`given`] makes the market, [`TestMarket::when`] gives a command, and [`Then::expect_appended`] checks
//! that the command was granted and wrote an event.

use gpubnb_events::template;
use gpubnb_events::{
    AccountId, Actor, BatchId, CommandId, Event, HourlyRate, JobId, Lease, MachineId, MicroUsd, Millis, Recorded,
    Seconds, Seq, Timestamp,
    batch::TaskList,
    command::{Accept, Deposit, Exit, Outcome, RecordTest, Report, Start, SubmitBatch, SubmitJob},
    event::Check,
    message::{Envelope, Proposal},
    spec::{Egress, Gpu, Hardware, Mebibytes, Offer, OwnerPolicy, Placement, Usage},
};

use super::{
    Command, Decision, DomainError, Listing, Settings, World,
    account::Account,
    batch::Batch,
    job::Job,
    machine::{COMPLETE_TEST, Machine},
};

/// The market of a test.
pub(crate) struct TestMarket {
    pub(crate) world: World,
    pub(crate) settings: Settings,
    pub(crate) now: Timestamp,
    /// The account that submits jobs.
    pub(crate) consumer: AccountId,
    /// The account that owns the machines.
    pub(crate) provider: AccountId,
    /// The machine that the helpers below use.
    pub(crate) machine: MachineId,
    log: Vec<Event>,
}

/// The decision on a command, and the last sequence of the log after it.
#[derive(Debug)]
pub(crate) struct Then(Result<Decision, DomainError>, Seq);

impl Then {
    /// Checks that an event was appended. Returns its sequence.
    pub(crate) fn expect_appended(self) -> Seq {
        assert!(matches!(self.0, Ok(Decision::Append(_))), "expected an event, got {:?}", self.0);
        self.1
    }

    /// Checks that the command was granted before. Returns the sequence of its event.
    pub(crate) fn expect_already_done(self) -> Seq {
        match self.0 {
            Ok(Decision::AlreadyDone(seq)) => seq,
            other => panic!("expected AlreadyDone, got {other:?}"),
        }
    }

    /// The reason of the refusal; `None` if the command was not refused.
    pub(crate) fn refused(self) -> Option<DomainError> {
        self.0.err()
    }

    /// Checks that the command was refused.
    pub(crate) fn expect_refused(self) -> DomainError {
        self.0.expect_err("expected a refusal")
    }
}

/// Two accounts, $100 of play money, and one machine with one slot.
pub(crate) fn given() -> TestMarket {
    let mut market = TestMarket {
        world: World::default(),
        settings: Settings { test_funds: true, ..Settings::default() },
        // An id contains the time of the system clock, so the market begins at that time.
        now: JobId::generate().made_at(),
        consumer: AccountId::generate(),
        provider: AccountId::generate(),
        machine: MachineId::generate(),
        log: Vec::new(),
    };
    let (consumer, provider) = (market.consumer, market.provider);
    market.when(Actor::Account(consumer), Command::OpenAccount(consumer)).expect_appended();
    market.when(Actor::Account(provider), Command::OpenAccount(provider)).expect_appended();
    let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(100) };
    market.when(Actor::Operator(None), Command::Deposit(consumer, deposit)).expect_appended();
    let list = market.listing(provider, market.offer());
    market.when(market.as_machine(), Command::ListMachine(market.machine, list)).expect_appended();
    market
}

impl TestMarket {
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

    /// Gives a command, and appends the event of the decision.
    pub(crate) fn when(&mut self, actor: Actor, command: Command) -> Then {
        let decision = self.world.decide(actor, &command, None, self.now, &self.settings);
        let seq = match &decision {
            Ok(Decision::Append(proposal)) => self.record(actor, proposal),
            _ => self.world.applied(),
        };
        Then(decision, seq)
    }

    /// Appends the event of a proposal, without a check of the guard.
    pub(crate) fn record(&mut self, actor: Actor, proposal: &Proposal) -> Seq {
        let seq = self.world.applied().next();
        self.now = self.now.plus(Millis(1));
        let envelope = Envelope { id: proposal.id.clone(), actor, cause: proposal.cause, correlation: None };
        let aggregate = Some(proposal.event.aggregate());
        let recorded =
            Recorded { seq, at: self.now, aggregate, entry: Ok((envelope, proposal.event.clone())), leaf: [0; 32] };
        self.world.apply(&recorded, &self.settings);
        self.log.push(proposal.event.clone());
        seq
    }

    pub(crate) fn last_event(&self) -> &Event {
        self.log.last().expect("an event was appended")
    }

    pub(crate) fn advance_time(&mut self, time: Millis) {
        self.now = self.now.plus(time);
    }

    pub(crate) fn account(&self, id: AccountId) -> &Account {
        self.world.account(id).expect("opened")
    }

    /// The state of the test's machine.
    pub(crate) fn machine_state(&self) -> &Machine {
        self.world.machine(self.machine).expect("listed")
    }

    pub(crate) fn job(&self, id: JobId) -> &Job {
        self.world.job(id).expect("not settled")
    }

    /// An offer with one slot, one GPU and a price of $0.36 an hour.
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
            policy: OwnerPolicy { egress: Egress::any(), ..OwnerPolicy::default() },
        }
    }

    #[allow(clippy::unused_self)] // a method, as the other helpers are
    pub(crate) fn listing(&self, owner: AccountId, offer: Offer) -> Listing {
        Listing { owner, public_key: Some("UKEY".to_owned()), offer }
    }

    /// Lists another machine of the provider.
    pub(crate) fn list_machine(&mut self, offer: Offer) -> MachineId {
        let machine = MachineId::generate();
        let list = self.listing(self.provider, offer);
        self.when(Actor::Machine(machine), Command::ListMachine(machine, list)).expect_appended();
        machine
    }

    /// Records a self-test of a machine. Each check is its id, the measured value, and whether it passed.
    pub(crate) fn record_test(&mut self, machine: MachineId, checks: &[(&str, &str, bool)]) {
        let check = |&(id, actual, passed): &(&str, &str, bool)| Check {
            id: id.to_owned(),
            actual: actual.to_owned(),
            required: String::new(),
            unit: String::new(),
            passed,
            remedy: String::new(),
            recommended: false,
        };
        // A test that passed has all of these checks.
        let others = COMPLETE_TEST.iter().filter(|id| !checks.iter().any(|(named, ..)| named == *id));
        let others = others.map(|id| (*id, "", true));
        let test = RecordTest { checks: checks.iter().copied().chain(others).map(|c| check(&c)).collect() };
        self.when(Actor::Machine(machine), Command::RecordTest(machine, test)).expect_appended();
    }

    /// A submission that can be granted: ten minutes on any machine, at most two attempts.
    pub(crate) fn new_submission(&self) -> SubmitJob {
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

    /// A submission of a batch of ten minutes for each task.
    pub(crate) fn new_batch(&self, count: u32) -> SubmitBatch {
        let batch = BatchId::generate();
        let job = SubmitJob { job: batch.as_job(), ..self.new_submission() };
        let tasks = TaskList { count, indices: Vec::new(), names: Vec::new(), rows: Vec::new() };
        SubmitBatch { batch, job, tasks, max_running: None, max_failures: None }
    }

    /// Submits a batch for the consumer.
    pub(crate) fn submit_batch(&mut self, submit: SubmitBatch) -> BatchId {
        let batch = submit.batch;
        self.when(self.as_consumer(), Command::SubmitBatch(self.consumer, submit)).expect_appended();
        batch
    }

    pub(crate) fn batch(&self, id: BatchId) -> &Batch {
        self.world.batch(id).expect("not over")
    }

    /// Submits a job for the consumer.
    pub(crate) fn submit(&mut self, submit: SubmitJob) -> JobId {
        let job = submit.job;
        self.when(self.as_consumer(), Command::Submit(self.consumer, submit)).expect_appended();
        job
    }

    /// Submits a job of one hour.
    pub(crate) fn submit_default(&mut self) -> JobId {
        let mut submit = self.new_submission();
        submit.time = Seconds(3_600);
        self.submit(submit)
    }

    /// Assigns a waiting job.
    pub(crate) fn assign(&mut self, job: JobId) -> Lease {
        Lease(self.when(Actor::Platform, Command::Assign(job)).expect_appended())
    }

    pub(crate) fn accept(&mut self, job: JobId, lease: Lease) {
        self.when(self.as_machine(), Command::Accept(self.machine, Accept { job, lease })).expect_appended();
    }

    pub(crate) fn start(&mut self, job: JobId, lease: Lease) {
        let start = Start { job, lease, image_digest: "sha256:0".to_owned() };
        self.when(self.as_machine(), Command::Start(self.machine, start)).expect_appended();
    }

    /// Submits a job, and lets the machine start it. The job's time limit is an hour.
    pub(crate) fn start_default(&mut self) -> (JobId, Lease) {
        let job = self.submit_default();
        let lease = self.assign(job);
        self.accept(job, lease);
        self.start(job, lease);
        (job, lease)
    }

    /// The command by which the machine reports the end of its attempt.
    pub(crate) fn report(&self, job: JobId, lease: Lease, outcome: Outcome) -> Command {
        let report = Report {
            job,
            lease,
            outcome,
            outputs: Vec::new(),
            left_out: Vec::new(),
            traffic: None,
            usage: None,
            occurred_at: self.now,
            signature: None,
            log: None,
        };
        Command::Report(self.machine, report)
    }

    /// The command by which the machine reports the end of its attempt after this run time.
    pub(crate) fn report_after(&self, job: JobId, lease: Lease, outcome: Outcome, run: Millis) -> Command {
        let Command::Report(machine, report) = self.report(job, lease, outcome) else { unreachable!() };
        Command::Report(machine, Report { usage: Some(Usage { run }), ..report })
    }

    /// Says that the program exited after this run time, before its files are uploaded.
    pub(crate) fn exit(&mut self, job: JobId, lease: Lease, run: Millis) -> Seq {
        let exit = Exit { job, lease, usage: Usage { run } };
        self.when(self.as_machine(), Command::Exit(self.machine, exit)).expect_appended()
    }

    /// Reports that the job completed after this run time.
    pub(crate) fn complete(&mut self, job: JobId, lease: Lease, run: Millis) {
        let report = Report {
            job,
            lease,
            outcome: Outcome::Completed,
            outputs: Vec::new(),
            left_out: Vec::new(),
            traffic: None,
            usage: Some(Usage { run }),
            occurred_at: self.now,
            signature: None,
            log: None,
        };
        self.when(self.as_machine(), Command::Report(self.machine, report)).expect_appended();
    }
}
