//! The people: consumers, owners of machines and operators. Their commands may be valid or not.

use gpubnb_domain::{Command, Listing, machine::COMPLETE_TEST};
use gpubnb_events::{
    AccountId, Actor, BatchId, HourlyRate, JobId, MachineId, MicroUsd, Millis, Seconds, Timestamp,
    batch::TaskList,
    command::{
        ChangeMachine, CloseAccount, ClosePayout, Deposit, MachineChange, RecordTest, RequestPayout, SetSuspension,
        SubmitBatch, SubmitJob,
    },
    event::Check,
    ledger::LedgerAccount,
    spec::{
        Egress, Gpu, Hardware, JobSpec, Mebibytes, Offer, OwnerPolicy, Placement, Requirements, Resources, Strategy,
    },
    template,
};

use super::{
    market::{Market, random_amount},
    op::Caller,
    tape::Dice,
    worker::Worker,
};

const HOUR: u64 = 3_600;

/// The accounts of the people, and the commands that they have sent and may send again.
#[derive(Default)]
pub(crate) struct People {
    pub(crate) accounts: Vec<AccountId>,
    submissions: Vec<(AccountId, SubmitJob)>,
    batches: Vec<(AccountId, SubmitBatch)>,
    deposits: Vec<(AccountId, Deposit)>,
    payouts: Vec<(AccountId, RequestPayout)>,
}

impl Market {
    /// The commands at the beginning. They open two of three accounts, deposit money on both, and list three machines.
    /// Two machines have an honest worker. The third has the lying worker.
    pub(crate) fn initial_commands(&mut self, dice: &mut Dice) -> Vec<(Actor, Command)> {
        let mut commands = Vec::new();
        self.people.accounts = (0..3).map(|_| self.account_id()).collect();
        for index in 0..2 {
            let account = self.people.accounts[index];
            commands.push((Actor::Account(account), Command::OpenAccount(account)));
            let deposit = Deposit { deposit: self.command_id(), amount: MicroUsd(3_000_000) };
            commands.push((Actor::Operator(None), Command::Deposit(account, deposit)));
        }
        for (index, slots) in [1, 2, 2].into_iter().enumerate() {
            let (machine, owner) = (self.machine_id(), self.people.accounts[index % 2]);
            let offer = random_offer(slots, index != 1, dice);
            let honest = index < 2;
            if honest {
                self.checker.honest.insert(machine);
            }
            self.workers.push(Worker::new(machine, owner, offer.clone(), honest));
            commands.push((
                Actor::Machine(machine),
                Command::ListMachine(machine, Listing { owner, public_key: None, offer }),
            ));
        }
        commands
    }

    /// A consumer or an operator issues a random command.
    pub(crate) fn act_as_consumer(&mut self, dice: &mut Dice) {
        let account = dice.choose(&self.people.accounts);
        let (actor, command) = match dice.below(17) {
            0 => (Actor::Account(account), Command::OpenAccount(account)),
            1 => self.deposit(account, dice),
            2..=7 => self.submit(account, dice),
            8 => self.submit_or_cancel_batch(account, dice),
            9 => self.resubmit(account, dice),
            10..=12 => self.cancel(account, dice),
            13 => self.payout(account, dice),
            14 => self.close_payout(account, dice),
            15 => self.close_account(dice),
            _ => {
                let reason = dice.one_in(3).then(|| "owes an answer".to_owned());
                (Actor::Operator(None), Command::SetSuspension(SetSuspension { account, reason }))
            }
        };
        self.issue(Caller::Client, actor, command, dice);
    }

    /// The owner of the third account, which has no machine, closes the account.
    fn close_account(&mut self, dice: &mut Dice) -> (Actor, Command) {
        let account = self.people.accounts[2];
        let given_up = if dice.one_in(4) { random_amount(dice) } else { self.available(account) };
        (Actor::Account(account), Command::CloseAccount(account, CloseAccount { given_up }))
    }

    /// The money that an account can spend, as the log says.
    fn available(&self, account: AccountId) -> MicroUsd {
        let balance = self.checker.balance(LedgerAccount::Available(account));
        MicroUsd(i64::try_from(balance).unwrap_or(i64::MAX))
    }

    fn deposit(&mut self, account: AccountId, dice: &mut Dice) -> (Actor, Command) {
        let actor = if dice.one_in(3) { Actor::Account(account) } else { Actor::Operator(None) };
        let known = dice.pick(&self.people.deposits).filter(|_| dice.one_in(3));
        let (account, deposit) =
            known.unwrap_or_else(|| (account, Deposit { deposit: self.command_id(), amount: random_amount(dice) }));
        self.people.deposits.push((account, deposit));
        (actor, Command::Deposit(account, deposit))
    }

