//! Every subject and every filter, built in this file and nowhere else: nothing in the broker notices
//! a typo in a filter.

use crate::{
    event::{Aggregate, Event},
    ids::{JobId, MachineId, ProjectorId},
};

/// Everything in MARKET.
pub const MARKET_ALL: &str = "market.>";
/// The assignments in MARKET, which the broker sources into DISPATCH.
pub const MARKET_ASSIGNED: &str = "market.job.*.assigned.*";
/// Where they land: `dispatch.<machine>.<job>`.
pub const DISPATCH_TRANSFORM: &str = "dispatch.{{wildcard(2)}}.{{wildcard(1)}}";
/// Every heartbeat.
pub const HEARTBEATS: &str = "telemetry.*.heartbeat";
/// Every tick of a watchdog replica.
pub const TICKS: &str = "telemetry.*.tick";
/// Everything jobs say while they run.
pub const OUTPUT_ALL: &str = "output.*.*.*";
/// Every change notice of the projectors.
pub const NOTICES: &str = "notice.>";

/// Every command.
pub const COMMANDS: &str = "cmd.>";
/// Every query.
pub const QUERIES: &str = "query.>";
/// What micro services are asked about themselves.
pub const DISCOVERY: &str = "$SRV.>";
/// Where the broker takes a new version of an account.
pub const UPDATE_ACCOUNT: &str = "$SYS.REQ.CLAIMS.UPDATE";

/// Where the broker tells an account as it knows it.
pub fn lookup_account(account: &str) -> String {
    format!("$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP")
}

/// Where an event goes and what its append is guarded by. One function makes both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Subject of the message.
    pub subject: String,
    /// Filter of the guard: the whole aggregate.
    pub guard: String,
}

/// The address of an event.
pub fn address(event: &Event) -> Address {
    let aggregate = event.aggregate();
    let root = root(aggregate);
    let subject = match event {
        Event::JobAssigned(e) => format!("{root}.assigned.{}", e.machine),
        _ => format!("{root}.event"),
    };
    Address { subject, guard: guard(aggregate) }
}

/// The filter over everything of an aggregate.
pub fn guard(aggregate: Aggregate) -> String {
    format!("{}.>", root(aggregate))
}

/// The aggregate that a subject of MARKET belongs to.
pub fn aggregate_of(subject: &str) -> Option<Aggregate> {
    let mut tokens = subject.strip_prefix("market.")?.splitn(3, '.');
    let (kind, id) = (tokens.next()?, tokens.next()?);
    match kind {
        "account" => id.parse().ok().map(Aggregate::Account),
        "machine" => id.parse().ok().map(Aggregate::Machine),
        "job" => id.parse().ok().map(Aggregate::Job),
        _ => None,
    }
}

fn root(aggregate: Aggregate) -> String {
    match aggregate {
        Aggregate::Account(id) => format!("market.account.{id}"),
        Aggregate::Machine(id) => format!("market.machine.{id}"),
        Aggregate::Job(id) => format!("market.job.{id}"),
    }
}

/// Job messages of one machine.
pub fn dispatch_of(machine: MachineId) -> String {
    format!("dispatch.{machine}.*")
}

/// Where a job's message for a machine lands.
pub fn dispatch(machine: MachineId, job: JobId) -> String {
    format!("dispatch.{machine}.{job}")
}

/// The job in a dispatch subject.
pub fn job_of_dispatch(subject: &str) -> Option<JobId> {
    subject.strip_prefix("dispatch.")?.split_once('.')?.1.parse().ok()
}

/// Heartbeats of one machine.
pub fn heartbeat(machine: MachineId) -> String {
    format!("telemetry.{machine}.heartbeat")
}

/// The machine in a heartbeat's subject.
pub fn machine_of_heartbeat(subject: &str) -> Option<MachineId> {
    subject.strip_prefix("telemetry.")?.strip_suffix(".heartbeat")?.parse().ok()
}

/// Ticks of one watchdog replica.
pub fn tick(replica: &str) -> String {
    format!("telemetry.{replica}.tick")
}

/// The kinds of output, the last token of an output subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// How far a job is.
    Progress,
    /// Its lines.
    Log,
    /// Its measurements.
    Metrics,
}

impl OutputKind {
    /// As in the subject.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Log => "log",
            Self::Metrics => "metrics",
        }
    }
}

/// What one job says on one machine.
pub fn output(machine: MachineId, job: JobId, kind: OutputKind) -> String {
    format!("output.{machine}.{job}.{}", kind.token())
}

/// Everything one job says on one machine.
pub fn output_of(machine: MachineId, job: JobId) -> String {
    format!("output.{machine}.{job}.*")
}

