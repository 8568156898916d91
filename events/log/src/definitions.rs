//! The configuration of each stream. `stream.rs` creates the streams, and compares existing ones with these
//! definitions.

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, Source, StorageType, SubjectTransform};
use gpubnb_events::subject;

use crate::stream::{
    DAY, DELIVERIES, DELIVERYLOG, DISPATCH, HOUR, MARKET, MAX_CONSUMERS, MIB, OUTPUT, StreamOptions, TELEMETRY,
};

pub(crate) fn market(options: &StreamOptions) -> Config {
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

pub(crate) fn dispatch(options: &StreamOptions) -> Config {
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

pub(crate) fn telemetry(options: &StreamOptions) -> Config {
    Config {
        name: TELEMETRY.to_owned(),
        description: Some("Heartbeats and ticks.".to_owned()),
        subjects: vec![subject::HEARTBEATS.to_owned(), subject::TICKS.to_owned()],
        storage: StorageType::Memory,
        max_age: options.telemetry.age,
        // An hour of heartbeats of one machine, at one every 5 seconds.
        max_messages_per_subject: 720,
        max_bytes: i64::from(options.telemetry.mib) * MIB,
        max_message_size: 256 * 1024,
        max_consumers: MAX_CONSUMERS,
        num_replicas: options.replicas,
        ..Config::default()
    }
}

pub(crate) fn output(options: &StreamOptions) -> Config {
    Config {
        name: OUTPUT.to_owned(),
        description: Some("Progress, logs and metrics of jobs.".to_owned()),
        subjects: vec![subject::OUTPUT_ALL.to_owned()],
        storage: StorageType::File,
        max_age: options.output.age,
        max_bytes: i64::from(options.output.mib) * MIB,
        max_messages_per_subject: 100_000,
        max_message_size: 512 * 1024,
        max_consumers: MAX_CONSUMERS,
        allow_direct: true,
        num_replicas: options.replicas,
        ..Config::default()
    }
}

pub(crate) fn deliveries(options: &StreamOptions) -> Config {
    Config {
        name: DELIVERIES.to_owned(),
        description: Some("What is to be sent to people and their programs.".to_owned()),
        subjects: vec![subject::DELIVERIES.to_owned()],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        // A full subject takes no more, instead of dropping what waits. One account's deliveries take no room of
        // others.
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages_per_subject: 200,
        max_message_size: 8 * 1024,
        max_bytes: 1_024 * MIB,
        // A delivery that could not be made for so long is of no use any more.
        max_age: 3 * DAY,
        // After a crash the notifier makes some deliveries again.
        duplicate_window: HOUR,
        max_consumers: 10,
        num_replicas: options.replicas,
        ..Config::default()
    }
}

pub(crate) fn delivery_log(options: &StreamOptions) -> Config {
    Config {
        name: DELIVERYLOG.to_owned(),
        description: Some("The tries of deliveries.".to_owned()),
        subjects: vec![subject::DELIVERY_TRIES.to_owned()],
        storage: StorageType::File,
        max_age: 30 * DAY,
        max_messages_per_subject: 100,
        max_message_size: 16 * 1024,
        max_bytes: 512 * MIB,
        max_consumers: MAX_CONSUMERS,
        allow_direct: true,
        num_replicas: options.replicas,
        ..Config::default()
    }
}