    fn submit(&mut self, account: AccountId, dice: &mut Dice) -> (Actor, Command) {
        let submit = self.random_job(dice);
        self.people.submissions.push((account, submit.clone()));
        (Actor::Account(account), Command::Submit(account, submit))
    }

    /// Submits a batch, submits a batch again, takes an id for a job that a task has, or cancels a batch.
    fn submit_or_cancel_batch(&mut self, account: AccountId, dice: &mut Dice) -> (Actor, Command) {
        let Some((of, mut submit)) = dice.pick(&self.people.batches).filter(|_| dice.one_in(3)) else {
            let mut job = self.random_job(dice);
            let batch = BatchId::beginning_like(job.job);
            job.job = batch.as_job();
            let count = 1 + u32::try_from(dice.below(24)).unwrap_or(0);
            let tasks = TaskList { count, indices: Vec::new(), names: Vec::new(), rows: Vec::new() };
            let max_running = dice.choose(&[None, Some(1), Some(2), Some(3)]);
            let max_failures = dice.choose(&[None, Some(0), Some(2)]);
            let submit = SubmitBatch { batch, job, tasks, max_running, max_failures };
            self.people.batches.push((account, submit.clone()));
            return (Actor::Account(account), Command::SubmitBatch(account, submit));
        };
        let by = if dice.one_in(2) { of } else { account };
        let command = match dice.below(5) {
            0 => Command::SubmitBatch(by, submit),
            1 => {
                submit.tasks.count += 1;
                Command::SubmitBatch(by, submit)
            }
            2 => {
                let task = submit.batch.task(u32::try_from(dice.below(30)).unwrap_or(0));
                Command::Submit(by, SubmitJob { job: task.unwrap_or(submit.job.job), ..submit.job })
            }
            _ => Command::CancelBatch(submit.batch),
        };
        (Actor::Account(by), command)
    }

    /// A submission that its account can pay for.
    pub(crate) fn affordable_submission(&mut self) -> (Actor, SubmitJob) {
        let job = self.random_job(&mut Dice::new(0));
        (Actor::Account(self.people.accounts[0]), SubmitJob { budget: Some(MicroUsd(1_000)), ..job })
    }

    /// Submits a job id a second time: with the same or another content, by the same or another account.
    fn resubmit(&mut self, account: AccountId, dice: &mut Dice) -> (Actor, Command) {
        let Some((of, mut submit)) = dice.pick(&self.people.submissions) else { return self.submit(account, dice) };
        match dice.below(3) {
            0 => submit.time = Seconds(submit.time.0 + 1),
            1 => "another".clone_into(&mut submit.spec.name),
            _ => {}
        }
        let by = if dice.one_in(2) { of } else { account };
        (Actor::Account(by), Command::Submit(by, submit))
    }

    fn cancel(&mut self, account: AccountId, dice: &mut Dice) -> (Actor, Command) {
        let Some((of, submit)) = dice.pick(&self.people.submissions) else { return self.submit(account, dice) };
        let actor =
            dice.choose(&[Actor::Account(of), Actor::Account(of), Actor::Account(account), Actor::Operator(None)]);
        (actor, Command::Cancel(submit.job))
    }

    fn payout(&mut self, account: AccountId, dice: &mut Dice) -> (Actor, Command) {
        let known = dice.pick(&self.people.payouts).filter(|_| dice.one_in(3));
        let (account, payout) = known
            .unwrap_or_else(|| (account, RequestPayout { payout: self.command_id(), amount: random_amount(dice) }));
        self.people.payouts.push((account, payout));
        (Actor::Account(account), Command::RequestPayout(account, payout))
    }

    fn close_payout(&mut self, account: AccountId, dice: &mut Dice) -> (Actor, Command) {
        let Some((account, asked)) = dice.pick(&self.people.payouts) else { return self.payout(account, dice) };
        let failed = dice.one_in(2).then(|| "the bank said no".to_owned());
        (Actor::Operator(None), Command::ClosePayout(ClosePayout { account, payout: asked.payout, failed }))
    }