/// Everything one job says, on whichever machine. Readers check that the machine holds the lease.
pub fn output_of_job(job: JobId) -> String {
    format!("output.*.{job}.*")
}

/// The parts of an output subject.
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

/// A command endpoint: `cmd.<area>.<verb>`.
pub fn command(area: &str, verb: &str) -> String {
    format!("cmd.{area}.{verb}")
}

/// A machine's command endpoint: `cmd.machine.<id>.<verb>`.
pub fn machine_command(machine: MachineId, verb: &str) -> String {
    format!("cmd.machine.{machine}.{verb}")
}

/// The filter a command service listens on for a machine verb.
pub fn machine_command_filter(verb: &str) -> String {
    format!("cmd.machine.*.{verb}")
}

/// The machine in a machine command's subject.
pub fn machine_of_command(subject: &str) -> Option<MachineId> {
    subject.strip_prefix("cmd.machine.")?.split_once('.')?.0.parse().ok()
}

/// A query endpoint.
pub fn query(name: &str) -> String {
    format!("query.{name}")
}

/// The same of one projector: what it asks for, each has of its own.
pub fn query_of(name: &str, projector: ProjectorId) -> String {
    query(&format!("{name}-{projector}"))
}

/// The change notice of an aggregate.
pub fn notice(aggregate: Aggregate) -> String {
    match aggregate {
        Aggregate::Account(id) => format!("notice.account.{id}"),
        Aggregate::Machine(id) => format!("notice.machine.{id}"),
        Aggregate::Job(id) => format!("notice.job.{id}"),
    }
}

/// The aggregate of a change notice.
pub fn aggregate_of_notice(subject: &str) -> Option<Aggregate> {
    let (kind, id) = subject.strip_prefix("notice.")?.split_once('.')?;
    match kind {
        "account" => id.parse().ok().map(Aggregate::Account),
        "machine" => id.parse().ok().map(Aggregate::Machine),
        "job" => id.parse().ok().map(Aggregate::Job),
        _ => None,
    }
}

/// What every inbox begins with.
pub const ANY_INBOX: &str = "_INBOX";
/// What the broker's stream API is called in the account of machines.
pub const MACHINE_API: &str = "js.market";
/// Where the broker has answers go that cross from one account into another. Nobody can name such a place themselves.
pub const BROKERED: &str = "_R_";
/// The inbox of the web UI's connection.
pub const UI_INBOX: &str = "_INBOX.ui";
/// The inbox of an operator's tool.
pub const OPERATOR_INBOX: &str = "_INBOX.operator";
/// The inbox of the services' own connections.
pub const SERVICES_INBOX: &str = "_INBOX.services";
/// The inbox of a projector.
pub const PROJECTOR_INBOX: &str = "_INBOX.projector";

/// In the scope of the key that issues machines: the name of the user, which is the machine's id.
pub const NAME_OF_USER: &str = "{{name()}}";

/// What a machine publishes: its commands, heartbeats and output. `machine` is an id, or what stands for one.
pub fn of_machines(machine: &str) -> Vec<String> {
    let output = [OutputKind::Progress, OutputKind::Log, OutputKind::Metrics];
    let mut subjects = vec![format!("cmd.machine.{machine}.*"), format!("telemetry.{machine}.heartbeat")];
    subjects.extend(output.map(|kind| format!("output.{machine}.*.{}", kind.token())));
    subjects
}

/// The inbox of the machine that a credential names.
pub fn inbox_of_named_machine() -> String {
    format!("{ANY_INBOX}.{NAME_OF_USER}")
}

/// The inbox of a machine's connection.
pub fn machine_inbox(machine: MachineId) -> String {
    format!("_INBOX.{machine}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_subject_is_made_of_can_be_read_back() {
        let (machine, job) = (MachineId::generate(), JobId::generate());
        let subject = output(machine, job, OutputKind::Log);
        assert_eq!(parse_output(&subject), Some((machine, job, OutputKind::Log)));
        assert_eq!(machine_of_heartbeat(&heartbeat(machine)), Some(machine));
        assert_eq!(machine_of_command(&machine_command(machine, "accept")), Some(machine));
        assert_eq!(job_of_dispatch(&format!("dispatch.{machine}.{job}")), Some(job));
        for aggregate in [Aggregate::Job(job), Aggregate::Machine(machine)] {
            assert_eq!(aggregate_of(&format!("{}.event", root(aggregate))), Some(aggregate));
            assert_eq!(aggregate_of_notice(&notice(aggregate)), Some(aggregate));
        }
    }
}
