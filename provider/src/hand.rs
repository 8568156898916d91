//! What the worker has in hand: its slots are its own, and it declines what does not fit.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use gpubnb_events::{Clock as _, JobId, Lease, SystemClock, Timestamp, command::DesiredLease, telemetry::RunningLease};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Attempts in hand. An attempt leaves when its outcome is recorded.
pub(crate) struct Hand {
    slots: usize,
    held: Mutex<BTreeMap<Lease, Held>>,
}

struct Held {
    job: JobId,
    since: Timestamp,
    gpus: Vec<String>,
    /// Docker's id of its container.
    container: Option<String>,
    /// When it ended, while that is in the outbox.
    ended_at: Option<Timestamp>,
    wish: watch::Sender<Wish>,
}

/// What is wanted of an attempt, each stronger than the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    /// Go on.
    Keep,
    /// Stop: the consumer cancelled.
    Cancel,
    /// Stop: the owner wants the machine.
    Preempt,
    /// Stop: its GPU is gone.
    GpuLost,
    /// Stop and forget: whatever it still does counts for nothing.
    Abandon,
}

impl From<DesiredLease> for Wish {
    fn from(wish: DesiredLease) -> Self {
        match wish {
            DesiredLease::Keep => Self::Keep,
            DesiredLease::Cancel => Self::Cancel,
            DesiredLease::Abandon => Self::Abandon,
        }
    }
}

/// An attempt in hand, for whoever wants to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InHand {
    pub(crate) job: JobId,
    pub(crate) lease: Lease,
    pub(crate) since: Timestamp,
    #[serde(default)]
    pub(crate) gpus: Vec<String>,
}

/// Why an attempt was not taken in hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// All slots are taken.
    Full,
    /// It is in hand already: the message was given out again.
    Already,
}

impl Held {
    fn new(job: JobId, wish: watch::Sender<Wish>) -> Self {
        Self { job, since: SystemClock.now(), gpus: Vec::new(), container: None, ended_at: None, wish }
    }
}

impl Hand {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots: slots as usize, held: Mutex::default() }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<Lease, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an attempt in hand. What the platform wants of it arrives through the receiver.
    pub(crate) fn take(&self, job: JobId, lease: Lease) -> Result<watch::Receiver<Wish>, NotTaken> {
        let mut held = self.held();
        if held.contains_key(&lease) {
            return Err(NotTaken::Already);
        }
        if held.len() >= self.slots {
            return Err(NotTaken::Full);
        }
        let (wish, receiver) = watch::channel(Wish::Keep);
        held.insert(lease, Held::new(job, wish));
        Ok(receiver)
    }

    /// Takes up an attempt that runs already, whatever else is in hand.
    pub(crate) fn take_again(&self, job: JobId, lease: Lease) -> watch::Receiver<Wish> {
        let (wish, receiver) = watch::channel(Wish::Keep);
        self.held().insert(lease, Held::new(job, wish));
        receiver
    }

    /// An attempt has ended, and the market is still to be told.
    pub(crate) fn ended(&self, lease: Lease, at: Timestamp) {
        if let Some(held) = self.held().get_mut(&lease) {
            held.ended_at = Some(at);
        }
    }

    /// Lets go of an attempt.
    pub(crate) fn release(&self, lease: Lease) {
        self.held().remove(&lease);
    }

    /// Passes on what is wanted. A wish to stop is never taken back, and a weaker one changes nothing.
    pub(crate) fn wish(&self, lease: Lease, wish: Wish) {
        if let Some(held) = self.held().get(&lease) {
            held.wish.send_if_modified(|now| {
                let stronger = wish > *now;
                if stronger {
                    *now = wish;
                }
                stronger
            });
        }
    }

    /// The same, of all that is in hand.
    pub(crate) fn wish_all(&self, wish: Wish) {
        for held in self.leases() {
            self.wish(held.lease, wish);
        }
    }

    /// Of all that hold one of these GPUs.
    pub(crate) fn wish_holders(&self, gpus: &[String], wish: Wish) {
        for held in self.in_hand() {
            if held.gpus.iter().any(|gpu| gpus.contains(gpu)) {
                self.wish(held.lease, wish);
            }
        }
    }

    /// Gives an attempt GPUs of these that no other holds; `None` where there are too few.
    pub(crate) fn allot(&self, lease: Lease, fitting: &[String], count: usize) -> Option<Vec<String>> {
        let mut held = self.held();
        let free = |gpu: &&String| held.iter().all(|(other, h)| *other == lease || !h.gpus.contains(gpu));
        let chosen: Vec<String> = fitting.iter().filter(free).take(count).cloned().collect();
        if chosen.len() < count {
            return None;
        }
        held.get_mut(&lease)?.gpus.clone_from(&chosen);
        Some(chosen)
    }

    /// Notes which GPUs an attempt has that was taken up again.
    pub(crate) fn holds(&self, lease: Lease, gpus: Vec<String>) {
        if let Some(held) = self.held().get_mut(&lease) {
            held.gpus = gpus;
        }
    }

    /// Notes which container an attempt has.
    pub(crate) fn runs_in(&self, lease: Lease, container: &str) {
        if let Some(held) = self.held().get_mut(&lease) {
            held.container = Some(container.to_owned());
        }
    }

    /// The containers of all attempts in hand.
    pub(crate) fn containers(&self) -> Vec<String> {
        self.held().values().filter_map(|held| held.container.clone()).collect()
    }

    /// What is in hand, with more of it.
    pub(crate) fn in_hand(&self) -> Vec<InHand> {
        let all = self.held();
        let of = |(lease, held): (&Lease, &Held)| InHand {
            job: held.job,
            lease: *lease,
            since: held.since,
            gpus: held.gpus.clone(),
        };
        all.iter().map(of).collect()
    }

    /// What is in hand.
    pub(crate) fn leases(&self) -> Vec<RunningLease> {
        let of =
            |(lease, held): (&Lease, &Held)| RunningLease { job: held.job, lease: *lease, ended_at: held.ended_at };
        self.held().iter().map(of).collect()
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
        hand.wish(one, Wish::Abandon);
        hand.wish(one, Wish::Keep);
        assert_eq!(*wish.borrow(), Wish::Abandon);
        hand.release(one);
        assert!(hand.take(job, two).is_ok());
    }

    #[test]
    fn a_gpu_is_one_attempts_at_a_time() {
        let hand = Hand::new(3);
        let gpus = ["a", "b", "c"].map(ToOwned::to_owned);
        let lease = |n| {
            let lease = Lease(Seq(n));
            hand.take(JobId::generate(), lease).unwrap();
            lease
        };
        let (one, two, three) = (lease(1), lease(2), lease(3));
        assert_eq!(hand.allot(one, &gpus, 2).unwrap(), ["a", "b"]);
        assert!(hand.allot(two, &gpus, 2).is_none());
        assert_eq!(hand.allot(three, &gpus, 1).unwrap(), ["c"]);
        hand.release(one);
        assert_eq!(hand.allot(two, &gpus, 2).unwrap(), ["a", "b"]);
    }
}
