//! The submission of a job or a batch: the rules for a job.

use std::collections::{BTreeMap, BTreeSet};

use gpubnb_events::{
    AccountId, JobId, MicroUsd, Millis, Seconds, Timestamp,
    command::{SubmitBatch, SubmitJob},
    dataset::is_dataset_name,
    event::{BatchSubmitted, JobSubmitted},
    spec::{DEFAULT_SCRATCH, DatasetMount, JobSpec, Limits, Mebibytes},
    text::{is_plain_path, is_sha256_hex},
};

use crate::{
    Decision, DomainError, Settings, World,
    account::Account,
    batch,
    hold::{Hold, hold},
    image_rule::check_image,
    placement,
    recent_submissions::{RETENTION, batch_fingerprint, fingerprint},
    rules::{MAX_ARGUMENT, check_egress, check_range, check_text},
};

/// The least room on a job's disk beside the output, MiB.
const MIN_SCRATCH: u64 = 1;
/// The largest disk of a job, MiB. Larger disks take a machine too long to make.
const MAX_DISK: u64 = 65_536;
/// The time in a job id may be this far in the future, because a client's clock may be fast. Milliseconds.
const MAX_CLOCK_LEAD: Millis = Millis(600_000);
const WEEK: Seconds = Seconds(7 * 24 * 3_600);
const DAY: Seconds = Seconds(24 * 3_600);

/// Decides a submission.
pub(crate) fn submit_job(
    world: &World,
    id: AccountId,
    c: &SubmitJob,
    now: Timestamp,
    settings: &Settings,
) -> Result<Decision, DomainError> {
    let account = world.account(id).ok_or(DomainError::UnknownAccount)?;
    if let Some(known) = world.submissions.get(c.job) {
        let fingerprint = fingerprint(&c.spec, &c.placement, &limits(c, known.budget));
        let same_budget = c.budget.is_none_or(|budget| budget == known.budget);
        let is_same = known.account == id && known.fingerprint == fingerprint && same_budget;
        return if is_same { Ok(Decision::AlreadyDone(known.seq)) } else { Err(DomainError::IdReused("job")) };
    }
    if world.submissions.is_taken(c.job) {
        return Err(DomainError::IdReused("job"));
    }
    check_may_submit(account, c.job, now, settings)?;
    check(c, settings)?;
    let choice = || placement::choose(world, &placement::Request::of_submission(c, &BTreeMap::new()), now);
    let Hold { amount: hold, max_price } = hold(world, c, choice, now, settings)?;
    check_funds(account, hold)?;
    let limits = Limits { max_price, ..limits(c, hold) };
    // The event's id includes the account and the content. If two different jobs with one job id arrive at the same
    // time, their events then have different ids, and neither is taken for a repetition of the other.
    let fingerprint = fingerprint(&c.spec, &c.placement, &limits);
    let event_id = format!("{id}.{}.submitted.{fingerprint:016x}.{}", c.job, hold.0);
    let (spec, placement) = (c.spec.clone(), c.placement.clone());
    Ok(account.propose(JobSubmitted { account: id, job: c.job, spec, placement, limits, hold }, event_id, None))
}

/// Decides the submission of a batch.
pub(crate) fn submit_batch(
    world: &World,
    id: AccountId,
    c: &SubmitBatch,
    now: Timestamp,
    settings: &Settings,
) -> Result<Decision, DomainError> {
    let account = world.account(id).ok_or(DomainError::UnknownAccount)?;
    let job = &c.job;
    let event = |limits: Limits, hold: MicroUsd| {
        let (max_running, max_failures) = batch::bounds(c);
        let (spec, placement, tasks) = (job.spec.clone(), job.placement.clone(), c.tasks.clone());
        BatchSubmitted { account: id, batch: c.batch, spec, placement, limits, hold, tasks, max_running, max_failures }
    };
    if let Some(known) = world.submissions.get(c.batch.as_job()) {
        let fingerprint = batch_fingerprint(&event(limits(job, known.budget), known.budget));
        let same_budget = job.budget.is_none_or(|budget| budget == known.budget);
        let is_same = known.account == id && known.fingerprint == fingerprint && same_budget;
        return if is_same { Ok(Decision::AlreadyDone(known.seq)) } else { Err(DomainError::IdReused("batch")) };
    }
    if world.submissions.is_any_taken(c.batch.range()) {
        return Err(DomainError::IdReused("batch"));
    }
    check_may_submit(account, c.batch.as_job(), now, settings)?;
    if account.open_batches >= batch::MAX_OPEN || account.open_batch_bytes >= batch::MAX_OPEN_BYTES {
        return Err(DomainError::TooManyBatches(account.open_batches));
    }
    check(job, settings)?;
    batch::check(c)?;
    let choice = || placement::choose(world, &placement::Request::of_submission(job, &BTreeMap::new()), now);
    let Hold { amount: hold, max_price } = hold(world, job, choice, now, settings)?;
    let event = event(Limits { max_price, ..limits(job, hold) }, hold);
    check_funds(account, event.hold_of(c.tasks.count))?;
    let event_id = format!("{id}.{}.submitted.{:016x}.{}", c.batch, batch_fingerprint(&event), hold.0);
    Ok(account.propose(event, event_id, None))
}

