//! Advice to a consumer whose job failed: for each reason the likely fixes, most of them a link to the form of
//! a new job in which the fix is filled in.
//!
//! Belongs here: advice to the consumer. Must not come here: advice to the owner of a machine ([`Reason::remedy`]).

use gpubnb_events::{MicroUsd, Millis, event::Reason, spec::Mebibytes};
use gpubnb_query::view::{JobState, JobView};

use crate::{escape, format};

/// The longest time limit, and the longest wait for a machine: a week, in seconds.
const MAX_SECONDS: u64 = 604_800;
/// The largest disk of a job, MiB.
const MAX_DISK_MIB: u64 = 65_536;

/// One likely fix.
pub(super) struct Remedy {
    /// The advice, a sentence.
    pub(super) advice: String,
    /// The words of the link and its address; `None` if the form cannot help.
    pub(super) link: Option<(String, String)>,
}

impl Remedy {
    fn advice(advice: impl Into<String>) -> Self {
        Self { advice: advice.into(), link: None }
    }

    /// A fix that fills in fields of the form: `fields` are the names and values, and `label` the words of the link.
    fn form(job: &JobView, advice: impl Into<String>, label: impl Into<String>, fields: &[(&str, String)]) -> Self {
        let changes = fields.iter().map(|(name, value)| format!("&{name}={}", escape::url(value)));
        let address = format!("/jobs/new?again={}{}", job.job, changes.collect::<String>());
        Self { advice: advice.into(), link: Some((label.into(), address)) }
    }
}

/// The size in MiB that a fix proposes: twice as much, at least 64.
fn doubled(size: Mebibytes) -> u64 {
    size.0.saturating_mul(2).max(64)
}

/// An amount as the form takes it: dollars without the sign.
fn dollars(amount: MicroUsd) -> String {
    amount.to_string().replace('$', "")
}

/// The likely fixes of a failed job, the likeliest first; empty for any other job.
pub(super) fn remedies(job: &JobView) -> Vec<Remedy> {
    let (JobState::Failed, Some(reason)) = (job.state, job.reason) else { return Vec::new() };
    match reason {
        Reason::NonZeroExit { code } => after_exit(job, code),
        Reason::OutOfMemory => {
            vec![more_memory(job), Remedy::advice("Or let the program load less at once, for example smaller batches.")]
        }
        Reason::TimeLimit => more_time(job).into_iter().chain([faster_machine(job), partial_files()]).collect(),
        Reason::BudgetExhausted => vec![more_budget(job), cheapest_machine(job)],
        Reason::OutputTooLarge => vec![
            more_disk(job),
            Remedy::advice(
                "Or let the program delete temporary files while it runs: /output and /scratch share the disk.",
            ),
        ],
        Reason::LogFlood => vec![Remedy::advice(
            "Print less: a line per step rather than per item, and no progress bars. Write what is long to a file in \
             /output.",
        )],
        // The image and the command of a template are not the consumer's.
        Reason::BadImage | Reason::BadCommand if job.spec.template.is_some() => {
            vec![again(job, "The template does not work on this machine.")]
        }
        Reason::BadImage => bad_image(job),
        Reason::BadCommand => vec![
            Remedy::form(
                job,
                "The first word of the command must be a program of the image.",
                "Enter the command again",
                &[("command", String::new())],
            ),
            Remedy::advice("Without a command, the image runs its own entry point."),
        ],
        Reason::BadInput => vec![Remedy::form(
            job,
            "A file of the job is gone, or is not what was uploaded.",
            "Upload the files again",
            &[("input", String::new())],
        )],
        Reason::NoMachine => no_machine(job),
        Reason::Internal => vec![again(job, "This was a defect of the market, and cost you nothing.")],
        Reason::RegistryUnavailable => {
            vec![again(job, "The registry did not answer, or the image is too large or for another platform.")]
        }
        Reason::ProviderLost
        | Reason::Preempted
        | Reason::Interrupted
        | Reason::GpuLost
        | Reason::DiskFull
        | Reason::RuntimeMisconfigured
        | Reason::AssignTimeout
        | Reason::NotReported
        | Reason::InputUnavailable
        | Reason::PrepareTimeout
        | Reason::UploadTimeout => after_machine(job),
    }
}

fn bad_image(job: &JobView) -> Vec<Remedy> {
    vec![
        Remedy::advice(format!(
            "Check that the image exists, is public, and is built for Linux on x86-64: {}",
            job.spec.image
        )),
        Remedy::form(
            job,
            "A tag can point to another image by now.",
            "Enter the image again",
            &[("image", String::new())],
        ),
    ]
}

fn again(job: &JobView, advice: &str) -> Remedy {
    Remedy::form(job, advice, "Run it again", &[])
}

