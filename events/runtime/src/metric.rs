//! The names of all metrics, in the naming conventions of Prometheus. `tests/tests/operators/monitor.rs` checks that
//! dashboards and alerts use no other name.

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// A histogram of durations in seconds.
    Seconds,
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    /// The kind.
    pub kind: Kind,
    /// The meaning of the metric, and its labels.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal $kind:ident $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+

        /// All metrics.
        pub const ALL: &[Metric] = &[$(Metric { name: $name, kind: Kind::$kind, help: $help }),+];
    };
}

metrics! {
    RPC_REQUESTS = "gpubnb_rpc_requests_total" Counter "Answered commands and queries, by endpoint and result.";
    RPC_SECONDS = "gpubnb_rpc_duration_seconds" Seconds "Duration of commands and queries, by endpoint.";
    APPENDED = "gpubnb_events_appended_total" Counter "Events appended to MARKET, by event.";
    CONFLICTS = "gpubnb_append_conflicts_total" Counter
        "Decisions that were repeated because another append was faster.";
    LEADER = "gpubnb_leader" Gauge "1 if this replica drives scheduler, settlement and watchdog, else 0.";
    JOBS = "gpubnb_jobs" Gauge "Jobs that are not settled, by state.";
    OLDEST_QUEUED = "gpubnb_oldest_queued_job_seconds" Gauge
        "Time for which the oldest queued job has waited for a machine.";
    MACHINES = "gpubnb_machines" Gauge "Machines on the market, by presence.";
    LEASES = "gpubnb_live_leases" Gauge "Live leases.";
    APPLIED = "gpubnb_applied_sequence" Gauge "Sequence of the last event that this process has folded.";
    LAST = "gpubnb_market_last_sequence" Gauge "Sequence of the last event in MARKET.";
    CHECKPOINT = "gpubnb_model_checkpoint_sequence" Gauge "Sequence of the last event in a read model, by model.";
    STOPPED = "gpubnb_model_stopped" Gauge "1 if a read model stopped at an event, else 0, by model.";
    STREAM_MESSAGES = "gpubnb_stream_messages" Gauge "Messages in a stream, by stream.";
    STREAM_BYTES = "gpubnb_stream_bytes" Gauge "Bytes of a stream, by stream.";
    DISPATCH_BEHIND = "gpubnb_dispatch_behind_messages" Gauge
        "Messages of MARKET that the broker has not yet considered for DISPATCH.";
    SIGNED = "gpubnb_signed_head_sequence" Gauge "Sequence of the last event under a signed tree head.";
    STUCK = "gpubnb_stuck_jobs" Gauge "Jobs that have been in one state for too long.";
    HTTP_REQUESTS = "gpubnb_http_requests_total" Counter "Requests of the web server, by method, route and status.";
    HTTP_SECONDS = "gpubnb_http_request_duration_seconds" Seconds
        "Time from a request to the beginning of its answer, by route.";
    STORE_FILLED = "gpubnb_store_filled_ratio" Gauge "Used part of a store of files, from 0 to 1, by store.";
    DELIVERIES = "gpubnb_deliveries_total" Counter
        "Tries to deliver a notification, by channel and outcome: delivered, retried later, or given up.";
    OPEN_STREAMS = "gpubnb_http_open_streams" Gauge "Open live pages and streams.";
}
