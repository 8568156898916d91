//! The rights of each user of the broker. A user has only the rights that its process needs.

use gpubnb_events::subject;
use gpubnb_log::stream::{
    ARTIFACTS, CHECKPOINTS, CREDENTIALS, DATASETS, DELIVERIES, DELIVERYLOG, DISPATCH, ENROLLMENTS, INPUTS, JOBENV,
    LEADERS, MARKET, NOTIFICATIONS, OUTPUT, OUTPUTUSE, SECRETS, SESSIONS, SNAPSHOTS, TELEMETRY, UPLOADS, bucket_stream,
    store_stream,
};

use super::jwt::{ConnectionLimits, Permissions, SharedSubject};

/// A user of the broker, and the process that holds the user's credential.
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) process: &'static str,
    pub(crate) permissions: Permissions,
}

/// Every user of the NATS account MARKET. An account of NATS separates groups of users; it is no account of a person.
pub(crate) fn users() -> [User; 8] {
    let user = |name, process, publish: Vec<String>, subscribe: &[&str]| {
        let subscribe = subscribe.iter().map(|s| (*s).to_owned()).collect();
        User { name, process, permissions: Permissions { publish, subscribe, limits: None } }
    };
    let inboxes = |names: &[&str]| names.iter().map(|inbox| format!("{inbox}.>")).collect::<Vec<_>>();
    let services = format!("{}.>", subject::SERVICES_INBOX);
    let projector = format!("{}.>", subject::PROJECTOR_INBOX);
    let operator = format!("{}.>", subject::OPERATOR_INBOX);
    let notifier = format!("{}.>", subject::NOTIFIER_INBOX);
    let ui = format!("{}.>", subject::UI_INBOX);
    [
        // May change streams. Used at the start of a market, for backups and for restores.
        user(
            "bootstrap",
            "services",
            [
                api_subjects(&["INFO", "STREAM.CREATE.*", "STREAM.UPDATE.*", "STREAM.INFO.*"]),
                // To give the lead of a stream to another broker of the cluster.
                api_subjects(&["STREAM.LEADER.STEPDOWN.*"]),
                // Backup and restore.
                api_subjects(&["STREAM.SNAPSHOT.*", "STREAM.RESTORE.*"]),
                vec!["$JS.SNAPSHOT.>".to_owned()],
            ]
            .concat(),
            &[&services],
        ),
        // Answers commands: may publish only to inboxes, and to the reply subjects that the broker chooses for
        // machines.
        user(
            "serve",
            "services",
            inboxes(&[subject::ANY_INBOX, subject::BROKER_REPLIES]),
            &[subject::COMMANDS, subject::DISCOVERY, &services],
        ),
        // Appends events, reads the log, manages the consumers and the messages of DISPATCH, and writes the buckets of
        // the services. May not change a stream's configuration; may create TELEMETRY, which is in memory and is lost
        // when the broker restarts.
        user("append", "services", append_rights(), &[&services]),
        // Writes the output of jobs, each message after the last one of its subject.
        user("output", "services", output_rights(), &[&services]),
        // Reads the log, answers queries (of machines, too, at the reply subjects that the broker chooses), sends
        // change notices. May not write to the log.
        user(
            "projector",
            "projector",
            [
                inboxes(&[subject::ANY_INBOX, subject::BROKER_REPLIES]),
                vec![subject::NOTICES.to_owned()],
                [MARKET, TELEMETRY].into_iter().flat_map(reader_rights_with_removal).collect(),
                // Signed tree heads.
                bucket_rights(CHECKPOINTS),
                object_store_rights(SNAPSHOTS),
                // The sizes of these streams, for the console; not their messages.
                api_subjects(&[&format!("STREAM.INFO.{DISPATCH}"), &format!("STREAM.INFO.{OUTPUT}")]),
            ]
            .concat(),
            &[subject::QUERIES, subject::DISCOVERY, &projector],
        ),
        // Reads the log, and tells people and their programs about it.
        user("notifier", "notifier", notifier_rights(), &[&notifier]),
        // The operator's commands.
        user("operator", "projector", operator_rights(), &[&operator]),
        // The web server: sends commands and queries for signed-in people, stores their sessions and files, reads
        // output.
        user("ui", "ui", web_server_rights(), &[subject::NOTICES, subject::UNFINISHED_ALL, &ui]),
    ]
}