    /// The owner changes a machine, or the machine lists or tests itself. Sometimes the actor has no right to do so.
    pub(crate) fn act_as_owner(&mut self, dice: &mut Dice) {
        let worker = dice.index(self.workers.len());
        let (machine, owner) = (self.workers[worker].machine, self.workers[worker].owner);
        let wish = match dice.below(13) {
            0 => MachineChange::Pause,
            1..=5 => MachineChange::Resume,
            6 => MachineChange::Drain,
            7 | 8 => MachineChange::Reprice(random_price(dice)),
            9 => MachineChange::Delist,
            10 => {
                let mut settings = self.workers[worker].offer.settings();
                settings.price = random_price(dice);
                settings.hours = dice.one_in(2).then(|| "22:00-08:00".to_owned());
                MachineChange::Configure(settings)
            }
            _ => {
                let mut offer = self.workers[worker].offer.clone();
                offer.price = random_price(dice);
                // Sometimes the machine is listed with another owner.
                let owner = if dice.one_in(4) { dice.choose(&self.people.accounts) } else { owner };
                let list = Command::ListMachine(machine, Listing { owner, public_key: None, offer });
                let test = Command::RecordTest(machine, RecordTest { checks: random_checks(dice) });
                let command = if dice.one_in(4) { test } else { list };
                self.issue(Caller::Client, Actor::Machine(machine), command, dice);
                return;
            }
        };
        let any_account = Actor::Account(dice.choose(&self.people.accounts));
        let own = Actor::Account(owner);
        let actor = dice.choose(&[own, own, own, Actor::Machine(machine), any_account]);
        self.issue(Caller::Client, actor, Command::ChangeMachine(ChangeMachine { machine, change: wish }), dice);
    }

    fn random_job(&mut self, dice: &mut Dice) -> SubmitJob {
        let machines: Vec<MachineId> = self.workers.iter().map(|w| w.machine).collect();
        let price_cap = dice.one_in(4).then(|| random_price(dice));
        let reliability = dice.one_in(8).then_some(50);
        let requirements = Requirements { price_cap, reliability, ..Requirements::default() };
        let strategy = match dice.below(4) {
            0 => Strategy::Fastest,
            1 => Strategy::MostReliable,
            _ => Strategy::Cheapest,
        };
        let market = Placement { strategy, requirements };
        let named = Placement::on_machine(dice.choose(&machines), None);
        SubmitJob {
            job: self.random_job_id(dice),
            spec: random_spec(dice),
            placement: if dice.one_in(3) { named } else { market },
            time: Seconds(dice.choose(&[1, 60, 600, HOUR])),
            budget: dice.one_in(2).then(|| MicroUsd(random_amount(dice).0 / 4)),
            max_attempts: dice.choose(&[None, Some(1), Some(2)]),
            queue: Some(Seconds(dice.choose(&[90, 600, HOUR, HOUR]))),
            env: std::collections::BTreeMap::new(),
        }
    }

    /// A new job id. Sometimes the time in it is about a day ago, or up to 15 minutes in the future.
    fn random_job_id(&mut self, dice: &mut Dice) -> JobId {
        let now = self.now;
        let at = match dice.below(16) {
            0 => Timestamp::from_millis(now.millis() - 86_000_000 - i64::try_from(dice.below(900_000)).unwrap_or(0)),
            1 => now.plus(Millis(dice.below(900_000))),
            _ => now,
        };
        self.job_id(at)
    }
}

fn random_checks(dice: &mut Dice) -> Vec<Check> {
    let speed = dice.choose(&["700", "900", "not measured"]);
    let check = |id: &&str| Check {
        id: (*id).to_owned(),
        actual: if *id == "cpu.matmul" { speed.to_owned() } else { String::new() },
        required: String::new(),
        unit: String::new(),
        passed: true,
        remedy: String::new(),
        recommended: false,
    };
    COMPLETE_TEST.iter().map(check).collect()
}

fn random_price(dice: &mut Dice) -> HourlyRate {
    HourlyRate(MicroUsd(dice.choose(&[0, 1, 999, 360_000, 360_000, 1_234_567, 7_777_777])))
}

fn random_spec(dice: &mut Dice) -> JobSpec {
    let whole = template::find("noop").map(|noop| noop.spec(dice.choose(&["a", "b"]))).expect("the template exists");
    let resources =
        Resources::new(1_000, Mebibytes(64), Mebibytes(16)).with_gpus(u32::from(dice.one_in(10)), Mebibytes(0));
    JobSpec {
        command: Vec::new(),
        resources,
        egress: if dice.one_in(60) { Egress::any() } else { Egress::default() },
        ..whole
    }
}

fn random_offer(slots: u32, gpu: bool, dice: &mut Dice) -> Offer {
    let gpus = gpu.then(|| Gpu {
        uuid: "GPU-1".to_owned(),
        model: "RTX".to_owned(),
        memory: Mebibytes(24_564),
        capability: None,
        pci: None,
    });
    Offer {
        name: "attic".to_owned(),
        region: "eu".to_owned(),
        hardware: Hardware {
            cpu_model: "a CPU".to_owned(),
            cpu_cores: 8,
            memory: Mebibytes(32_768),
            disk: Mebibytes(100_000),
            gpus: gpus.into_iter().collect(),
            driver: None,
            cuda: None,
            simulated: false,
        },
        price: random_price(dice),
        slots,
        policy: OwnerPolicy::default(),
    }
}
