//! What each user of the broker may do: the least that its process needs. Nothing else is allowed.

use gpubnb_events::subject;
use gpubnb_log::stream::{
    ARTIFACTS, CHECKPOINTS, CREDENTIALS, DISPATCH, ENROLLMENTS, INPUTS, JOBENV, LEADERS, MARKET, OUTPUT, SESSIONS,
    SNAPSHOTS, TELEMETRY, bucket_stream, store_stream,
};

use super::jwt::{Permissions, SharedSubject};

/// A user of the broker and the process that holds its credential.
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) process: &'static str,
    pub(crate) permissions: Permissions,
}

/// Every user of the market's account.
pub(crate) fn users() -> [User; 6] {
    let user = |name, process, publish: Vec<String>, subscribe: &[&str]| {
        let subscribe = subscribe.iter().map(|s| (*s).to_owned()).collect();
        User { name, process, permissions: Permissions { publish, subscribe } }
    };
    let inboxes = |names: &[&str]| names.iter().map(|inbox| format!("{inbox}.>")).collect::<Vec<_>>();
    let services = format!("{}.>", subject::SERVICES_INBOX);
    let projector = format!("{}.>", subject::PROJECTOR_INBOX);
    let operator = format!("{}.>", subject::OPERATOR_INBOX);
    let ui = format!("{}.>", subject::UI_INBOX);
    [
        // May change streams. Used once, at the start of a market.
        user(
            "bootstrap",
            "services",
            [
                api(&["INFO", "STREAM.CREATE.*", "STREAM.UPDATE.*", "STREAM.INFO.*"]),
                // Backup and restore.
                api(&["STREAM.SNAPSHOT.*", "STREAM.RESTORE.*"]),
                vec!["$JS.SNAPSHOT.>".to_owned()],
            ]
            .concat(),
            &[&services],
        ),
        // Answers commands: may publish to inboxes only, and to where the broker itself has answers to machines go.
        user(
            "serve",
            "services",
            inboxes(&[subject::ANY_INBOX, subject::BROKERED]),
            &[subject::COMMANDS, subject::DISCOVERY, &services],
        ),
        // Appends events and reads the log. May not change a stream; TELEMETRY, which lies in memory, it may make anew.
        user("append", "services", append(), &[&services]),
        // Reads everything, answers queries, tells live pages. May not write to the log.
        user(
            "projector",
            "projector",
            [
                inboxes(&[subject::ANY_INBOX]),
                vec![subject::NOTICES.to_owned()],
                [MARKET, TELEMETRY].into_iter().flat_map(reads).collect(),
                // What the log was, under its own signature.
                bucket(CHECKPOINTS),
                store(SNAPSHOTS),
                // How large they are, for the console; not what is in them.
                api(&[&format!("STREAM.INFO.{DISPATCH}"), &format!("STREAM.INFO.{OUTPUT}")]),
            ]
            .concat(),
            &[subject::QUERIES, subject::DISCOVERY, &projector],
        ),
        // The operator's tool: reads the streams, asks queries.
        user(
            "operator",
            "projector",
            [
                vec![subject::query("*")],
                [MARKET, TELEMETRY, OUTPUT, DISPATCH].into_iter().flat_map(reads).collect(),
                reads(&bucket_stream(CHECKPOINTS)),
            ]
            .concat(),
            &[&operator],
        ),
        // Asks in the name of people; knows their sessions; reads output; keeps files.
        user("ui", "ui", edge(), &[subject::NOTICES, &ui]),
    ]
}

/// What the market's account offers to that of machines. Whatever a machine says there, the broker makes up a place for
/// the answer: no answer of a stream, a consumer or a service goes where a machine would like it to.
pub(crate) fn shared_with_machines() -> Vec<SharedSubject> {
    let share = |subject: String, local: Option<String>, many: bool| SharedSubject { subject, local, many };
    let mut shared: Vec<_> = subject::of_machines("*").into_iter().map(|subject| share(subject, None, false)).collect();
    // Which consumer is a machine's own stands in its token. Their account has no streams, and the broker says so to
    // whoever asks there by the usual name.
    for (call, many) in [("CONSUMER.INFO", false), ("CONSUMER.MSG.NEXT", true)] {
        let local = format!("{}.{call}.{DISPATCH}.$1", subject::MACHINE_API);
        shared.push(share(format!("$JS.API.{call}.{DISPATCH}.*"), Some(local), many));
    }
    shared.push(share(format!("$JS.ACK.{DISPATCH}.>"), None, false));
    shared
}

/// What whoever holds the scoped key can issue, and nothing else: one machine, on its own subjects.
pub(crate) fn machine() -> Permissions {
    let consumer = gpubnb_log::stream::machine_consumer_name(subject::NAME_OF_USER);
    let mut publish = subject::of_machines(subject::NAME_OF_USER);
    for call in ["CONSUMER.INFO", "CONSUMER.MSG.NEXT"] {
        publish.push(format!("{}.{call}.{DISPATCH}.{consumer}", subject::MACHINE_API));
    }
    publish.push(format!("$JS.ACK.{DISPATCH}.{consumer}.>"));
    Permissions { publish, subscribe: vec![format!("{}.>", subject::inbox_of_named_machine())] }
}

