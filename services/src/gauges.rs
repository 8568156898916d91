//! Gauges of the market for monitoring, taken from the replica's state every few seconds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gpubnb_domain::{
    World,
    job::Phase,
    machine::{Availability, Machine, Presence},
};
use gpubnb_events::Clock;
use gpubnb_runtime::metric;
use tokio_util::sync::CancellationToken;

use crate::{process::Leadership, replica::Replica};

const EVERY: Duration = Duration::from_secs(2);
const PHASES: [(Phase, &str); 6] = [
    (Phase::Queued, "queued"),
    (Phase::Assigned, "assigned"),
    (Phase::Accepted, "accepted"),
    (Phase::Running, "running"),
    (Phase::Collecting, "collecting"),
    (Phase::Ended, "ended"),
];
const PRESENCES: [(Presence, &str); 3] =
    [(Presence::Online, "online"), (Presence::Suspect, "suspect"), (Presence::Lost, "lost")];

/// Records the gauges until shutdown.
pub(crate) async fn record(
    replica: Arc<Replica>,
    clock: Arc<dyn Clock>,
    leadership: Leadership,
    shutdown: CancellationToken,
) {
    while shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        metrics::gauge!(metric::LEADER).set(if leadership.is_leader() { 1.0 } else { 0.0 });
        replica.read(|world| record_world(world, clock.as_ref()));
    }
}

// An f64 is exact up to 2^53: no count of jobs or machines is as large.
#[allow(clippy::cast_precision_loss)]
fn record_world(world: &World, clock: &dyn Clock) {
    let mut jobs: BTreeMap<&str, u64> = PHASES.iter().map(|(_, name)| (*name, 0)).collect();
    for job in world.jobs() {
        if let Some((_, name)) = PHASES.iter().find(|(phase, _)| *phase == job.phase) {
            *jobs.entry(name).or_default() += 1;
        }
    }
    for (state, count) in jobs {
        metrics::gauge!(metric::JOBS, "state" => state).set(count as f64);
    }
    // A machine in maintenance without jobs is not counted: its silence must not raise an alarm.
    let is_in_maintenance = |m: &Machine| m.availability == Availability::Maintenance && m.leases.is_empty();
    let is_counted = |m: &Machine| m.availability != Availability::Delisted && !is_in_maintenance(m);
    let on_market = || world.machines().filter(|(_, m)| is_counted(m));
    for (presence, name) in PRESENCES {
        let count = on_market().filter(|(_, m)| m.presence == presence).count();
        metrics::gauge!(metric::MACHINES, "presence" => name).set(count as f64);
    }
    let leases: usize = world.machines().map(|(_, m)| m.leases.len()).sum();
    metrics::gauge!(metric::LEASES).set(leases as f64);
    let oldest = world.oldest_queued();
    let waits = oldest.map_or(0, |job| clock.now().since(job.submitted_at).0);
    metrics::gauge!(metric::OLDEST_QUEUED).set(waits as f64 / 1_000.0);
    metrics::gauge!(metric::APPLIED).set(world.applied().0 as f64);
}
