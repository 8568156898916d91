//! The attempts that run on this machine, by their leases: how many there may be, and the state in which each should
//! be.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use gpubnb_events::{Clock as _, JobId, Lease, SystemClock, Timestamp, telemetry::RunningLease};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    desired_state::{DesiredState, StopReason},
    gpu_allocator::GpuAllocator,
};

/// The attempts on this machine. An attempt leaves the table when the platform has its report.
pub(crate) struct LeaseTable {
    slots: usize,
    entries: Mutex<BTreeMap<Lease, Entry>>,
    pub(crate) gpus: GpuAllocator,
}

struct Entry {
    job: JobId,
    since: Timestamp,
    /// Docker's id of the attempt's container.
    container: Option<String>,
    /// When the attempt ended, while its report is under way.
    ended_at: Option<Timestamp>,
    desired: watch::Sender<DesiredState>,
}

/// An attempt, as `gpubnb-provider status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AttemptStatus {
    pub(crate) job: JobId,
    pub(crate) lease: Lease,
    pub(crate) since: Timestamp,
    #[serde(default)]
    pub(crate) gpus: Vec<String>,
}

/// Why an attempt was not taken into the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// All slots are taken.
    Full,
    /// The attempt is in the table already: the broker delivered its message a second time.
    Already,
}

impl LeaseTable {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots: slots as usize, entries: Mutex::default(), gpus: GpuAllocator::default() }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Lease, Entry>> {
        // A panic elsewhere cannot leave a map half written.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new attempt, where a slot is free. The state in which it should be arrives through the receiver.
    pub(crate) fn take(&self, job: JobId, lease: Lease) -> Result<watch::Receiver<DesiredState>, NotTaken> {
        let mut entries = self.entries();
        if entries.contains_key(&lease) {
            return Err(NotTaken::Already);
        }
        if entries.len() >= self.slots {
            return Err(NotTaken::Full);
        }
        Ok(insert(&mut entries, job, lease))
    }

    /// Takes an attempt that a former run of the worker started, even where no slot is free.
    pub(crate) fn take_up_again(&self, job: JobId, lease: Lease) -> watch::Receiver<DesiredState> {
        insert(&mut self.entries(), job, lease)
    }

    /// Notes when an attempt ended. Its report is still to be delivered.
    pub(crate) fn set_ended(&self, lease: Lease, at: Timestamp) {
        if let Some(entry) = self.entries().get_mut(&lease) {
            entry.ended_at = Some(at);
        }
    }

    /// Removes an attempt, which frees its slot and its GPUs.
    pub(crate) fn release(&self, lease: Lease) {
        self.gpus.release(lease);
        self.entries().remove(&lease);
    }

    /// Asks an attempt to be in another state. A weaker request than the one before changes nothing.
    pub(crate) fn set_desired(&self, lease: Lease, desired: DesiredState) {
        if let Some(entry) = self.entries().get(&lease) {
            entry.desired.send_if_modified(|present| {
                let is_stronger = desired > *present;
                if is_stronger {
                    *present = desired;
                }
                is_stronger
            });
        }
    }

    /// Asks all attempts to be in another state.
    pub(crate) fn set_desired_of_all(&self, desired: DesiredState) {
        for running in self.running() {
            self.set_desired(running.lease, desired);
        }
    }

    /// Stops the attempts that have one of these GPUs, which have failed.
    pub(crate) fn stop_holders(&self, lost: &[String]) {
        for lease in self.gpus.holders(lost) {
            self.set_desired(lease, DesiredState::Stop(StopReason::GpuLost));
        }
    }

    /// Notes which container an attempt has.
    pub(crate) fn set_container(&self, lease: Lease, container: &str) {
        if let Some(entry) = self.entries().get_mut(&lease) {
            entry.container = Some(container.to_owned());
        }
    }

    /// The containers of all attempts.
    pub(crate) fn containers(&self) -> Vec<String> {
        self.entries().values().filter_map(|entry| entry.container.clone()).collect()
    }

    /// All attempts, for `gpubnb-provider status`.
    pub(crate) fn statuses(&self) -> Vec<AttemptStatus> {
        let status = |(lease, entry): (&Lease, &Entry)| AttemptStatus {
            job: entry.job,
            lease: *lease,
            since: entry.since,
            gpus: self.gpus.of(*lease),
        };
        self.entries().iter().map(status).collect()
    }

    /// All attempts, for heartbeats.
    pub(crate) fn running(&self) -> Vec<RunningLease> {
        let running =
            |(lease, entry): (&Lease, &Entry)| RunningLease { job: entry.job, lease: *lease, ended_at: entry.ended_at };
        self.entries().iter().map(running).collect()
    }
}

fn insert(entries: &mut BTreeMap<Lease, Entry>, job: JobId, lease: Lease) -> watch::Receiver<DesiredState> {
    let (desired, receiver) = watch::channel(DesiredState::Run);
    let entry = Entry { job, since: SystemClock.now(), container: None, ended_at: None, desired };
    entries.insert(lease, entry);
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::Seq;

    #[test]
    fn a_table_holds_as_many_attempts_as_it_has_slots_and_each_lease_once() {
        let leases = LeaseTable::new(1);
        let (job, one, two) = (JobId::generate(), Lease(Seq(1)), Lease(Seq(2)));
        leases.take(job, one).unwrap();
        assert_eq!(leases.take(job, one).unwrap_err(), NotTaken::Already);
        assert_eq!(leases.take(job, two).unwrap_err(), NotTaken::Full);
        leases.release(one);
        assert!(leases.take(job, two).is_ok());
    }

    #[test]
    fn a_weaker_request_changes_nothing() {
        let leases = LeaseTable::new(1);
        let lease = Lease(Seq(1));
        let desired = leases.take(JobId::generate(), lease).unwrap();
        leases.set_desired(lease, DesiredState::Abandon);
        leases.set_desired(lease, DesiredState::Run);
        assert_eq!(*desired.borrow(), DesiredState::Abandon);
    }

    #[test]
    fn a_lost_gpu_stops_its_holder_alone_and_a_release_frees_it() {
        let leases = LeaseTable::new(2);
        let (one, two) = (Lease(Seq(1)), Lease(Seq(2)));
        let gpus = ["a", "b"].map(ToOwned::to_owned);
        let (first, second) =
            (leases.take(JobId::generate(), one).unwrap(), leases.take(JobId::generate(), two).unwrap());
        leases.gpus.allocate(one, &gpus, 1).unwrap();
        leases.gpus.allocate(two, &gpus, 1).unwrap();
        leases.stop_holders(&gpus[..1]);
        assert_eq!(*first.borrow(), DesiredState::Stop(StopReason::GpuLost));
        assert_eq!(*second.borrow(), DesiredState::Run);
        leases.release(one);
        assert!(leases.gpus.holders(&gpus[..1]).is_empty());
    }
}
