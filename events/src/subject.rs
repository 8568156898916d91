//! Every subject of the broker, and every filter of subjects. Other files build none, because the broker does not
//! report a typo in a filter: the filter just matches nothing. A subject consists of tokens with dots between them. In
//! a filter, `*` stands for one token and `>` for all that follow.
//!
//! MARKET (the log of events), DISPATCH (job messages for machines) and the others are streams of the broker;
//! `gpubnb-log` defines them.

use sha2::{Digest as _, Sha256};

use crate::{
    event::{Aggregate, Event},
    ids::{AccountId, JobId, MachineId, ProjectorId},
    notification::Delivery,
};

/// All subjects of MARKET.
pub const MARKET_ALL: &str = "market.>";
/// The assignments in MARKET, which the broker copies into DISPATCH.
pub const MARKET_ASSIGNED: &str = "market.job.*.assigned.*";
/// The subject of an assignment in DISPATCH: `dispatch.<machine>.<job>`. The broker inserts the tokens for the second
/// and the first `*` of [`MARKET_ASSIGNED`].
pub const DISPATCH_TRANSFORM: &str = "dispatch.{{wildcard(2)}}.{{wildcard(1)}}";
/// Every heartbeat.
pub const HEARTBEATS: &str = "telemetry.*.heartbeat";
/// Every tick ([`crate::telemetry::Tick`]) of the watchdog.
pub const TICKS: &str = "telemetry.*.tick";
/// All output of all jobs.
pub const OUTPUT_ALL: &str = "output.*.*.*";
/// The unfinished lines of all jobs.
pub const UNFINISHED_ALL: &str = "unfinished.*.*";
/// Every change notice of the projectors.
pub const NOTICES: &str = "notice.>";

/// Every delivery: a notification or an e-mail that is to be sent.
pub const DELIVERIES: &str = "delivery.>";
/// Notifications that are to be sent to webhooks.
pub const WEBHOOK_DELIVERIES: &str = "delivery.webhook.*.*";
/// Notifications that are to be sent by e-mail.
pub const MAIL_DELIVERIES: &str = "delivery.mail.*";
/// E-mails that people asked for.
pub const LETTERS: &str = "delivery.letter.*";
/// Every try of a delivery.
pub const DELIVERY_TRIES: &str = "delivered.*";

/// Every command.
pub const COMMANDS: &str = "cmd.>";
/// Every query.
pub const QUERIES: &str = "query.>";
/// Requests by which NATS micro services are discovered.
pub const DISCOVERY: &str = "$SRV.>";
/// Requests that give the broker a new version of an account (an account of NATS, which separates users).
pub const UPDATE_ACCOUNT: &str = "$SYS.REQ.CLAIMS.UPDATE";

/// The subject of requests that ask the broker for its version of a NATS account.
pub fn lookup_account(account: &str) -> String {
    format!("$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP")
}

/// The subject of the broker's notices that a connection of a NATS account has begun.
pub fn connection_began(account: &str) -> String {
    format!("$SYS.ACCOUNT.{account}.CONNECT")
}

/// The subject of the broker's notices that a connection of a NATS account has ended.
pub fn connection_ended(account: &str) -> String {
    format!("$SYS.ACCOUNT.{account}.DISCONNECT")
}

/// The subject of requests that end a connection of a broker. `broker` is the broker's id, or `*` for the right to do
/// that at every broker.
pub fn end_connection(broker: &str) -> String {
    format!("$SYS.REQ.SERVER.{broker}.KICK")
}

/// The subject of an event, and the filter for the guard of its append: the broker refuses the event unless the last
/// sequence under this filter is the expected one. One function makes both, so that they always fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Subject of the message.
    pub subject: String,
    /// The guard's filter, which covers the whole aggregate.
    pub guard: String,
}

/// The address of an event.
pub fn address(event: &Event) -> Address {
    let aggregate = event.aggregate();
    let root = aggregate_root(aggregate);
    let subject = match event {
        Event::JobAssigned(e) => format!("{root}.assigned.{}", e.machine),
        _ => format!("{root}.event"),
    };
    Address { subject, guard: all_of(aggregate) }
}

/// The filter that matches all messages of an aggregate.
pub fn all_of(aggregate: Aggregate) -> String {
    format!("{}.>", aggregate_root(aggregate))
}

/// The aggregate in a subject of MARKET.
pub fn aggregate_of(subject: &str) -> Option<Aggregate> {
    let mut tokens = subject.strip_prefix("market.")?.splitn(3, '.');
    let (kind, id) = (tokens.next()?, tokens.next()?);
    match kind {
        "account" => id.parse().ok().map(Aggregate::Account),
        "machine" => id.parse().ok().map(Aggregate::Machine),
        "job" => id.parse().ok().map(Aggregate::Job),
        "batch" => id.parse().ok().map(Aggregate::Batch),
        _ => None,
    }
}

