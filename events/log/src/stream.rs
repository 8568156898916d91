//! The definitions of all streams, key-value buckets and object stores in the broker. In `JetStream`, a stream is a
//! stored sequence of messages, and a consumer is the position of a reader in a stream.
//!
//! With the option `--provision`, the services create what is missing when they start, and set the limits (age and
//! size) of OUTPUT, TELEMETRY and the object stores to their options. They compare an existing stream with its
//! definition, and do not start if they differ. No stream is ever deleted or created again here.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, PullConsumer, pull},
    context::GetStreamErrorKind,
    kv, object_store,
    stream::{Config, ConsumerErrorKind},
};
use gpubnb_events::{BoxError, MachineId, Seq, subject};

use crate::definitions::{deliveries, delivery_log, dispatch, market, output, telemetry};

/// The stream of all events, which is kept for ever.
pub const MARKET: &str = "MARKET";
/// Job messages, which the broker copies from MARKET.
pub const DISPATCH: &str = "DISPATCH";
/// Heartbeats of machines, and ticks: the messages by which the watchdog measures the silence of machines.
pub const TELEMETRY: &str = "TELEMETRY";
/// Progress, logs and metrics of jobs.
pub const OUTPUT: &str = "OUTPUT";
/// Bucket of leaders: the entry of a service names the replica that leads.
pub const LEADERS: &str = "LEADERS";
/// Object store of the files that jobs leave: `<job>/<lease>/<path>`.
pub const ARTIFACTS: &str = "ARTIFACTS";
/// Object store of the input files of jobs: `<account>/<input>`.
pub const INPUTS: &str = "INPUTS";
/// Object store of snapshots: the folded state of services and projectors, which saves them time at the start.
pub const SNAPSHOTS: &str = "SNAPSHOTS";
/// Bucket of users: the hashes of passwords and tokens.
pub const CREDENTIALS: &str = "CREDENTIALS";
/// Bucket of signed tree heads of MARKET.
pub const CHECKPOINTS: &str = "CHECKPOINTS";
/// Bucket of sessions: the browsers that are signed in.
pub const SESSIONS: &str = "SESSIONS";
/// Bucket of enrollment codes and of enrolled machines.
pub const ENROLLMENTS: &str = "ENROLLMENTS";
/// Bucket of the encrypted values of jobs' environments. The values are deleted when the job ends.
pub const JOBENV: &str = "JOBENV";
/// Bucket of the encrypted values of accounts' named secrets.
pub const SECRETS: &str = "SECRETS";

/// Bucket of the bytes of output that each account's jobs have written.
pub const OUTPUTUSE: &str = "OUTPUTUSE";
/// Bucket of the notification settings of each account, and of the notifier's position in the log.
pub const NOTIFICATIONS: &str = "NOTIFICATIONS";
/// Deliveries: notifications and e-mails that are to be sent to people and their programs.
pub const DELIVERIES: &str = "DELIVERIES";
/// The tries of deliveries, for the people who receive them.
pub const DELIVERYLOG: &str = "DELIVERYLOG";
/// Bucket of the list of each account's datasets: `<account>`.
pub const DATASETS: &str = "DATASETS";
/// Bucket of the uploads that run now: the room that each of them takes of its store.
pub const UPLOADS: &str = "UPLOADS";

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Most consumers of a stream. Each machine of the market has one in DISPATCH.
pub(crate) const MAX_CONSUMERS: i32 = 10_000;
/// A job message that a worker has fetched is delivered again if the worker sends nothing about it for this long.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
pub(crate) const MIB: i64 = 1 << 20;
/// Key-value buckets, and the time that an entry is kept after its last change; zero: for ever.
const BUCKETS: [(&str, Duration); 11] = [
    (LEADERS, Duration::from_secs(10)),
    (CREDENTIALS, Duration::ZERO),
    (CHECKPOINTS, Duration::ZERO),
    (SESSIONS, SESSION_LIFE),
    (ENROLLMENTS, Duration::ZERO),
    // A job waits for at most a week and runs for at most a week.
    (JOBENV, Duration::from_secs(15 * 24 * 3_600)),
    (SECRETS, Duration::ZERO),
    (OUTPUTUSE, Duration::ZERO),
    (NOTIFICATIONS, Duration::ZERO),
    (DATASETS, DATASETS_KEPT),
    // No attempt uploads for a longer time.
    (UPLOADS, DAY),
];
/// Size of SECRETS: many new accounts must not fill the broker's disk.
const MAX_SECRETS_BYTES: i64 = 4 << 30;
/// Size of DATASETS, for the same reason.
const MAX_DATASETS_BYTES: i64 = 1 << 30;
/// The time that a browser stays signed in.
pub const SESSION_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// The time that a file of a job is kept.
pub const ARTIFACTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);
/// The time that an input or a file of a dataset is kept. A job waits for at most a week and runs for at most a week.
pub const INPUTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);
/// The time that a dataset is kept after it was uploaded for the last time.
pub const DATASETS_KEPT: Duration = Duration::from_secs(20 * 24 * 3_600);
/// Object stores, and the time that a file is kept.
const STORES: [(&str, Duration); 3] = [
    (ARTIFACTS, ARTIFACTS_KEPT),
    (INPUTS, INPUTS_KEPT),
    // The remains of an interrupted upload of a snapshot are removed after this time, too.
    (SNAPSHOTS, Duration::from_secs(30 * 24 * 3_600)),
];

