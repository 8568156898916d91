//! What the worker has in hand: its slots are its own, and it declines what does not fit.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use gpubnb_events::{JobId, Lease, command::LeaseWish, telemetry::RunningLease};
use tokio::sync::watch;

/// Attempts in hand. An attempt leaves when its outcome is recorded.
pub(crate) struct Hand {
    slots: usize,
    held: Mutex<BTreeMap<Lease, Held>>,
}

struct Held {
    job: JobId,
    wish: watch::Sender<LeaseWish>,
}

/// Why an attempt was not taken in hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// All slots are taken.
    Full,
    /// It is in hand already: the message was given out again.
    Already,
}

impl Hand {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots: slots as usize, held: Mutex::default() }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<Lease, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an attempt in hand. What the platform wants of it arrives through the receiver.
    pub(crate) fn take(&self, job: JobId, lease: Lease) -> Result<watch::Receiver<LeaseWish>, NotTaken> {
        let mut held = self.held();
        if held.contains_key(&lease) {
            return Err(NotTaken::Already);
        }
        if held.len() >= self.slots {
            return Err(NotTaken::Full);
        }
        let (wish, receiver) = watch::channel(LeaseWish::Keep);
        held.insert(lease, Held { job, wish });
        Ok(receiver)
    }

    /// Takes up an attempt that runs already, whatever else is in hand.
    pub(crate) fn take_again(&self, job: JobId, lease: Lease) -> watch::Receiver<LeaseWish> {
        let (wish, receiver) = watch::channel(LeaseWish::Keep);
        self.held().insert(lease, Held { job, wish });
        receiver
    }

    /// Lets go of an attempt.
    pub(crate) fn release(&self, lease: Lease) {
        self.held().remove(&lease);
    }

    /// Passes on what the platform wants. A wish to stop is never taken back.
    pub(crate) fn wish(&self, lease: Lease, wish: LeaseWish) {
        if let Some(held) = self.held().get(&lease) {
            held.wish.send_if_modified(|now| {
                let stronger = *now != wish && wish != LeaseWish::Keep && *now != LeaseWish::Abandon;
                if stronger {
                    *now = wish;
                }
                stronger
            });
        }
    }

    /// What is in hand.
    pub(crate) fn leases(&self) -> Vec<RunningLease> {
        self.held().iter().map(|(lease, held)| RunningLease { job: held.job, lease: *lease }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::Seq;

    #[test]
    fn a_hand_holds_as_many_as_it_has_slots_and_each_lease_once() {
        let hand = Hand::new(1);
        let (job, one, two) = (JobId::generate(), Lease(Seq(1)), Lease(Seq(2)));
        let wish = hand.take(job, one).unwrap();
        assert_eq!(hand.take(job, one).unwrap_err(), NotTaken::Already);
        assert_eq!(hand.take(job, two).unwrap_err(), NotTaken::Full);
        hand.wish(one, LeaseWish::Abandon);
        hand.wish(one, LeaseWish::Keep);
        assert_eq!(*wish.borrow(), LeaseWish::Abandon);
        hand.release(one);
        assert!(hand.take(job, two).is_ok());
    }
}