fn aggregate_root(aggregate: Aggregate) -> String {
    match aggregate {
        Aggregate::Account(id) => format!("market.account.{id}"),
        Aggregate::Machine(id) => format!("market.machine.{id}"),
        Aggregate::Job(id) => format!("market.job.{id}"),
        Aggregate::Batch(id) => format!("market.batch.{id}"),
    }
}

/// The filter of all job messages for a machine.
pub fn dispatch_of(machine: MachineId) -> String {
    format!("dispatch.{machine}.*")
}

/// The subject of a job's message for a machine.
pub fn dispatch(machine: MachineId, job: JobId) -> String {
    format!("dispatch.{machine}.{job}")
}

/// The job in a subject of DISPATCH.
pub fn job_of_dispatch(subject: &str) -> Option<JobId> {
    subject.strip_prefix("dispatch.")?.split_once('.')?.1.parse().ok()
}

/// The subject of a delivery. The broker keeps a bounded number of messages of each subject, so each webhook and each
/// e-mail address has its own.
pub fn delivery(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Webhook { account, webhook, .. } => format!("delivery.webhook.{account}.{webhook}"),
        Delivery::Mail { account, .. } => format!("delivery.mail.{account}"),
        Delivery::Letter(letter) => {
            let address = Sha256::digest(letter.to.trim().to_lowercase());
            format!("delivery.letter.{}", crate::hex(address))
        }
    }
}

/// The subject of the tries of an account's deliveries.
pub fn delivery_tries(account: AccountId) -> String {
    format!("delivered.{account}")
}

/// The subject of a machine's heartbeats.
pub fn heartbeat(machine: MachineId) -> String {
    format!("telemetry.{machine}.heartbeat")
}

/// The machine in a heartbeat's subject.
pub fn machine_of_heartbeat(subject: &str) -> Option<MachineId> {
    subject.strip_prefix("telemetry.")?.strip_suffix(".heartbeat")?.parse().ok()
}

/// The subject of a watchdog's ticks.
pub fn tick(replica: &str) -> String {
    format!("telemetry.{replica}.tick")
}

/// The kind of an output message: the last token of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// The progress of a job.
    Progress,
    /// Lines of the job's log.
    Log,
    /// Measurements of the job.
    Metrics,
}

impl OutputKind {
    /// The token in the subject.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Log => "log",
            Self::Metrics => "metrics",
        }
    }
}

/// The subject of one kind of output of a job on a machine.
pub fn output(machine: MachineId, job: JobId, kind: OutputKind) -> String {
    format!("output.{machine}.{job}.{}", kind.token())
}

/// The filter of all output of a job on a machine.
pub fn output_of(machine: MachineId, job: JobId) -> String {
    format!("output.{machine}.{job}.*")
}

/// The filter of all output of a job on any machine.
pub fn output_of_job(job: JobId) -> String {
    format!("output.*.{job}.*")
}

/// The machine, the job and the kind in the subject of an output message.
pub fn parse_output(subject: &str) -> Option<(MachineId, JobId, OutputKind)> {
    let mut tokens = subject.strip_prefix("output.")?.splitn(3, '.');
    let machine = tokens.next()?.parse().ok()?;
    let job = tokens.next()?.parse().ok()?;
    let kind = match tokens.next()? {
        "progress" => OutputKind::Progress,
        "log" => OutputKind::Log,
        "metrics" => OutputKind::Metrics,
        _ => return None,
    };
    Some((machine, job, kind))
}

/// The subject of the lines that a job on a machine has not finished yet. No stream stores these messages.
pub fn unfinished(machine: MachineId, job: JobId) -> String {
    format!("unfinished.{machine}.{job}")
}

/// The filter of the unfinished lines of a job on any machine. Readers check that the machine has the lease.
pub fn unfinished_of_job(job: JobId) -> String {
    format!("unfinished.*.{job}")
}

/// The machine in a subject of unfinished lines.
pub fn machine_of_unfinished(subject: &str) -> Option<MachineId> {
    subject.strip_prefix("unfinished.")?.split_once('.')?.0.parse().ok()
}

/// A command endpoint: `cmd.<area>.<verb>`.
pub fn command(area: &str, verb: &str) -> String {
    format!("cmd.{area}.{verb}")
}

/// A machine's command endpoint: `cmd.machine.<id>.<verb>`.
pub fn machine_command(machine: MachineId, verb: &str) -> String {
    format!("cmd.machine.{machine}.{verb}")
}

/// The filter of one command (`verb`) of all machines: `cmd.machine.*.<verb>`.
pub fn machine_command_filter(verb: &str) -> String {
    format!("cmd.machine.*.{verb}")
}

/// A machine's query endpoint: `query.machine.<id>.<name>`.
pub fn machine_query(machine: MachineId, name: &str) -> String {
    format!("query.machine.{machine}.{name}")
}

