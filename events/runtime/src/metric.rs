//! The metrics of the services: their names, by Prometheus's conventions, in one place. A dashboard or an alert names no
//! other (`tests/monitor.rs` looks).

/// What is counted or measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Seconds, in buckets.
    Seconds,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What kind it is of.
    pub kind: Kind,
    /// What it says, and its labels.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal $kind:ident $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+

        /// Every metric there is.
        pub const ALL: &[Metric] = &[$(Metric { name: $name, kind: Kind::$kind, help: $help }),+];
    };
}

metrics! {
    RPC_REQUESTS = "gpubnb_rpc_requests_total" Counter "Commands and queries that were answered, by endpoint and result.";
    RPC_SECONDS = "gpubnb_rpc_duration_seconds" Seconds "How long commands and queries took, by endpoint.";
    APPENDED = "gpubnb_events_appended_total" Counter "Events that were appended to MARKET, by event.";
    CONFLICTS = "gpubnb_append_conflicts_total" Counter "Decisions that were taken again because another was faster.";
    LEADER = "gpubnb_leader" Gauge "Whether this replica drives scheduler, settlement and watchdog.";
    JOBS = "gpubnb_jobs" Gauge "Jobs that are not settled, by state.";
    OLDEST_QUEUED = "gpubnb_oldest_queued_job_seconds" Gauge "How long the oldest job waits for a machine.";
    MACHINES = "gpubnb_machines" Gauge "Machines on the market, by presence.";
    LEASES = "gpubnb_live_leases" Gauge "Leases that are live.";
    APPLIED = "gpubnb_applied_sequence" Gauge "The last event that this process has taken in.";
    LAST = "gpubnb_market_last_sequence" Gauge "The last event in MARKET.";
    CHECKPOINT = "gpubnb_model_checkpoint_sequence" Gauge "The last event that a read model has taken in, by model.";
    STOPPED = "gpubnb_model_stopped" Gauge "Whether a read model stopped at an event, by model.";
    STREAM_MESSAGES = "gpubnb_stream_messages" Gauge "Messages in a stream, by stream.";
    STREAM_BYTES = "gpubnb_stream_bytes" Gauge "Bytes of a stream, by stream.";
    DISPATCH_BEHIND = "gpubnb_dispatch_behind_messages" Gauge "Messages of MARKET that the broker has not looked at for DISPATCH.";
    SIGNED = "gpubnb_signed_head_sequence" Gauge "The last event that a signed head of the log vouches for.";
    STUCK = "gpubnb_stuck_jobs" Gauge "Jobs that have been in one state for too long.";
    HTTP_REQUESTS = "gpubnb_http_requests_total" Counter "Requests of the web server, by method, route and status.";
    HTTP_SECONDS = "gpubnb_http_request_duration_seconds" Seconds "How long requests took until the answer began, by route.";
    OPEN_STREAMS = "gpubnb_http_open_streams" Gauge "Live pages and streams that are open.";
}