/// The settings of streams that differ between deployments.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Number of copies of each message: 1 in development, 3 in production.
    pub replicas: usize,
    /// The time in which the broker drops a second message with the same id. No decision depends on this time.
    pub duplicate_window: Duration,
    /// The limits of OUTPUT.
    pub output: Retention,
    /// The limits of TELEMETRY, which is in the broker's memory.
    pub telemetry: Retention,
    /// Size of the store INPUTS, MiB.
    pub inputs_mib: u32,
    /// Size of the store ARTIFACTS, MiB.
    pub artifacts_mib: u32,
}

impl StreamOptions {
    /// The size of an object store, bytes.
    fn store_bytes(&self, store: &str) -> i64 {
        let mib = match store {
            INPUTS => self.inputs_mib,
            ARTIFACTS => self.artifacts_mib,
            _ => FILES_MIB,
        };
        i64::from(mib) * MIB
    }
}

/// Size of an object store unless the operator chooses another, MiB.
const FILES_MIB: u32 = 8_192;

/// The limits of a stream. The oldest messages are removed when either limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Size, MiB.
    pub mib: u32,
    /// Age of the oldest message.
    pub age: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            replicas: 1,
            duplicate_window: Duration::from_secs(120),
            output: Retention { mib: 4_096, age: 30 * DAY },
            telemetry: Retention { mib: 512, age: HOUR },
            inputs_mib: FILES_MIB,
            artifacts_mib: FILES_MIB,
        }
    }
}

/// The reason why a stream, bucket or object store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The broker refused, or did not answer.
    #[error("the broker did not do its part for {stream}")]
    Broker {
        /// The stream, bucket or object store.
        stream: String,
        /// The broker's reason.
        source: BoxError,
    },
    /// The stream exists, but differs from its definition.
    #[error(
        "stream {stream} exists with another `{field}` ({found}, expected {expected}). It is not changed: \
         see docs/operating.md, \"A stream differs\""
    )]
    Differs {
        /// The stream.
        stream: String,
        /// The field that differs.
        field: &'static str,
        /// The value in the broker.
        found: String,
        /// The value that the market needs.
        expected: String,
    },
}

/// Adds the name of the stream, bucket or object store to an error of the broker.
fn broker<E: Into<BoxError>>(stream: &str) -> impl FnOnce(E) -> ProvisionError + use<E> {
    let stream = stream.to_owned();
    move |e| ProvisionError::Broker { stream, source: e.into() }
}

/// Creates missing streams, buckets and object stores, checks the existing streams, and sets the limits of OUTPUT,
/// TELEMETRY and the object stores to the options.
pub async fn provision(js: &jetstream::Context, options: &StreamOptions) -> Result<(), ProvisionError> {
    provision_missing(js, options).await?;
    for Config { name, max_age, max_bytes, .. } in [telemetry(options), output(options)] {
        update_retention(js, &name, max_age, max_bytes).await?;
    }
    for (store, max_age) in STORES {
        update_retention(js, &store_stream(store), max_age, options.store_bytes(store)).await?;
    }
    Ok(())
}

