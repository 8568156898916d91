//! Submitting: the rules that a job must keep, and the money that is held for it.

use gpubnb_events::{
    AccountId, MicroUsd, Millis, Seconds, Timestamp,
    command::SubmitJob,
    event::JobSubmitted,
    spec::{JobSpec, Limits, Mebibytes},
    template,
};

use crate::{
    Decision, Refusal, Settings, World,
    account::Account,
    placement,
    rules::{check_text, in_range, plain_path, sha256_hex},
    submissions::{MEMORY, fingerprint},
};

/// How far a client's clock may run ahead.
const AHEAD: Millis = Millis(600_000);
const WEEK: Seconds = Seconds(7 * 24 * 3_600);
const DAY: Seconds = Seconds(24 * 3_600);

/// Decides a submission.
pub(crate) fn submit(
    world: &World,
    id: AccountId,
    c: &SubmitJob,
    now: Timestamp,
    settings: &Settings,
) -> Result<Decision, Refusal> {
    let account = world.account(id).ok_or(Refusal::UnknownAccount)?;
    if let Some(known) = world.submissions.get(c.job) {
        let fingerprint = fingerprint(&c.spec, &c.placement, &limits(c, known.budget));
        let budget = c.budget.is_none_or(|budget| budget == known.budget);
        let same = known.account == id && known.fingerprint == fingerprint && budget;
        return if same { Ok(Decision::Already(known.seq)) } else { Err(Refusal::IdReused("job")) };
    }
    let made = c.job.made_at();
    if now.since(made) > MEMORY || made.since(now) > AHEAD {
        return Err(Refusal::IdOutOfTime);
    }
    if let Some(why) = &account.suspended {
        return Err(Refusal::Suspended(why.clone()));
    }
    check(c, settings)?;
    let hold = hold(world, c, now, settings)?;
    afford(account, hold)?;
    let limits = limits(c, hold);
    // The event's id names the content, too: another job under the same job id, racing with this one, has another id.
    let fingerprint = fingerprint(&c.spec, &c.placement, &limits);
    let identity = format!("{}.submitted.{fingerprint:016x}.{}", c.job, hold.0);
    let (spec, placement) = (c.spec.clone(), c.placement.clone());
    Ok(account.propose(JobSubmitted { account: id, job: c.job, spec, placement, limits, hold }, identity, None))
}

fn limits(c: &SubmitJob, budget: MicroUsd) -> Limits {
    let (max_attempts, queue) = (c.max_attempts.unwrap_or(3), c.queue.unwrap_or(DAY));
    Limits { time: c.time, budget, max_attempts, queue }
}

fn afford(account: &Account, hold: MicroUsd) -> Result<(), Refusal> {
    if hold > account.available {
        return Err(Refusal::InsufficientFunds { needed: hold, available: account.available });
    }
    Ok(())
}

/// The money that is held: the budget, or the most that the job can cost on the machines that it can run on now.
pub(crate) fn hold(world: &World, c: &SubmitJob, now: Timestamp, settings: &Settings) -> Result<MicroUsd, Refusal> {
    let hold = match c.budget {
        Some(budget) => budget,
        None => placement::dearest(world, c, now)
            .ok_or_else(|| {
                Refusal::field(
                    "budget",
                    "No machine on the market fits this job now, so its cost is not known. Name a budget to wait for one.",
                )
            })?
            .cost_of(c.time.millis()),
    };
    if hold < MicroUsd::ZERO || hold > settings.max_budget || (c.budget == Some(MicroUsd::ZERO)) {
        let message = format!("The budget must be above $0 and at most {}.", settings.max_budget);
        return Err(Refusal::field("budget", message));
    }
    Ok(hold)
}

