//! The streams and buckets: one definition each. They are got, compared, and refused where they differ;
//! never deleted, never recreated, never silently changed.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, PullConsumer, pull},
    context::GetStreamErrorKind,
    kv, object_store,
    stream::{Config, DiscardPolicy, RetentionPolicy, Source, StorageType, SubjectTransform},
};

use crate::{ids::MachineId, subject};

/// Decisions and money, for ever.
pub const MARKET: &str = "MARKET";
/// Job messages, sourced from MARKET by the broker.
pub const DISPATCH: &str = "DISPATCH";
/// Heartbeats and ticks.
pub const TELEMETRY: &str = "TELEMETRY";
/// Progress, logs and metrics of jobs.
pub const OUTPUT: &str = "OUTPUT";
/// Bucket of the leases between replicas of a service.
pub const LEADERS: &str = "LEADERS";
/// Object store of what jobs leave: `<job>/<lease>/<path>`.
pub const ARTIFACTS: &str = "ARTIFACTS";

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Machines of one market; each has a consumer.
const MAX_CONSUMERS: i32 = 10_000;
/// How long a worker may be silent before its job message is given out again.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
const MIB: i64 = 1 << 20;

/// What differs between deployments.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Copies of each message: 1 in development, 3 in production.
    pub replicas: usize,
    /// The broker's window for message ids. The domain does not depend on it.
    pub duplicate_window: Duration,
    /// Room for job output, MiB.
    pub output_mib: u32,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { replicas: 1, duplicate_window: Duration::from_secs(120), output_mib: 4_096 }
    }
}

/// A stream is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The broker did not do it.
    #[error("stream {stream}: the broker says: {problem}")]
    Broker {
        /// Which.
        stream: String,
        /// What it said.
        problem: String,
    },
    /// It exists and is different.
    #[error(
        "stream {stream} exists with another `{field}` ({found}, expected {expected}). It is not changed: \
         see docs/operating.md, \"A stream differs\""
    )]
    Differs {
        /// Which.
        stream: String,
        /// The field.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: String,
    },
}

fn market(options: &StreamOptions) -> Config {
    Config {
        name: MARKET.to_owned(),
        description: Some("Decisions and money. Kept for ever.".to_owned()),
        subjects: vec![subject::MARKET_ALL.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        deny_delete: true,
        deny_purge: true,
        allow_direct: true,
        max_consumers: MAX_CONSUMERS,
        duplicate_window: options.duplicate_window,
        num_replicas: options.replicas,
        ..Config::default()
    }
}

fn dispatch(options: &StreamOptions) -> Config {
    let transform = SubjectTransform {
        source: subject::MARKET_ASSIGNED.to_owned(),
        destination: subject::DISPATCH_TRANSFORM.to_owned(),
    };
    Config {
        name: DISPATCH.to_owned(),
        description: Some("Job messages, one consumer per machine.".to_owned()),
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        max_age: HOUR,
        max_consumers: MAX_CONSUMERS,
        num_replicas: options.replicas,
        sources: Some(vec![Source {
            name: MARKET.to_owned(),
            subject_transforms: vec![transform],
            ..Source::default()
        }]),
        ..Config::default()
    }
}

fn telemetry(options: &StreamOptions) -> Config {
    Config {
        name: TELEMETRY.to_owned(),
        description: Some("Heartbeats and ticks.".to_owned()),
        subjects: vec![subject::HEARTBEATS.to_owned(), subject::TICKS.to_owned()],
        storage: StorageType::Memory,
        max_age: HOUR,
        max_messages_per_subject: 720,
        max_bytes: 512 * MIB,
        max_message_size: 256 * 1024,
        max_consumers: MAX_CONSUMERS,
        num_replicas: options.replicas,
        ..Config::default()
    }
}

fn output(options: &StreamOptions) -> Config {
    Config {
        name: OUTPUT.to_owned(),
        description: Some("Progress, logs and metrics of jobs.".to_owned()),
        subjects: vec![subject::OUTPUT_ALL.to_owned()],
        storage: StorageType::File,
        max_age: 30 * DAY,
        max_bytes: i64::from(options.output_mib) * MIB,
        max_messages_per_subject: 100_000,
        max_message_size: 512 * 1024,
        max_consumers: MAX_CONSUMERS,
        allow_direct: true,
        num_replicas: options.replicas,
        ..Config::default()
    }
}

/// Makes sure that every stream and bucket is there and as defined here.
pub async fn provision(js: &jetstream::Context, options: &StreamOptions) -> Result<(), ProvisionError> {
    for wanted in [market(options), dispatch(options), telemetry(options), output(options)] {
        ensure(js, wanted).await?;
    }
    let broker = |stream: &str, e: &dyn std::fmt::Display| ProvisionError::Broker {
        stream: stream.to_owned(),
        problem: e.to_string(),
    };
    if js.get_key_value(LEADERS).await.is_err() {
        js.create_key_value(kv::Config {
            bucket: LEADERS.to_owned(),
            history: 1,
            max_age: Duration::from_secs(10),
            num_replicas: options.replicas,
            ..Default::default()
        })
        .await
        .map_err(|e| broker(LEADERS, &e))?;
    }
    if js.get_object_store(ARTIFACTS).await.is_err() {
        js.create_object_store(object_store::Config {
            bucket: ARTIFACTS.to_owned(),
            max_age: 30 * DAY,
            max_bytes: 8_192 * MIB,
            num_replicas: options.replicas,
            ..Default::default()
        })
        .await
        .map_err(|e| broker(ARTIFACTS, &e))?;
    }
    Ok(())
}

/// Makes sure that TELEMETRY is there: it lies in memory, and a broker that was alone and restarts has lost it.
pub async fn provision_telemetry(js: &jetstream::Context, options: &StreamOptions) -> Result<(), ProvisionError> {
    ensure(js, telemetry(options)).await
}

async fn ensure(js: &jetstream::Context, wanted: Config) -> Result<(), ProvisionError> {
    let stream = wanted.name.clone();
    let broker = |e: &dyn std::fmt::Display| ProvisionError::Broker { stream: stream.clone(), problem: e.to_string() };
    let found = match js.get_stream(&stream).await {
        Ok(found) => found.cached_info().config.clone(),
        Err(e) if matches!(e.kind(), GetStreamErrorKind::JetStream(ref e) if e.code() == 404) => {
            // Two replicas may create it at once: the second finds the same definition there.
            js.create_stream(wanted.clone()).await.map_err(|e| broker(&e))?.cached_info().config.clone()
        }
        Err(e) => return Err(broker(&e)),
    };
    compare(&found, &wanted)
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
    same!(subjects, retention, storage, discard, max_age, num_replicas, deny_delete, deny_purge, allow_direct);
    same!(max_consumers);
    // The broker writes "no limit" as -1 where a definition leaves it out.
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
    format!("machine-{machine}")
}

/// A machine's consumer on DISPATCH, with as many job messages in hand as it has slots.
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

/// Creates a machine's consumer, or brings it up to date.
pub async fn provision_machine(
    js: &jetstream::Context,
    machine: MachineId,
    slots: u32,
) -> Result<PullConsumer, ProvisionError> {
    js.create_consumer_on_stream(machine_consumer_config(machine, slots), DISPATCH)
        .await
        .map_err(|e| ProvisionError::Broker { stream: DISPATCH.to_owned(), problem: e.to_string() })
}
