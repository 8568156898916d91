//! The lease table: the attempts that run on this machine, by lease, with the desired state of each attempt. The number
//! of attempts is limited by the machine's slots.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use gpubnb_events::{Clock as _, JobId, Lease, SystemClock, Timestamp, telemetry::RunningLease};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    desired_state::{DesiredState, StopReason},
    gpu_allocator::GpuAllocator,
};

/// The attempts on this machine. An attempt leaves the table when the platform has its report, or its lease is over.
pub(crate) struct LeaseTable {
    /// Most attempts that run at the same time.
    slots: AtomicU32,
    entries: Mutex<BTreeMap<Lease, Entry>>,
    pub(crate) gpus: GpuAllocator,
}

struct Entry {
    job: JobId,
    /// When the attempt entered the table.
    since: Timestamp,
    /// Docker's id of the attempt's container.
    container: Option<String>,
    /// When the attempt ended. Set while the report is not delivered yet.
    ended_at: Option<Timestamp>,
    desired: watch::Sender<DesiredState>,
}

/// An attempt, as `gpubnb-provider status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AttemptStatus {
    pub(crate) job: JobId,
    pub(crate) lease: Lease,
    /// When this run of the worker took or resumed the attempt.
    pub(crate) since: Timestamp,
    /// The UUIDs of the attempt's GPUs.
    #[serde(default)]
    pub(crate) gpus: Vec<String>,
}

/// The reason why an attempt was not added to the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TakeError {
    /// All slots are in use.
    Full,
    /// The attempt is in the table already: the broker delivered its message a second time.
    Duplicate,
}

impl LeaseTable {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots: AtomicU32::new(slots), entries: Mutex::default(), gpus: GpuAllocator::default() }
    }

    /// Most attempts that run at the same time; 0 on a machine that takes no jobs.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.load(Ordering::Relaxed)
    }

    /// Changes the number of slots. Attempts that run already go on. A machine without slots keeps none.
    pub(crate) fn set_slots(&self, slots: u32) {
        if self.slots() > 0 {
            self.slots.store(slots, Ordering::Relaxed);
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Lease, Entry>> {
        // A poisoned lock is used anyway: a panic of another thread cannot leave the map half written.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a new attempt, if a slot is free. Returns a receiver for the attempt's desired state.
    pub(crate) fn take(&self, job: JobId, lease: Lease) -> Result<watch::Receiver<DesiredState>, TakeError> {
        let mut entries = self.entries();
        if entries.contains_key(&lease) {
            return Err(TakeError::Duplicate);
        }
        if entries.len() >= self.slots() as usize {
            return Err(TakeError::Full);
        }
        Ok(insert(&mut entries, job, lease))
    }

    /// Adds an attempt that a former run of the worker started, even if no slot is free. Returns a receiver for the
    /// attempt's desired state.
    pub(crate) fn resume(&self, job: JobId, lease: Lease) -> watch::Receiver<DesiredState> {
        insert(&mut self.entries(), job, lease)
    }

    /// Sets the time at which an attempt ended.
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

    /// Sets the desired state of an attempt. Does nothing if the current desired state is stronger.
    pub(crate) fn set_desired(&self, lease: Lease, desired: DesiredState) {
        if let Some(entry) = self.entries().get(&lease) {
            entry.desired.send_if_modified(|current| {
                let is_stronger = desired > *current;
                if is_stronger {
                    *current = desired;
                }
                is_stronger
            });
        }
    }

    /// Sets the desired state of all attempts.
    pub(crate) fn set_desired_of_all(&self, desired: DesiredState) {
        for running in self.running() {
            self.set_desired(running.lease, desired);
        }
    }

    /// Stops the attempts because the owner needs the machine: all of them, or those that have a GPU.
    pub(crate) fn preempt(&self, all: bool) {
        for running in self.running() {
            if all || self.gpus.has_any(running.lease) {
                self.set_desired(running.lease, DesiredState::Stop(StopReason::Preempted));
            }
        }
    }

    /// Stops the attempts that have one of these failed GPUs. `failed` are UUIDs.
    pub(crate) fn stop_holders(&self, failed: &[String]) {
        for lease in self.gpus.holders(failed) {
            self.set_desired(lease, DesiredState::Stop(StopReason::GpuLost));
        }
    }

    /// Sets the container of an attempt. `container` is Docker's id.
    pub(crate) fn set_container(&self, lease: Lease, container: &str) {
        if let Some(entry) = self.entries().get_mut(&lease) {
            entry.container = Some(container.to_owned());
        }
    }

    /// The ids of the containers of all attempts.
    pub(crate) fn containers(&self) -> Vec<String> {
        self.entries().values().filter_map(|entry| entry.container.clone()).collect()
    }

    /// The status of all attempts, for `gpubnb-provider status`.
    pub(crate) fn statuses(&self) -> Vec<AttemptStatus> {
        let status = |(lease, entry): (&Lease, &Entry)| AttemptStatus {
            job: entry.job,
            lease: *lease,
            since: entry.since,
            gpus: self.gpus.gpus_of(*lease),
        };
        self.entries().iter().map(status).collect()
    }

    /// All attempts, for heartbeats and for the reconciliation with the platform.
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
    fn a_lease_is_taken_once_and_only_if_a_slot_is_free() {
        let leases = LeaseTable::new(1);
        let (job, one, two) = (JobId::generate(), Lease(Seq(1)), Lease(Seq(2)));
        leases.take(job, one).unwrap();
        assert_eq!(leases.take(job, one).unwrap_err(), TakeError::Duplicate);
        assert_eq!(leases.take(job, two).unwrap_err(), TakeError::Full);
        leases.release(one);
        assert!(leases.take(job, two).is_ok());
    }

    #[test]
    fn a_weaker_desired_state_does_not_replace_a_stronger_one() {
        let leases = LeaseTable::new(1);
        let lease = Lease(Seq(1));
        let desired = leases.take(JobId::generate(), lease).unwrap();
        leases.set_desired(lease, DesiredState::Abandon);
        leases.set_desired(lease, DesiredState::Run);
        assert_eq!(*desired.borrow(), DesiredState::Abandon);
    }

    #[test]
    fn a_lost_gpu_stops_only_its_holder_and_a_release_frees_the_gpu() {
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

    #[test]
    fn an_owner_who_uses_a_gpu_stops_only_the_attempts_that_have_one() {
        let leases = LeaseTable::new(2);
        let (one, two) = (Lease(Seq(1)), Lease(Seq(2)));
        let (with, without) =
            (leases.take(JobId::generate(), one).unwrap(), leases.take(JobId::generate(), two).unwrap());
        leases.gpus.restore(one, vec!["a".to_owned()]);
        leases.gpus.restore(two, Vec::new());
        leases.preempt(false);
        assert_eq!(*with.borrow(), DesiredState::Stop(StopReason::Preempted));
        assert_eq!(*without.borrow(), DesiredState::Run);
        leases.preempt(true);
        assert_eq!(*without.borrow(), DesiredState::Stop(StopReason::Preempted));
    }
}