/// The rules of a submission that depend on nothing but itself.
pub(crate) fn check(c: &SubmitJob, settings: &Settings) -> Result<(), Refusal> {
    let spec = &c.spec;
    check_text("name", &spec.name, 80)?;
    check_image(spec, settings)?;
    if spec.command.len() > 64 || spec.command.iter().any(|a| a.len() > 4_096 || a.contains('\0')) {
        return Err(Refusal::field("command", "A command has at most 64 arguments of at most 4,096 bytes each."));
    }
    check_env(c)?;
    check_inputs(spec)?;
    let r = &spec.resources;
    in_range("cpu", u64::from(r.cpu_millis), 100, 256_000, "thousandths of a core")?;
    in_range("memory", r.memory.0, 16, 1 << 22, "MiB")?;
    if let Some(shm) = r.shm {
        in_range("shm", shm.0, 1, r.memory.0, "MiB, for it is part of the memory")?;
    }
    if let Some(workdir) = &spec.workdir {
        let below = workdir.strip_prefix('/');
        if !below.is_some_and(|path| path.is_empty() || plain_path(path)) {
            return Err(Refusal::field(
                "workdir",
                "This must be an absolute path, such as /app, with nothing like `..`.",
            ));
        }
    }
    in_range("output", r.output.0, 1, 102_400, "MiB")?;
    in_range("gpus", u64::from(r.gpus), 0, 16, "GPUs")?;
    in_range("time", c.time.0, 1, WEEK.0, "seconds")?;
    in_range("max_attempts", u64::from(c.max_attempts.unwrap_or(1)), 1, 10, "attempts")?;
    in_range("queue", c.queue.unwrap_or(DAY).0, 1, WEEK.0, "seconds")?;
    if r.vram > Mebibytes(0) && r.gpus == 0 {
        return Err(Refusal::field("vram", "GPU memory needs at least one GPU."));
    }
    let requirements = &c.placement.requirements;
    in_range("reliability", u64::from(requirements.reliability.unwrap_or(0)), 0, 100, "percent")?;
    for (field, text) in [("gpu_model", &requirements.gpu_model), ("region", &requirements.region)] {
        if let Some(text) = text {
            check_text(field, text, 80)?;
        }
    }
    Ok(())
}

fn check_image(spec: &JobSpec, settings: &Settings) -> Result<(), Refusal> {
    if let Some(id) = &spec.template {
        let known = template::find(id).ok_or_else(|| Refusal::field("template", "There is no such template."))?;
        if known.image != spec.image {
            return Err(Refusal::field("image", format!("Template `{id}` runs the image {}.", known.image)));
        }
        return Ok(());
    }
    if settings.approved_images.contains(&spec.image) {
        return Ok(());
    }
    let pinned = spec.image.split_once("@sha256:").is_some_and(|(name, digest)| {
        let name_ok = !name.is_empty()
            && name.len() <= 255
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:".contains(&b));
        name_ok && public_registry(name) && digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit())
    });
    if pinned {
        return Ok(());
    }
    Err(Refusal::field(
        "image",
        "A custom image is of a public registry, and pinned by its digest: name@sha256:… (64 hex digits).",
    ))
}

/// True if an image's name leads to a registry on the internet. The machine sends requests to whatever host the name holds,
/// so `nas.local/a`, which leads into the network of the machine's owner, is refused.
fn public_registry(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    if !name.contains('/') || !(first.contains(['.', ':']) || first == "localhost") {
        return true;
    }
    let host = first.split(':').next().unwrap_or_default();
    let last = host.rsplit('.').next().unwrap_or_default();
    let private = ["localhost", "local", "internal", "intranet", "lan", "home", "corp", "test", "invalid"];
    host.contains('.') && last.bytes().any(|b| b.is_ascii_alphabetic()) && !private.contains(&last)
}