/// The filter of one query of all machines: `query.machine.*.<name>`.
pub fn machine_query_filter(name: &str) -> String {
    format!("query.machine.*.{name}")
}

/// The machine in the subject of a machine's command or query.
pub fn requesting_machine(subject: &str) -> Option<MachineId> {
    let rest = subject.strip_prefix("cmd.machine.").or_else(|| subject.strip_prefix("query.machine."))?;
    rest.split_once('.')?.0.parse().ok()
}

/// A query endpoint: `query.<name>`.
pub fn query(name: &str) -> String {
    format!("query.{name}")
}

/// A query endpoint of one projector, for questions about the projector itself: `query.<name>-<projector>`.
pub fn query_of(name: &str, projector: ProjectorId) -> String {
    query(&format!("{name}-{projector}"))
}

/// The subject of an aggregate's change notices. A projector publishes a notice when its read models have the change.
pub fn notice(aggregate: Aggregate) -> String {
    match aggregate {
        Aggregate::Account(id) => format!("notice.account.{id}"),
        Aggregate::Machine(id) => format!("notice.machine.{id}"),
        Aggregate::Job(id) => format!("notice.job.{id}"),
        Aggregate::Batch(id) => format!("notice.batch.{id}"),
    }
}

/// The aggregate in the subject of a change notice.
pub fn aggregate_of_notice(subject: &str) -> Option<Aggregate> {
    let (kind, id) = subject.strip_prefix("notice.")?.split_once('.')?;
    match kind {
        "account" => id.parse().ok().map(Aggregate::Account),
        "machine" => id.parse().ok().map(Aggregate::Machine),
        "job" => id.parse().ok().map(Aggregate::Job),
        "batch" => id.parse().ok().map(Aggregate::Batch),
        _ => None,
    }
}

/// The beginning of every inbox. An inbox is the subject under which a connection receives the answers to its requests.
pub const ANY_INBOX: &str = "_INBOX";
/// The prefix of the `JetStream` API for machines, which are in a NATS account of their own.
pub const MACHINE_API: &str = "js.market";
/// The beginning of the reply subjects that the broker creates for requests from another NATS account. No client may
/// choose such a subject itself.
pub const BROKER_REPLIES: &str = "_R_";
/// The inbox of the web UI's connection.
pub const UI_INBOX: &str = "_INBOX.ui";
/// The inbox of the operator's commands.
pub const OPERATOR_INBOX: &str = "_INBOX.operator";
/// The inbox of the services.
pub const SERVICES_INBOX: &str = "_INBOX.services";
/// The inbox of the notifier.
pub const NOTIFIER_INBOX: &str = "_INBOX.notifier";
/// The inbox of a projector.
pub const PROJECTOR_INBOX: &str = "_INBOX.projector";

/// Placeholder in the permissions of machines. The broker replaces it by the name of the connected user, which is the
/// machine's id.
pub const USER_NAME_PLACEHOLDER: &str = "{{name()}}";

/// The subjects that a machine publishes to: commands, queries, heartbeats and unfinished lines. `machine` is an id or
/// a placeholder.
pub fn published_by_machine(machine: &str) -> Vec<String> {
    vec![
        format!("cmd.machine.{machine}.*"),
        format!("query.machine.{machine}.*"),
        format!("telemetry.{machine}.heartbeat"),
        format!("unfinished.{machine}.*"),
    ]
}

/// The inbox of a machine, with [`USER_NAME_PLACEHOLDER`] in place of the id.
pub fn machine_inbox_template() -> String {
    format!("{ANY_INBOX}.{USER_NAME_PLACEHOLDER}")
}

/// The inbox of a machine's connection.
pub fn machine_inbox(machine: MachineId) -> String {
    format!("_INBOX.{machine}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchId;

    #[test]
    fn the_ids_in_a_subject_parse_back() {
        let (machine, job) = (MachineId::generate(), JobId::generate());
        let subject = output(machine, job, OutputKind::Log);
        assert_eq!(parse_output(&subject), Some((machine, job, OutputKind::Log)));
        assert_eq!(machine_of_unfinished(&unfinished(machine, job)), Some(machine));
        assert_eq!(machine_of_heartbeat(&heartbeat(machine)), Some(machine));
        assert_eq!(requesting_machine(&machine_command(machine, "accept")), Some(machine));
        assert_eq!(requesting_machine(&machine_query(machine, "days")), Some(machine));
        assert_eq!(job_of_dispatch(&format!("dispatch.{machine}.{job}")), Some(job));
        for aggregate in [Aggregate::Job(job), Aggregate::Machine(machine), Aggregate::Batch(BatchId::generate())] {
            assert_eq!(aggregate_of(&format!("{}.event", aggregate_root(aggregate))), Some(aggregate));
            assert_eq!(aggregate_of_notice(&notice(aggregate)), Some(aggregate));
        }
    }
}