/// The system's user that hands in the machines' account with its list of revoked machines.
pub(crate) fn revoker(account: &str) -> Permissions {
    Permissions {
        publish: vec![subject::UPDATE_ACCOUNT.to_owned(), subject::lookup_account(account)],
        subscribe: vec![format!("{}.>", subject::SERVICES_INBOX)],
    }
}

fn api(calls: &[&str]) -> Vec<String> {
    calls.iter().map(|call| format!("$JS.API.{call}")).collect()
}

/// Reading a stream: its state, single messages, and consumers of one's own.
fn reads(stream: &str) -> Vec<String> {
    let mut subjects = api(&[
        &format!("STREAM.INFO.{stream}"),
        &format!("STREAM.MSG.GET.{stream}"),
        &format!("DIRECT.GET.{stream}"),
        &format!("DIRECT.GET.{stream}.>"),
        &format!("CONSUMER.CREATE.{stream}"),
        &format!("CONSUMER.CREATE.{stream}.>"),
        &format!("CONSUMER.INFO.{stream}.*"),
        &format!("CONSUMER.DELETE.{stream}.*"),
        &format!("CONSUMER.MSG.NEXT.{stream}.*"),
    ]);
    subjects.extend([format!("$JS.ACK.{stream}.>"), format!("$JS.FC.{stream}.>")]);
    subjects
}

fn bucket(name: &str) -> Vec<String> {
    [vec![format!("$KV.{name}.>")], reads(&bucket_stream(name))].concat()
}

/// Files are replaced by purging their old chunks.
fn store(name: &str) -> Vec<String> {
    let stream = store_stream(name);
    [vec![format!("$O.{name}.>")], reads(&stream), api(&[&format!("STREAM.PURGE.{stream}")])].concat()
}

fn append() -> Vec<String> {
    let mut subjects = vec![subject::MARKET_ALL.to_owned(), subject::TICKS.to_owned()];
    for stream in [MARKET, TELEMETRY, DISPATCH] {
        subjects.extend(reads(stream));
    }
    for name in [LEADERS, ENROLLMENTS, JOBENV] {
        subjects.extend(bucket(name));
    }
    subjects.extend(store(SNAPSHOTS));
    subjects.extend(api(&[
        &format!("STREAM.CREATE.{TELEMETRY}"),
        // The consumers of machines.
        &format!("CONSUMER.DURABLE.CREATE.{DISPATCH}.*"),
        // Which of them have work that nobody does.
        &format!("CONSUMER.LIST.{DISPATCH}"),
        // What waits for a machine that left the market, or that nobody waits for.
        &format!("STREAM.PURGE.{DISPATCH}"),
    ]));
    subjects
}

fn edge() -> Vec<String> {
    let mut subjects: Vec<_> =
        ["account", "job", "market", "enrollment"].iter().map(|area| subject::command(area, "*")).collect();
    subjects.push(subject::query("*"));
    subjects.extend([CREDENTIALS, SESSIONS].into_iter().flat_map(bucket));
    subjects.extend([ARTIFACTS, INPUTS].into_iter().flat_map(store));
    subjects.extend(reads(OUTPUT));
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(user: &User, subject: &str) -> bool {
        user.permissions.publish.iter().any(|allowed| {
            let (mut pattern, mut tokens) = (allowed.split('.'), subject.split('.'));
            loop {
                match (pattern.next(), tokens.next()) {
                    (Some(">"), Some(_)) | (None, None) => return true,
                    (Some("*"), Some(_)) => {}
                    (Some(p), Some(t)) if p == t => {}
                    _ => return false,
                }
            }
        })
    }

    #[test]
    fn only_one_user_writes_to_the_log_and_only_bootstrap_changes_streams() {
        for user in users() {
            assert_eq!(may(&user, "market.account.x.event"), user.name == "append", "{}", user.name);
            let changes =
                ["UPDATE", "RESTORE", "SNAPSHOT", "DELETE", "PURGE", "MSG.DELETE"].map(|c| format!("{c}.MARKET"));
            for change in changes {
                // A stream is restored only where there is none: and nobody may delete one.
                let its_own = ["UPDATE", "RESTORE", "SNAPSHOT"].iter().any(|own| change.starts_with(own));
                let allowed = user.name == "bootstrap" && its_own;
                assert_eq!(may(&user, &format!("$JS.API.STREAM.{change}")), allowed, "{} {change}", user.name);
            }
            let passwords = may(&user, "$KV.CREDENTIALS.x") || may(&user, "$JS.API.DIRECT.GET.KV_CREDENTIALS.x");
            assert_eq!(passwords, user.name == "ui", "{}", user.name);
            let secrets =
                may(&user, "$JS.API.DIRECT.GET.KV_JOBENV.x") || may(&user, "$JS.API.STREAM.MSG.GET.KV_JOBENV");
            assert_eq!(secrets, user.name == "append", "{}", user.name);
        }
    }
}