/// Like [`provision`], but does not change the limits of existing streams, so that no message is removed.
pub async fn provision_missing(js: &jetstream::Context, options: &StreamOptions) -> Result<(), ProvisionError> {
    let wanted = [market, dispatch, telemetry, output, deliveries, delivery_log];
    for wanted in wanted.map(|definition| definition(options)) {
        ensure(js, wanted).await?;
    }
    for (bucket, max_age) in BUCKETS {
        if js.get_key_value(bucket).await.is_err() {
            js.create_key_value(kv::Config {
                bucket: bucket.to_owned(),
                history: 1,
                max_age,
                // The others hold little for each account, or for a time.
                max_bytes: match bucket {
                    SECRETS => MAX_SECRETS_BYTES,
                    DATASETS => MAX_DATASETS_BYTES,
                    _ => -1,
                },
                num_replicas: options.replicas,
                ..Default::default()
            })
            .await
            .map_err(broker(bucket))?;
        }
    }
    for (store, max_age) in STORES {
        if js.get_object_store(store).await.is_err() {
            js.create_object_store(object_store::Config {
                bucket: store.to_owned(),
                max_age,
                max_bytes: options.store_bytes(store),
                num_replicas: options.replicas,
                ..Default::default()
            })
            .await
            .map_err(broker(store))?;
        }
    }
    if options.replicas > 1 {
        let buckets = BUCKETS.iter().map(|(name, _)| bucket_stream(name));
        for stream in buckets.chain(STORES.iter().map(|(name, _)| store_stream(name))) {
            disable_direct_get(js, &stream).await?;
        }
    }
    Ok(())
}

/// The streams of a backup, in the order in which they are saved. The tree heads are saved before MARKET, so that the
/// saved MARKET has at least the events that a head signs. The secrets of jobs are saved after MARKET, so that each
/// job in the saved MARKET has its secrets. A backup has no DISPATCH, which is made from MARKET, and no streams that
/// are in memory. It has no DELIVERIES either: what was sent meanwhile would be sent once more.
pub fn backup_streams() -> Vec<String> {
    let before = [CHECKPOINTS, CREDENTIALS, ENROLLMENTS, SESSIONS, NOTIFICATIONS, SECRETS, DATASETS].map(bucket_stream);
    let after = [bucket_stream(JOBENV), OUTPUT.to_owned(), store_stream(INPUTS), store_stream(ARTIFACTS)];
    before.into_iter().chain([MARKET.to_owned()]).chain(after).collect()
}

/// Creates DISPATCH after a restore, with the assignments of MARKET from the sequence `from` on. DISPATCH must not
/// exist.
pub async fn provision_dispatch(
    js: &jetstream::Context,
    options: &StreamOptions,
    from: Seq,
) -> Result<(), ProvisionError> {
    let mut wanted = dispatch(options);
    for source in wanted.sources.iter_mut().flatten() {
        source.start_sequence = Some(from.0);
    }
    ensure(js, wanted).await
}

/// Name of the stream that stores a key-value bucket.
pub fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// Name of the stream that stores an object store.
pub fn store_stream(store: &str) -> String {
    format!("OBJ_{store}")
}

/// Creates TELEMETRY if it is missing. A broker without replicas loses this stream at a restart, because it is in
/// memory.
pub async fn provision_telemetry(js: &jetstream::Context, options: &StreamOptions) -> Result<(), ProvisionError> {
    ensure(js, telemetry(options)).await
}

/// Creates a stream if it is missing, and compares it with its definition.
async fn ensure(js: &jetstream::Context, wanted: Config) -> Result<(), ProvisionError> {
    let stream = &wanted.name;
    let found = match js.get_stream(stream).await {
        Ok(found) => found.cached_info().config.clone(),
        Err(e) if matches!(e.kind(), GetStreamErrorKind::JetStream(ref e) if e.code() == 404) => {
            // Two replicas may create the stream at once: the broker accepts the same definition twice.
            js.create_stream(wanted.clone()).await.map_err(broker(stream))?.cached_info().config.clone()
        }
        Err(e) => return Err(broker(stream)(e)),
    };
    compare(&found, &wanted)
}

/// Sets the limits of an existing stream. An object store that already has more than `max_bytes` keeps its files, and
/// takes no new ones.
async fn update_retention(
    js: &jetstream::Context,
    stream: &str,
    max_age: Duration,
    max_bytes: i64,
) -> Result<(), ProvisionError> {
    let found = js.get_stream(stream).await.map_err(broker(stream))?.cached_info().config.clone();
    if (found.max_age, found.max_bytes) != (max_age, max_bytes) {
        js.update_stream(Config { max_age, max_bytes, ..found }).await.map_err(broker(stream))?;
    }
    Ok(())
}

