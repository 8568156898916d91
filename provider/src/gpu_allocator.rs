//! Allocates the GPUs of this machine to its attempts. A GPU belongs to one attempt at a time.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use gpubnb_events::Lease;

/// The UUIDs of each attempt's GPUs, by lease.
#[derive(Debug, Default)]
pub(crate) struct GpuAllocator(Mutex<BTreeMap<Lease, Vec<String>>>);

impl GpuAllocator {
    fn allocations(&self) -> MutexGuard<'_, BTreeMap<Lease, Vec<String>>> {
        // A poisoned lock is used anyway: a panic of another thread cannot leave the map half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates `count` GPUs of `fitting` that no other attempt has. Returns their UUIDs. Returns `None`, and
    /// allocates nothing, if fewer GPUs are free.
    pub(crate) fn allocate(&self, lease: Lease, fitting: &[String], count: usize) -> Option<Vec<String>> {
        let mut allocations = self.allocations();
        let is_free = |gpu: &&String| allocations.iter().all(|(other, gpus)| *other == lease || !gpus.contains(gpu));
        let chosen: Vec<String> = fitting.iter().filter(is_free).take(count).cloned().collect();
        if chosen.len() < count {
            return None;
        }
        allocations.insert(lease, chosen.clone());
        Some(chosen)
    }

    /// Restores the allocation of an attempt that a former run of the worker started.
    pub(crate) fn restore(&self, lease: Lease, gpus: Vec<String>) {
        self.allocations().insert(lease, gpus);
    }

    /// Frees the GPUs of an attempt.
    pub(crate) fn release(&self, lease: Lease) {
        self.allocations().remove(&lease);
    }

    /// The UUIDs of an attempt's GPUs; empty if the attempt has none.
    pub(crate) fn gpus_of(&self, lease: Lease) -> Vec<String> {
        self.allocations().get(&lease).cloned().unwrap_or_default()
    }

    /// Returns true if an attempt has a GPU.
    pub(crate) fn has_any(&self, lease: Lease) -> bool {
        self.allocations().get(&lease).is_some_and(|gpus| !gpus.is_empty())
    }

    /// The leases of the attempts that have at least one of these GPUs.
    pub(crate) fn holders(&self, gpus: &[String]) -> Vec<Lease> {
        let allocations = self.allocations();
        let holds = |(lease, own): (&Lease, &Vec<String>)| own.iter().any(|gpu| gpus.contains(gpu)).then_some(*lease);
        allocations.iter().filter_map(holds).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::Seq;

    #[test]
    fn a_gpu_belongs_to_one_attempt_at_a_time() {
        let allocator = GpuAllocator::default();
        let gpus = ["a", "b", "c"].map(ToOwned::to_owned);
        let [one, two, three] = [1, 2, 3].map(|n| Lease(Seq(n)));
        assert_eq!(allocator.allocate(one, &gpus, 2).unwrap(), ["a", "b"]);
        assert_eq!(
            allocator.allocate(one, &gpus, 2).unwrap(),
            ["a", "b"],
            "a second allocation of the same attempt returns the same GPUs"
        );
        assert!(allocator.allocate(two, &gpus, 2).is_none());
        assert!(allocator.gpus_of(two).is_empty(), "a refusal allocates nothing");
        assert_eq!(allocator.allocate(three, &gpus, 1).unwrap(), ["c"]);
        assert_eq!(allocator.holders(&gpus[1..]), [one, three]);
        allocator.release(one);
        assert_eq!(allocator.allocate(two, &gpus, 2).unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_restored_allocation_is_not_given_to_another_attempt() {
        let allocator = GpuAllocator::default();
        allocator.restore(Lease(Seq(1)), vec!["a".to_owned()]);
        assert!(allocator.allocate(Lease(Seq(2)), &["a".to_owned()], 1).is_none());
    }
}