/// Checks the rules for the account and the id of a submission.
fn check_may_submit(account: &Account, job: JobId, now: Timestamp, settings: &Settings) -> Result<(), DomainError> {
    let made = job.made_at();
    if now.since(made) > RETENTION || made.since(now) > MAX_CLOCK_LEAD {
        return Err(DomainError::IdOutOfTime);
    }
    if let Some(why) = &account.suspended {
        return Err(DomainError::Suspended(why.clone()));
    }
    if account.open_jobs >= settings.max_open_jobs {
        return Err(DomainError::TooManyJobs(account.open_jobs));
    }
    Ok(())
}

/// The limits of the job, with the defaults for the missing fields.
fn limits(c: &SubmitJob, budget: MicroUsd) -> Limits {
    let (max_attempts, queue) = (c.max_attempts.unwrap_or(3), c.queue.unwrap_or(DAY));
    Limits { time: c.time, budget, max_attempts, queue, max_price: None }
}

fn check_funds(account: &Account, hold: MicroUsd) -> Result<(), DomainError> {
    if hold > account.available {
        return Err(DomainError::InsufficientFunds { needed: hold, available: account.available });
    }
    Ok(())
}

/// Checks the rules that depend only on the submission and the settings.
pub(crate) fn check(c: &SubmitJob, settings: &Settings) -> Result<(), DomainError> {
    let spec = &c.spec;
    check_text("name", &spec.name, 80)?;
    check_image(spec, settings)?;
    if spec.command.len() > 64 || spec.command.iter().any(|a| a.len() > MAX_ARGUMENT || a.contains('\0')) {
        return Err(DomainError::field("command", "A command has at most 64 arguments of at most 4,096 bytes each."));
    }
    if spec.task.is_some() {
        return Err(DomainError::field("task", "Only the market makes tasks, from a batch."));
    }
    check_env(c)?;
    check_egress(&spec.egress)?;
    check_inputs(spec)?;
    check_datasets(spec)?;
    let r = &spec.resources;
    check_range("cpu", u64::from(r.cpu_millis), 100, 256_000, "thousandths of a core")?;
    check_range("memory", r.memory.0, 16, 1 << 22, "MiB")?;
    if let Some(shm) = r.shm {
        check_range("shm", shm.0, 1, r.memory.0, "MiB, because it is part of the memory")?;
    }
    if let Some(workdir) = &spec.workdir {
        let relative = workdir.strip_prefix('/');
        if !relative.is_some_and(|path| path.is_empty() || is_plain_path(path)) {
            return Err(DomainError::field("workdir", "This must be an absolute path, such as /app, without `..`."));
        }
    }
    let most = settings.max_output.0.min(MAX_DISK - DEFAULT_SCRATCH.0);
    check_range("output", r.output.0, 1, most, "MiB")?;
    let disk = r.disk_size().0;
    check_range(
        "disk",
        disk,
        r.output.0.saturating_add(MIN_SCRATCH),
        MAX_DISK,
        "MiB, because the disk also holds /output",
    )?;
    check_range("pids", u64::from(r.max_pids()), 16, 32_768, "processes and threads")?;
    check_range("open_files", u64::from(r.max_open_files()), 64, 1 << 20, "open files")?;
    check_range("gpus", u64::from(r.gpus), 0, 16, "GPUs")?;
    check_range("time", c.time.0, 1, WEEK.0, "seconds")?;
    check_range("max_attempts", u64::from(c.max_attempts.unwrap_or(1)), 1, 10, "attempts")?;
    check_range("queue", c.queue.unwrap_or(DAY).0, 1, WEEK.0, "seconds")?;
    if r.vram > Mebibytes(0) && r.gpus == 0 {
        return Err(DomainError::field("vram", "GPU memory needs at least one GPU."));
    }
    let requirements = &c.placement.requirements;
    if requirements.price_cap.is_some_and(|cap| cap.0 <= MicroUsd::ZERO) {
        return Err(DomainError::field("price_cap", "The price cap must be above $0."));
    }
    check_range("reliability", u64::from(requirements.reliability.unwrap_or(0)), 0, 100, "percent")?;
    for (field, text) in [("gpu_model", &requirements.gpu_model), ("region", &requirements.region)] {
        if let Some(text) = text {
            check_text(field, text, 80)?;
        }
    }
    Ok(())
}