/// Sends the reads of a bucket or object store to the leader of its stream. Otherwise any broker answers, also one that
/// does not have the newest message yet, and somebody who just signed in is a stranger at the next page.
async fn disable_direct_get(js: &jetstream::Context, stream: &str) -> Result<(), ProvisionError> {
    let found = js.get_stream(stream).await.map_err(broker(stream))?.cached_info().config.clone();
    if found.allow_direct {
        js.update_stream(Config { allow_direct: false, ..found }).await.map_err(broker(stream))?;
    }
    Ok(())
}

/// True for the streams whose limits the operator chooses.
fn has_retention(stream: &str) -> bool {
    [OUTPUT, TELEMETRY].contains(&stream)
}

fn compare(found: &Config, wanted: &Config) -> Result<(), ProvisionError> {
    macro_rules! same {
        ($($field:ident),+) => {$(
            if found.$field != wanted.$field {
                return Err(ProvisionError::Differs {
                    stream: wanted.name.clone(),
                    field: stringify!($field),
                    found: format!("{:?}", found.$field),
                    expected: format!("{:?}", wanted.$field),
                });
            }
        )+};
    }
    same!(subjects, retention, storage, discard, num_replicas, deny_delete, deny_purge, allow_direct);
    if !has_retention(&wanted.name) {
        same!(max_age);
    }
    same!(max_consumers);
    // The broker reports -1 for "no limit"; a definition without a limit has 0.
    let per_subject = |c: &Config| c.max_messages_per_subject.max(0);
    if per_subject(found) != per_subject(wanted) {
        return Err(ProvisionError::Differs {
            stream: wanted.name.clone(),
            field: "max_messages_per_subject",
            found: per_subject(found).to_string(),
            expected: per_subject(wanted).to_string(),
        });
    }
    let sources = |c: &Config| c.sources.iter().flatten().map(|s| s.subject_transforms.clone()).collect::<Vec<_>>();
    if sources(found) != sources(wanted) {
        return Err(ProvisionError::Differs {
            stream: wanted.name.clone(),
            field: "sources",
            found: format!("{:?}", sources(found)),
            expected: format!("{:?}", sources(wanted)),
        });
    }
    for unlimited in [found.max_messages, found.max_bytes] {
        if wanted.name == MARKET && unlimited > 0 {
            return Err(ProvisionError::Differs {
                stream: MARKET.to_owned(),
                field: "max_messages or max_bytes",
                found: unlimited.to_string(),
                expected: "no limit: MARKET is never trimmed".to_owned(),
            });
        }
    }
    Ok(())
}

/// Name of a machine's consumer on DISPATCH.
pub fn machine_consumer(machine: MachineId) -> String {
    machine_consumer_name(&machine.to_string())
}

/// Like [`machine_consumer`], also for a template of permissions: `id` is then the placeholder that the broker replaces
/// with the machine's id.
pub fn machine_consumer_name(id: &str) -> String {
    format!("machine-{id}")
}

/// The definition of a machine's consumer on DISPATCH. The machine may fetch as many unacknowledged job messages as it
/// has slots.
pub fn machine_consumer_config(machine: MachineId, slots: u32) -> pull::Config {
    pull::Config {
        durable_name: Some(machine_consumer(machine)),
        filter_subject: subject::dispatch_of(machine),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: i64::from(slots.max(1)),
        ..Default::default()
    }
}

/// Creates a machine's consumer, or changes its number of slots.
pub async fn provision_machine(
    js: &jetstream::Context,
    machine: MachineId,
    slots: u32,
) -> Result<PullConsumer, ProvisionError> {
    js.create_consumer_on_stream(machine_consumer_config(machine, slots), DISPATCH).await.map_err(broker(DISPATCH))
}

/// Removes a machine's consumer and the messages that wait for the machine. Deleting the consumer alone would leave the
/// messages in the stream.
pub async fn retire_machine(js: &jetstream::Context, machine: MachineId) -> Result<(), ProvisionError> {
    let stream = js.get_stream_no_info(DISPATCH).await.map_err(broker(DISPATCH))?;
    match stream.delete_consumer(&machine_consumer(machine)).await {
        Ok(_) => {}
        // The machine never had a consumer, or the consumer is gone already.
        Err(e) if matches!(e.kind(), ConsumerErrorKind::JetStream(ref e) if e.code() == 404) => {}
        Err(e) => return Err(broker(DISPATCH)(e)),
    }
    stream.purge().filter(subject::dispatch_of(machine)).await.map_err(broker(DISPATCH))?;
    Ok(())
}