/// The worker's detail names the limit to raise, if it knows one. Otherwise a shell or the kernel gives some codes a
/// meaning.
fn after_exit(job: &JobView, code: i64) -> Vec<Remedy> {
    let resources = &job.spec.resources;
    let raise = |advice: &str, label: &str, field: &str, value: u64| {
        vec![Remedy::form(job, advice, format!("{label} {value}"), &[(field, value.to_string())]), edit(job)]
    };
    if job.detail.contains("(memory_mib)") {
        return vec![more_memory(job), edit(job)];
    }
    if job.detail.contains("(pids)") {
        let more = u64::from(resources.max_pids()).saturating_mul(2);
        return raise("The job needs more processes or threads.", "Allow", "pids", more);
    }
    if job.detail.contains("(shm_mib)") {
        let more = resources.shm.map_or(1_024, doubled).min(resources.memory.0);
        return raise("The job needs more shared memory.", "Run with, MiB:", "shm_mib", more);
    }
    if !job.detail.is_empty() {
        return vec![edit(job)];
    }
    let mut remedies = vec![Remedy::advice(match code {
        139 => "The program crashed (segmentation fault). Its libraries may need another processor or driver.",
        _ => "The last lines of the log, below, usually name the cause.",
    })];
    if job.spec.egress.is_none() {
        remedies.push(Remedy::form(
            job,
            "A program that downloads something fails without internet access.",
            "Allow PyPI and Hugging Face",
            &[("egress", "pypi.org files.pythonhosted.org *.huggingface.co huggingface.co *.hf.co".to_owned())],
        ));
    }
    remedies.push(edit(job));
    remedies
}

fn edit(job: &JobView) -> Remedy {
    Remedy::form(job, "Change the job, and run it again.", "Edit and run again", &[])
}

/// The machine was at fault each time.
fn after_machine(job: &JobView) -> Vec<Remedy> {
    let mut remedies = vec![Remedy::form(
        job,
        "Ask for a machine that has rarely failed and passed its self-test.",
        "Run it on a reliable machine",
        &[("machine", String::new()), ("strategy", "most_reliable".to_owned()), ("verified", "on".to_owned())],
    )];
    if job.limits.max_attempts < 3 {
        remedies.push(Remedy::form(
            job,
            "Let the market try more machines. An attempt that a machine fails is free.",
            "Allow 5 attempts",
            &[("max_attempts", "5".to_owned())],
        ));
    }
    remedies.push(again(job, "Nothing was billed for attempts that a machine failed."));
    remedies
}

fn no_machine(job: &JobView) -> Vec<Remedy> {
    let mut remedies = Vec::new();
    if job.placement.requirements.machine.is_some() {
        remedies.push(Remedy::form(
            job,
            "The machine that you named was busy or away.",
            "Let any machine take it",
            &[("machine", String::new())],
        ));
    }
    remedies.push(Remedy::form(
        job,
        "Wait longer for a machine.",
        "Wait up to a week",
        &[("queue_seconds", MAX_SECONDS.to_string())],
    ));
    remedies.push(Remedy::form(job, "Ask for less, or offer a higher price.", "Change the requirements", &[]));
    remedies
}

fn more_memory(job: &JobView) -> Remedy {
    let more = doubled(job.spec.resources.memory);
    Remedy::form(job, "The job needs more memory.", format!("Run with {more} MiB"), &[("memory_mib", more.to_string())])
}

/// `None` if the job already had the longest time. A budget that the consumer set must pay for the longer time, too.
fn more_time(job: &JobView) -> Option<Remedy> {
    let seconds = job.limits.time.0.saturating_mul(2).min(MAX_SECONDS);
    if seconds <= job.limits.time.0 {
        return None;
    }
    let label = format!("Allow {}", format::duration(Millis(seconds.saturating_mul(1_000))));
    let mut fields = vec![("time_seconds", seconds.to_string())];
    if job.limits.max_price.is_none() {
        fields.push(("budget_usd", dollars(MicroUsd(job.limits.budget.0.saturating_mul(2)))));
    }
    Some(Remedy::form(job, "The job needs more time.", label, &fields))
}

fn faster_machine(job: &JobView) -> Remedy {
    let fields = [("machine", String::new()), ("strategy", "fastest".to_owned())];
    Remedy::form(job, "A faster machine may need less of the time.", "Run on the fastest machine", &fields)
}

fn partial_files() -> Remedy {
    Remedy::advice("Or save what is done to /output in the middle: the files of a job that runs out of time are kept.")
}

fn more_budget(job: &JobView) -> Remedy {
    let more = MicroUsd(job.limits.budget.0.saturating_mul(2));
    Remedy::form(
        job,
        "The job needs more money.",
        format!("Set the budget to {more}"),
        &[("budget_usd", dollars(more))],
    )
}

fn cheapest_machine(job: &JobView) -> Remedy {
    let fields = [("machine", String::new()), ("strategy", "cheapest".to_owned())];
    Remedy::form(job, "A cheaper machine runs longer for the same money.", "Run on the cheapest machine", &fields)
}

fn more_disk(job: &JobView) -> Remedy {
    let more = job.spec.resources.disk_size().0.saturating_mul(2).min(MAX_DISK_MIB);
    let label = format!("Run with a disk of {more} MiB");
    Remedy::form(job, "The disk of the job was full.", label, &[("disk_mib", more.to_string())])
}