/// The rights to read the streams and to ask queries. An operator may not delete a consumer, because the consumer may
/// be another reader's, and may not create one on DISPATCH, because that consumer would take jobs away from a machine.
fn operator_rights() -> Vec<String> {
    [
        vec![subject::query("*")],
        [MARKET, TELEMETRY, OUTPUT].into_iter().flat_map(reader_rights).collect(),
        reader_rights(&bucket_stream(CHECKPOINTS)),
        message_rights(DISPATCH),
        api_subjects(&[&format!("CONSUMER.INFO.{DISPATCH}.*")]),
        // The sizes of the stores of files; not the files.
        api_subjects(&[INPUTS, ARTIFACTS].map(|store| format!("STREAM.INFO.{}", store_stream(store)))),
    ]
    .concat()
}

/// The subjects that the market's account exports to the account of machines. The broker chooses the reply
/// subjects, so no machine can direct an answer of a stream, a consumer or a service to a subject of its choice.
pub(crate) fn shared_with_machines() -> Vec<SharedSubject> {
    let share = |subject: String, local: Option<String>, has_many_answers: bool| SharedSubject {
        subject,
        local,
        has_many_answers,
    };
    let mut shared: Vec<_> =
        subject::published_by_machine("*").into_iter().map(|subject| share(subject, None, false)).collect();
    // The wildcard is the machine's consumer: the credential of a machine allows no other. The account of machines uses
    // another prefix, because the broker answers `$JS.API` there with "no streams in this account".
    for (call, has_many_answers) in [("CONSUMER.INFO", false), ("CONSUMER.MSG.NEXT", true)] {
        let local = format!("{}.{call}.{DISPATCH}.$1", subject::MACHINE_API);
        shared.push(share(format!("$JS.API.{call}.{DISPATCH}.*"), Some(local), has_many_answers));
    }
    shared.push(share(format!("$JS.ACK.{DISPATCH}.>"), None, false));
    shared
}

/// The rights of a machine. The issuer's key is a scoped signing key of NATS: the key signs only credentials with these
/// rights, for the machine that the credential names.
pub(crate) fn machine_rights() -> Permissions {
    let consumer = gpubnb_log::stream::machine_consumer_name(subject::USER_NAME_PLACEHOLDER);
    let mut publish = subject::published_by_machine(subject::USER_NAME_PLACEHOLDER);
    for call in ["CONSUMER.INFO", "CONSUMER.MSG.NEXT"] {
        publish.push(format!("{}.{call}.{DISPATCH}.{consumer}", subject::MACHINE_API));
    }
    publish.push(format!("$JS.ACK.{DISPATCH}.{consumer}.>"));
    Permissions {
        publish,
        subscribe: vec![format!("{}.>", subject::machine_inbox_template())],
        limits: Some(ConnectionLimits { subscriptions: 100, message_bytes: 512 << 10 }),
    }
}

/// The rights of the user of NATS's system account, which writes the list of revoked machines into the machines' NATS
/// account, and ends connections of machines that have too many.
pub(crate) fn revoker_rights(account: &str) -> Permissions {
    Permissions {
        publish: vec![
            subject::UPDATE_ACCOUNT.to_owned(),
            subject::lookup_account(account),
            subject::end_connection("*"),
        ],
        subscribe: vec![
            format!("{}.>", subject::SERVICES_INBOX),
            subject::connection_began(account),
            subject::connection_ended(account),
        ],
        limits: None,
    }
}

fn api_subjects(calls: &[impl AsRef<str>]) -> Vec<String> {
    calls.iter().map(|call| format!("$JS.API.{}", call.as_ref())).collect()
}

/// The rights to read a stream's state, and single messages.
fn message_rights(stream: &str) -> Vec<String> {
    api_subjects(&[
        &format!("STREAM.INFO.{stream}"),
        &format!("STREAM.MSG.GET.{stream}"),
        &format!("DIRECT.GET.{stream}"),
        &format!("DIRECT.GET.{stream}.>"),
    ])
}

/// The rights to read a stream: its state, single messages, and messages through new consumers. The broker removes a
/// consumer that nobody uses.
fn reader_rights(stream: &str) -> Vec<String> {
    let consumers = api_subjects(&[
        &format!("CONSUMER.CREATE.{stream}"),
        &format!("CONSUMER.CREATE.{stream}.>"),
        &format!("CONSUMER.INFO.{stream}.*"),
        &format!("CONSUMER.MSG.NEXT.{stream}.*"),
    ]);
    let acks = vec![format!("$JS.ACK.{stream}.>"), format!("$JS.FC.{stream}.>")];
    [message_rights(stream), consumers, acks].concat()
}

/// The rights of a service to read a stream, and to remove consumers. NATS cannot restrict the removal to the service's
/// own consumers.
fn reader_rights_with_removal(stream: &str) -> Vec<String> {
    [reader_rights(stream), api_subjects(&[&format!("CONSUMER.DELETE.{stream}.*")])].concat()
}

fn bucket_rights(name: &str) -> Vec<String> {
    [vec![format!("$KV.{name}.>")], reader_rights_with_removal(&bucket_stream(name))].concat()
}