/// `spec.env` (names only, public) must list exactly the keys of `env` (the secret values), and every name must be a valid
/// name of a variable.
fn check_env(c: &SubmitJob) -> Result<(), Refusal> {
    let named = |name: &String| {
        let mut bytes = name.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        first && name.len() <= 100 && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let same = c.spec.env.iter().eq(c.env.keys());
    let size: usize = c.env.iter().map(|(name, value)| name.len() + value.0.len()).sum();
    let plain = c.env.values().all(|value| !value.0.contains('\0'));
    if !same || c.env.len() > 64 || size > 32_768 || !plain || !c.env.keys().all(named) {
        let message = "An environment has at most 64 variables and 32 KiB, with names of letters, digits and _.";
        return Err(Refusal::field("env", message));
    }
    Ok(())
}

fn check_inputs(spec: &JobSpec) -> Result<(), Refusal> {
    let mut paths: Vec<_> = spec.inputs.iter().map(|i| i.path.as_str()).collect();
    paths.sort_unstable();
    paths.dedup();
    let all = paths.len() == spec.inputs.len() && paths.len() <= 100 && paths.iter().all(|p| plain_path(p));
    if !all || !spec.inputs.iter().all(|i| sha256_hex(&i.sha256)) {
        let message = "A job is given at most 100 files, each under a plain relative path of its own.";
        return Err(Refusal::field("inputs", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, testing::*};

    #[test]
    fn submitting_twice_is_one_job_and_another_job_under_its_id_is_refused() {
        let mut w = given();
        let submit = w.a_submission();
        let seq = w.when(w.as_consumer(), Command::Submit(w.consumer, submit.clone())).appended();
        assert_eq!(w.when(w.as_consumer(), Command::Submit(w.consumer, submit.clone())).already(), seq);
        let differences: [Break; 4] = [
            |s| s.max_attempts = Some(9),
            |s| s.queue = Some(Seconds(9)),
            |s| s.budget = Some(MicroUsd(9)),
            |s| s.time = Seconds(9),
        ];
        for differ in differences {
            let mut other = submit.clone();
            differ(&mut other);
            assert_eq!(w.when(w.as_consumer(), Command::Submit(w.consumer, other)).refused(), Refusal::IdReused("job"));
        }
        let mut other = submit.clone();
        other.spec.name = "other".to_owned();
        assert_eq!(w.when(w.as_consumer(), Command::Submit(w.consumer, other)).refused(), Refusal::IdReused("job"));
        assert_eq!(w.when(w.as_provider(), Command::Submit(w.provider, submit)).refused(), Refusal::IdReused("job"));
    }

    #[test]
    fn the_hold_is_the_most_it_can_cost_and_nobody_overdraws() {
        let mut w = given();
        let mut submit = w.a_submission();
        submit.time = Seconds(1_800);
        w.when(w.as_consumer(), Command::Submit(w.consumer, submit.clone())).appended();
        let held = w.job(submit.job).hold;
        assert_eq!(held, w.offer().price.cost_of(Millis(1_800_000)));
        let mut dear = w.a_submission();
        dear.budget = Some(w.account(w.consumer).available + MicroUsd(1));
        let refusal = w.when(w.as_consumer(), Command::Submit(w.consumer, dear)).refused();
        assert!(matches!(refusal, Refusal::InsufficientFunds { .. }));
    }

    type Break = fn(&mut SubmitJob);

    #[test]
    fn each_broken_rule_names_its_field() {
        let mut w = given();
        let cases: [(&str, Break); 13] = [
            ("name", |s| s.spec.name = "a\nb".to_owned()),
            ("image", |s| s.spec.image = "latest".to_owned()),
            ("template", |s| s.spec.template = Some("nope".to_owned())),
            ("command", |s| s.spec.command = vec![String::new(); 65]),
            ("memory", |s| s.spec.resources.memory = Mebibytes(1)),
            ("time", |s| s.time = Seconds(0)),
            ("budget", |s| s.budget = Some(MicroUsd(-1))),
            ("max_attempts", |s| s.max_attempts = Some(11)),
            ("shm", |s| s.spec.resources.shm = Some(Mebibytes(0))),
            ("shm", |s| s.spec.resources.shm = Some(Mebibytes(s.spec.resources.memory.0 + 1))),
            ("workdir", |s| s.spec.workdir = Some("app".to_owned())),
            ("workdir", |s| s.spec.workdir = Some("/app/../etc".to_owned())),
            ("vram", |s| s.spec.resources.vram = Mebibytes(8)),
        ];
        for (name, break_it) in cases {
            let mut submit = w.a_submission();
            break_it(&mut submit);
            let refusal = w.when(w.as_consumer(), Command::Submit(w.consumer, submit)).refused();
            assert!(matches!(refusal, Refusal::InvalidField { field, .. } if field == name), "{name}: {refusal}");
        }
    }

    #[test]
    fn an_old_id_is_refused_because_it_would_not_be_remembered() {
        let mut w = given();
        let submit = w.a_submission();
        w.time_passes(Millis(MEMORY.0 + 60_000));
        let refusal = w.when(w.as_consumer(), Command::Submit(w.consumer, submit)).refused();
        assert_eq!(refusal, Refusal::IdOutOfTime);
    }

    #[test]
    fn an_image_cannot_make_a_machine_ask_its_own_network() {
        for good in ["busybox", "library/busybox", "ghcr.io/a/b", "registry.example.com:5000/a"] {
            assert!(public_registry(good), "{good}");
        }
        let own =
            ["localhost/a", "localhost:5000/a", "127.0.0.1/a", "169.254.169.254/a", "10.0.0.1:80/a", "host:5000/a"];
        for bad in own.into_iter().chain(["nas.local/a"]) {
            assert!(!public_registry(bad), "{bad}");
        }
    }

    #[test]
    fn secrets_are_named_in_the_specification_and_nowhere_else() {
        let w = given();
        let with = |names: &[&str], values: &[&str]| {
            let mut submit = w.a_submission();
            submit.spec.env = names.iter().map(|n| (*n).to_owned()).collect();
            let secret = || gpubnb_events::command::Secret("swordfish".to_owned());
            submit.env = values.iter().map(|n| ((*n).to_owned(), secret())).collect();
            submit
        };
        assert!(check(&with(&["A", "B_2"], &["A", "B_2"]), &Settings::default()).is_ok());
        for (names, values) in [(&["A"][..], &[][..]), (&[], &["A"]), (&["2A"], &["2A"]), (&["A=B"], &["A=B"])] {
            let refusal = check(&with(names, values), &Settings::default()).unwrap_err();
            assert!(matches!(refusal, Refusal::InvalidField { field: "env", .. }));
        }
        assert!(!format!("{:?}", with(&["A"], &["A"])).contains("swordfish"));
    }
}