/// True for a name that an environment variable of a job may have, as far as its letters and its length go.
pub fn is_variable_name(name: &str) -> bool {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well && name.len() <= 100 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// True for the names that the worker itself sets: the job's id, and the GPUs that the job may see.
pub fn is_reserved_variable(name: &str) -> bool {
    name.starts_with("GPUBNB_") || name.starts_with("NVIDIA_")
}

/// Checks the environment variables. `spec.env` has the names, which are public, in alphabetical order. `env` has the
/// secret values that the person gave, by name; the values of `spec.secrets` are named secrets of the account. Together
/// both have the names of `spec.env`.
fn check_env(c: &SubmitJob) -> Result<(), DomainError> {
    if let Some(name) = c.spec.env.iter().find(|name| is_reserved_variable(name)) {
        let message = format!("The name {name} is reserved: names may not begin with GPUBNB_ or NVIDIA_.");
        return Err(DomainError::field("env", message));
    }
    let all: BTreeSet<&String> = c.env.keys().chain(&c.spec.secrets).collect();
    let same_names = c.spec.env.iter().eq(all) && c.spec.env.len() == c.env.len() + c.spec.secrets.len();
    let size: usize = c.env.iter().map(|(name, value)| name.len() + value.0.len()).sum();
    let no_nul = c.env.values().all(|value| !value.0.contains('\0'));
    if !same_names
        || c.spec.env.len() > 64
        || size > 32_768
        || !no_nul
        || !c.spec.env.iter().all(|name| is_variable_name(name))
    {
        let message = "An environment has at most 64 variables and 32 KiB, with names of letters, digits and _.";
        return Err(DomainError::field("env", message));
    }
    Ok(())
}

/// Checks the input files: at most 100, with different relative paths and SHA-256 hashes.
fn check_inputs(spec: &JobSpec) -> Result<(), DomainError> {
    let mut paths: Vec<_> = spec.inputs.iter().map(|i| i.path.as_str()).collect();
    paths.sort_unstable();
    paths.dedup();
    let are_valid_paths =
        paths.len() == spec.inputs.len() && paths.len() <= 100 && paths.iter().all(|p| is_plain_path(p));
    if !are_valid_paths || !spec.inputs.iter().all(|i| is_sha256_hex(&i.sha256)) {
        let message = "A job has at most 100 input files. Each needs another relative path, such as data/a.csv.";
        return Err(DomainError::field("inputs", message));
    }
    Ok(())
}

/// The most datasets of a job.
const MAX_DATASETS: usize = 16;

/// Checks the datasets: at most 16, each in a directory of its own. The copies that the job may change must have room
/// on the job's disk.
fn check_datasets(spec: &JobSpec) -> Result<(), DomainError> {
    let paths: BTreeSet<String> = spec.datasets.iter().map(DatasetMount::path).collect();
    let are_valid = spec.datasets.iter().all(|mount| is_dataset_name(&mount.directory));
    if !are_valid || paths.len() != spec.datasets.len() || paths.len() > MAX_DATASETS {
        let message = "A job has at most 16 datasets, each in another directory. The name of a directory has letters, \
            digits, `.`, `_` and `-`.";
        return Err(DomainError::field("datasets", message));
    }
    let writable = spec.datasets.iter().filter(|mount| mount.writable);
    let copied = writable.fold(0_u64, |sum, mount| sum.saturating_add(mount.bytes_on_disk()));
    let room = spec.resources.disk_size().bytes();
    if copied > room {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let message = format!(
            "The writable copies of the datasets need {} MiB, and the job's disk has {} MiB: ask for a larger disk.",
            mib(copied),
            mib(room)
        );
        return Err(DomainError::field("disk", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, due, testing::*};
    use gpubnb_events::{Actor, CommandId, HourlyRate, command::Deposit};

    #[test]
    fn the_open_jobs_of_an_account_are_limited_until_one_is_settled() {
        let mut market = given();
        market.settings.max_open_jobs = 2;
        let [first, _] = [(); 2].map(|()| market.submit_default());
        let submit = market.new_submission();
        let again = |market: &mut TestMarket| {
            market.when(market.as_consumer(), Command::Submit(market.consumer, submit.clone()))
        };
        assert_eq!(again(&mut market).expect_refused(), DomainError::TooManyJobs(2));
        market.when(market.as_consumer(), Command::Cancel(first)).expect_appended();
        market.when(Actor::Platform, Command::Settle(first)).expect_appended();
        again(&mut market).expect_appended();
    }

    #[test]
    fn a_repeated_submission_makes_one_job_and_a_different_job_with_its_id_is_refused() {
        let mut market = given();
        let submit = market.new_submission();
        let seq = market.when(market.as_consumer(), Command::Submit(market.consumer, submit.clone())).expect_appended();
        assert_eq!(
            market.when(market.as_consumer(), Command::Submit(market.consumer, submit.clone())).expect_already_done(),
            seq
        );
        let differences: [Change; 4] = [
            |s| s.max_attempts = Some(9),
            |s| s.queue = Some(Seconds(9)),
            |s| s.budget = Some(MicroUsd(9)),
            |s| s.time = Seconds(9),
        ];
        for change in differences {
            let mut other = submit.clone();
            change(&mut other);
            assert_eq!(
                market.when(market.as_consumer(), Command::Submit(market.consumer, other)).expect_refused(),
                DomainError::IdReused("job")
            );
        }
        let mut other = submit.clone();
        other.spec.name = "other".to_owned();
        assert_eq!(
            market.when(market.as_consumer(), Command::Submit(market.consumer, other)).expect_refused(),
            DomainError::IdReused("job")
        );
        assert_eq!(
            market.when(market.as_provider(), Command::Submit(market.provider, submit)).expect_refused(),
            DomainError::IdReused("job")
        );
    }

    #[test]
    fn the_hold_is_the_greatest_cost_and_must_be_available() {
        let mut market = given();
        let mut submit = market.new_submission();
        submit.time = Seconds(1_800);
        market.when(market.as_consumer(), Command::Submit(market.consumer, submit.clone())).expect_appended();
        let held = market.job(submit.job).hold;
        assert_eq!(held, market.offer().price.cost_of(Millis(1_800_000)));
        let mut expensive = market.new_submission();
        expensive.budget = Some(market.account(market.consumer).available + MicroUsd(1));
        let refusal = market.when(market.as_consumer(), Command::Submit(market.consumer, expensive)).expect_refused();
        assert!(matches!(refusal, DomainError::InsufficientFunds { .. }));
    }

    /// Changes a submission, so that it breaks a rule or differs.
    type Change = fn(&mut SubmitJob);

    #[test]
    fn each_broken_rule_names_its_field() {
        let mut market = given();
        let cases: [(&str, Change); 21] = [
            ("name", |s| s.spec.name = "a\nb".to_owned()),
            ("image", |s| s.spec.image = "latest".to_owned()),
            ("template", |s| s.spec.template = Some("nope".to_owned())),
            ("command", |s| s.spec.command = vec![String::new(); 65]),
            ("memory", |s| s.spec.resources.memory = Mebibytes(1)),
            ("time", |s| s.time = Seconds(0)),
            ("budget", |s| s.budget = Some(MicroUsd(-1))),
            ("price_cap", |s| s.placement.requirements.price_cap = Some(HourlyRate(MicroUsd(-1)))),
            ("price_cap", |s| s.placement.requirements.price_cap = Some(HourlyRate(MicroUsd::ZERO))),
            ("max_attempts", |s| s.max_attempts = Some(11)),
            ("disk", |s| s.spec.resources.disk = Some(s.spec.resources.output)),
            ("disk", |s| s.spec.resources.disk = Some(Mebibytes(MAX_DISK + 1))),
            ("pids", |s| s.spec.resources.pids = Some(15)),
            ("pids", |s| s.spec.resources.pids = Some(40_000)),
            ("open_files", |s| s.spec.resources.open_files = Some(63)),
            ("open_files", |s| s.spec.resources.open_files = Some(2_000_000)),
            ("shm", |s| s.spec.resources.shm = Some(Mebibytes(0))),
            ("shm", |s| s.spec.resources.shm = Some(Mebibytes(s.spec.resources.memory.0 + 1))),
            ("workdir", |s| s.spec.workdir = Some("app".to_owned())),
            ("workdir", |s| s.spec.workdir = Some("/app/../etc".to_owned())),
            ("vram", |s| s.spec.resources.vram = Mebibytes(8)),
        ];
        for (name, change) in cases {
            let mut submit = market.new_submission();
            change(&mut submit);
            let refusal = market.when(market.as_consumer(), Command::Submit(market.consumer, submit)).expect_refused();
            assert!(matches!(refusal, DomainError::InvalidField { field, .. } if field == name), "{name}: {refusal}");
        }
    }

    #[test]
    fn a_job_id_that_is_older_than_the_retention_is_refused() {
        let mut market = given();
        let submit = market.new_submission();
        market.advance_time(Millis(RETENTION.0 + 60_000));
        let refusal = market.when(market.as_consumer(), Command::Submit(market.consumer, submit)).expect_refused();
        assert_eq!(refusal, DomainError::IdOutOfTime);
    }

    #[test]
    fn env_names_and_values_must_match_and_values_are_not_printed() {
        let market = given();
        let with = |names: &[&str], values: &[&str]| {
            let mut submit = market.new_submission();
            submit.spec.env = names.iter().map(|n| (*n).to_owned()).collect();
            let secret = || gpubnb_events::command::Secret("swordfish".to_owned());
            submit.env = values.iter().map(|n| ((*n).to_owned(), secret())).collect();
            submit
        };
        assert!(check(&with(&["A", "B_2"], &["A", "B_2"]), &Settings::default()).is_ok());
        for (names, values) in [
            (&["A"][..], &[][..]),
            (&[], &["A"]),
            (&["2A"], &["2A"]),
            (&["A=B"], &["A=B"]),
            (&["NVIDIA_VISIBLE_DEVICES"], &["NVIDIA_VISIBLE_DEVICES"]),
            (&["GPUBNB_JOB"], &["GPUBNB_JOB"]),
        ] {
            let refusal = check(&with(names, values), &Settings::default()).unwrap_err();
            assert!(matches!(refusal, DomainError::InvalidField { field: "env", .. }));
        }
        assert!(!format!("{:?}", with(&["A"], &["A"])).contains("swordfish"));
        // A named secret of the account gives a value without one in the command.
        let with_secrets = |names: &[&str], values: &[&str], secrets: &[&str]| {
            let mut submit = with(names, values);
            submit.spec.secrets = secrets.iter().map(|n| (*n).to_owned()).collect();
            check(&submit, &Settings::default()).is_ok()
        };
        assert!(with_secrets(&["A", "B"], &["A"], &["B"]));
        assert!(!with_secrets(&["A"], &["A"], &["A"]));
        assert!(!with_secrets(&["A"], &["A"], &["B"]));
        assert!(!with_secrets(&["B"], &[], &["B", "B"]));
    }

    #[test]
    fn the_hold_of_a_submission_that_made_no_job_is_released_once_and_only_by_the_platform() {
        let mut market = given();
        let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(5) };
        market.when(market.as_operator(), Command::Deposit(market.provider, deposit)).expect_appended();
        let submit = SubmitJob { budget: Some(MicroUsd::dollars(2)), ..market.new_submission() };
        // Two replicas accept the same id for two accounts, each before it has seen the other's event.
        let mut unaware = market.world.clone();
        let first =
            market.when(market.as_consumer(), Command::Submit(market.consumer, submit.clone())).expect_appended();
        std::mem::swap(&mut unaware, &mut market.world);
        let second_command = Command::Submit(market.provider, submit.clone());
        let decision = market.world.decide(market.as_provider(), &second_command, None, market.now, &market.settings);
        std::mem::swap(&mut unaware, &mut market.world);
        let Ok(Decision::Append(proposal)) = decision else { panic!("{decision:?}") };
        let second = market.record(market.as_provider(), &proposal);

        assert!(!market.world.is_lost(submit.job, first) && market.world.is_lost(submit.job, second));
        assert_eq!(market.job(submit.job).account, market.consumer);
        assert_eq!(market.account(market.provider).held, MicroUsd::dollars(2));
        let release = Command::ReleaseHold(market.provider, second);
        assert_eq!(due::due_hold_releases(&market.world).collect::<Vec<_>>(), vec![release.clone()]);
        assert!(matches!(
            market.when(market.as_provider(), release.clone()).expect_refused(),
            DomainError::NotAllowed(_)
        ));
        market.when(Actor::Platform, release.clone()).expect_appended();
        assert_eq!(market.account(market.provider).available, MicroUsd::dollars(5));
        assert!(matches!(market.when(Actor::Platform, release).expect_refused(), DomainError::WrongState(_)));
        let of_first = Command::ReleaseHold(market.consumer, first);
        assert!(matches!(market.when(Actor::Platform, of_first).expect_refused(), DomainError::WrongState(_)));
    }
}