/// The rights to use an object store, with the purge of the old chunks of a replaced file.
fn object_store_rights(name: &str) -> Vec<String> {
    let stream = store_stream(name);
    [
        vec![format!("$O.{name}.>")],
        reader_rights_with_removal(&stream),
        api_subjects(&[&format!("STREAM.PURGE.{stream}")]),
    ]
    .concat()
}

fn append_rights() -> Vec<String> {
    let mut subjects = vec![subject::MARKET_ALL.to_owned(), subject::TICKS.to_owned()];
    for stream in [MARKET, TELEMETRY, DISPATCH] {
        subjects.extend(reader_rights_with_removal(stream));
    }
    for name in [LEADERS, ENROLLMENTS, JOBENV, SECRETS] {
        subjects.extend(bucket_rights(name));
    }
    subjects.extend(object_store_rights(SNAPSHOTS));
    subjects.extend(api_subjects(&[
        &format!("STREAM.CREATE.{TELEMETRY}"),
        // To create the consumer of a machine.
        &format!("CONSUMER.DURABLE.CREATE.{DISPATCH}.*"),
        // To find dead letters: messages that no machine fetches from its consumer.
        &format!("CONSUMER.LIST.{DISPATCH}"),
        // To remove the messages for a machine that left the market, and dead letters.
        &format!("STREAM.PURGE.{DISPATCH}"),
    ]));
    subjects
}

fn output_rights() -> Vec<String> {
    [vec![subject::OUTPUT_ALL.to_owned()], message_rights(OUTPUT), bucket_rights(OUTPUTUSE)].concat()
}

/// The rights of the notifier. It may not change what an account wants to be told.
fn notifier_rights() -> Vec<String> {
    [
        vec![subject::query("*"), subject::DELIVERIES.to_owned(), subject::DELIVERY_TRIES.to_owned()],
        ["mail", "position", "low.*"].map(|key| format!("$KV.{NOTIFICATIONS}.{key}")).to_vec(),
        reader_rights(MARKET),
        reader_rights(&bucket_stream(NOTIFICATIONS)),
        reader_rights(DELIVERIES),
        api_subjects(&[&format!("CONSUMER.DURABLE.CREATE.{DELIVERIES}.*")]),
    ]
    .concat()
}

fn web_server_rights() -> Vec<String> {
    let mut subjects: Vec<_> =
        ["account", "job", "batch", "market", "enrollment"].iter().map(|area| subject::command(area, "*")).collect();
    subjects.push(subject::query("*"));
    subjects.extend([CREDENTIALS, SESSIONS, UPLOADS, DATASETS].into_iter().flat_map(bucket_rights));
    subjects.extend([ARTIFACTS, INPUTS].into_iter().flat_map(object_store_rights));
    for stream in [OUTPUT, DELIVERYLOG] {
        subjects.extend(reader_rights_with_removal(stream));
    }
    subjects.extend([format!("$KV.{NOTIFICATIONS}.account.*"), subject::DELIVERIES.to_owned()]);
    subjects.extend(reader_rights_with_removal(&bucket_stream(NOTIFICATIONS)));
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_publish(user: &User, subject: &str) -> bool {
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
            assert_eq!(may_publish(&user, "market.account.x.event"), user.name == "append", "{}", user.name);
            assert_eq!(may_publish(&user, "output.x.y.log"), user.name == "output", "{}", user.name);
            let changes =
                ["UPDATE", "RESTORE", "SNAPSHOT", "DELETE", "PURGE", "MSG.DELETE"].map(|c| format!("{c}.MARKET"));
            for change in changes {
                // The broker restores a stream only if it does not exist, and nobody may delete a stream.
                let is_bootstrap_right = ["UPDATE", "RESTORE", "SNAPSHOT"].iter().any(|own| change.starts_with(own));
                let allowed = user.name == "bootstrap" && is_bootstrap_right;
                assert_eq!(may_publish(&user, &format!("$JS.API.STREAM.{change}")), allowed, "{} {change}", user.name);
            }
            let reads_passwords =
                may_publish(&user, "$KV.CREDENTIALS.x") || may_publish(&user, "$JS.API.DIRECT.GET.KV_CREDENTIALS.x");
            assert_eq!(reads_passwords, user.name == "ui", "{}", user.name);
            for bucket in ["KV_JOBENV", "KV_SECRETS"] {
                let reads_secrets = may_publish(&user, &format!("$JS.API.DIRECT.GET.{bucket}.x"))
                    || may_publish(&user, &format!("$JS.API.STREAM.MSG.GET.{bucket}"));
                assert_eq!(reads_secrets, user.name == "append", "{} {bucket}", user.name);
            }
        }
    }
}
