//! The room of each account in OUTPUT. The output of an account's jobs may take a quarter of the stream at most, so
//! that one account does not push out the logs of all others. All jobs that cost nothing, of accounts without money,
//! share one room, because accounts are free.
//!
//! The bytes are counted in a bucket of the broker, for all replicas of the services together. A replica adds what it
//! has written after a mebibyte, or after some seconds. So a room may be exceeded by that much for each replica.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::jetstream::kv;
use gpubnb_events::{AccountId, Millis, Timestamp};
use gpubnb_runtime::rpc::RpcError;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The part of OUTPUT that a room has at most.
const SHARE: u64 = 4;
/// The parts into which the time is divided for which OUTPUT keeps messages. Bytes are forgotten by whole parts.
const SLICES: u64 = 8;
/// Written bytes that a replica adds to the bucket at once.
const FLUSH_BYTES: u64 = 1 << 20;
/// The time after which fewer bytes are added, and after which the bytes of the other replicas are read again.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// Most tries to change an entry that other replicas change.
const MAX_TRIES: u32 = 8;
/// Most rooms that are remembered.
const MAX_ROOMS: usize = 8_192;

/// The key of a room in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RoomKey(String);

impl RoomKey {
    /// The room of an account. `has_money` is false for an account that has none, and pays nothing for the job.
    pub(crate) fn of(account: AccountId, has_money: bool) -> Self {
        Self(if has_money { account.to_string() } else { "without-money".to_owned() })
    }
}

/// The entry of a room in the bucket: the bytes that were written in each slice of time, oldest first, with the time of
/// the slice's first byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Written(Vec<(Timestamp, u64)>);

impl Written {
    /// The bytes of the slices that OUTPUT may still have. `kept` is the time for which OUTPUT keeps messages.
    fn bytes(&self, now: Timestamp, kept: Millis) -> u64 {
        self.0.iter().filter(|(began, _)| is_kept(*began, now, kept)).map(|(_, bytes)| bytes).sum()
    }

    /// Adds bytes to the present slice, and forgets the slices that OUTPUT has no more.
    fn add(&mut self, now: Timestamp, kept: Millis, bytes: u64) {
        self.0.retain(|(began, _)| is_kept(*began, now, kept));
        match self.0.last_mut() {
            Some((began, sum)) if now < began.plus(slice_of(kept)) => *sum = sum.saturating_add(bytes),
            _ => self.0.push((now, bytes)),
        }
    }
}

/// The length of a slice.
fn slice_of(kept: Millis) -> Millis {
    Millis((kept.0 / SLICES).max(1))
}

/// True if OUTPUT may still have bytes of a slice that began at this time.
fn is_kept(began: Timestamp, now: Timestamp, kept: Millis) -> bool {
    now < began.plus(slice_of(kept)).plus(kept)
}

/// A room as this replica knows it: the bytes in the bucket, and the bytes that are not added to the bucket yet.
#[derive(Default)]
struct Room {
    /// The entry of the bucket when it was read or changed last.
    written: Written,
    /// Bytes that this replica has written, and not yet added to the bucket.
    pending: u64,
    /// When the entry was read or changed last.
    known_at: Option<Timestamp>,
}

/// The rooms of all accounts.
pub(crate) struct OutputRooms {
    bucket: kv::Store,
    /// Most bytes of a room.
    max_bytes: u64,
    /// The time for which OUTPUT keeps messages.
    kept: Millis,
    rooms: Mutex<HashMap<RoomKey, Room>>,
}

impl OutputRooms {
    /// `stream_bytes` is the size of OUTPUT, and `kept` the time for which the stream keeps messages.
    pub(crate) fn new(bucket: kv::Store, stream_bytes: u64, kept: Duration) -> Self {
        let kept = Millis(u64::try_from(kept.as_millis()).unwrap_or(u64::MAX));
        Self { bucket, max_bytes: stream_bytes / SHARE, kept, rooms: Mutex::default() }
    }

    /// Most bytes of a room.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// The bytes that still fit into a room.
    pub(crate) async fn left(&self, key: &RoomKey, now: Timestamp) -> Result<u64, RpcError> {
        let is_known = |room: &Room| room.known_at.is_some_and(|at| now.since(at).duration() < FLUSH_EVERY);
        if !self.rooms().get(key).is_some_and(is_known) {
            let written = self.entry(key).await?.map(|(written, _)| written).unwrap_or_default();
            self.set_known(key, written, now);
        }
        let used = |room: &Room| room.written.bytes(now, self.kept).saturating_add(room.pending);
        Ok(self.max_bytes.saturating_sub(self.rooms().get(key).map_or(0, used)))
    }

    /// Counts bytes that were written. Call [`Self::flush_many`] afterwards.
    pub(crate) fn count(&self, key: &RoomKey, bytes: u64) {
        let mut rooms = self.rooms();
        let room = rooms.entry(key.clone()).or_default();
        room.pending = room.pending.saturating_add(bytes);
    }

    /// Adds the counted bytes to the bucket if they are many.
    pub(crate) async fn flush_many(&self, key: &RoomKey, now: Timestamp) {
        if self.rooms().get(key).is_some_and(|room| room.pending >= FLUSH_BYTES) {
            self.flush(key, now).await;
        }
    }

    /// Adds the pending bytes of all rooms to the bucket now and then, and once more at shutdown.
    pub(crate) async fn run(&self, clock: &dyn gpubnb_events::Clock, shutdown: CancellationToken) {
        let mut is_over = false;
        while !is_over {
            is_over = shutdown.run_until_cancelled(tokio::time::sleep(FLUSH_EVERY)).await.is_none();
            let pending: Vec<_> =
                self.rooms().iter().filter(|(_, room)| room.pending > 0).map(|(key, _)| key.clone()).collect();
            for key in pending {
                self.flush(&key, clock.now()).await;
            }
        }
    }

    /// Adds the pending bytes of a room to the bucket. After a failure they stay pending.
    async fn flush(&self, key: &RoomKey, now: Timestamp) {
        let Some(bytes) = self.rooms().get_mut(key).map(|room| std::mem::take(&mut room.pending)) else { return };
        match self.add(key, bytes, now).await {
            Ok(written) => self.set_known(key, written, now),
            Err(problem) => {
                warn!(%problem, "the bytes of an account's output could not be counted; trying again");
                let mut rooms = self.rooms();
                let room = rooms.entry(key.clone()).or_default();
                room.pending = room.pending.saturating_add(bytes);
            }
        }
    }

    async fn add(&self, key: &RoomKey, bytes: u64, now: Timestamp) -> Result<Written, RpcError> {
        for _ in 0..MAX_TRIES {
            let (mut written, revision) = self.entry(key).await?.unwrap_or_default();
            written.add(now, self.kept, bytes);
            let entry = serde_json::to_vec(&written).map_err(|e| unavailable(&e))?;
            match self.bucket.update(&key.0, entry.into(), revision).await {
                Ok(_) => return Ok(written),
                Err(e) if e.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
                Err(e) => return Err(unavailable(&e)),
            }
        }
        Err(RpcError::Unavailable("other replicas keep changing the same room".to_owned()))
    }

    /// The entry of a room, with its revision; `None` if the room has none.
    async fn entry(&self, key: &RoomKey) -> Result<Option<(Written, u64)>, RpcError> {
        let entry = self.bucket.entry(&key.0).await.map_err(|e| unavailable(&e))?;
        // An entry that cannot be read is replaced: it only bounds what is kept.
        Ok(entry.map(|entry| (serde_json::from_slice(&entry.value).unwrap_or_default(), entry.revision)))
    }

    fn set_known(&self, key: &RoomKey, written: Written, now: Timestamp) {
        let mut rooms = self.rooms();
        if rooms.len() >= MAX_ROOMS {
            rooms.retain(|_, room| room.pending > 0);
        }
        let room = rooms.entry(key.clone()).or_default();
        (room.written, room.known_at) = (written, Some(now));
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<RoomKey, Room>> {
        // A poisoned lock is used anyway: a panic of another thread cannot leave the map half written.
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(e: &(dyn std::error::Error + 'static)) -> RpcError {
    RpcError::unavailable("the output cannot be stored now; try again", e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_forgotten_when_the_stream_has_them_no_more() {
        let (kept, at) = (Millis(800), |millis| Timestamp::EPOCH.plus(Millis(millis)));
        let mut written = Written::default();
        written.add(at(10_000), kept, 5);
        written.add(at(10_099), kept, 5);
        written.add(at(10_300), kept, 7);
        assert_eq!((written.bytes(at(10_300), kept), written.0.len()), (17, 2));
        assert_eq!([10_899, 10_900, 11_200].map(|millis| written.bytes(at(millis), kept)), [17, 7, 0]);
        written.add(at(11_000), kept, 1);
        assert_eq!(written.0, [(at(10_300), 7), (at(11_000), 1)]);
        // Another replica's clock may be behind.
        written.add(at(10_950), kept, 1);
        assert_eq!(written.0, [(at(10_300), 7), (at(11_000), 2)]);
        // The operator lets the stream keep messages for longer, or for a shorter time.
        assert_eq!(written.bytes(at(13_000), Millis(8_000)), 9);
        assert_eq!(written.bytes(at(11_050), Millis(80)), 2);
    }

    #[test]
    fn accounts_without_money_share_one_room() {
        let (a, b) = (AccountId::generate(), AccountId::generate());
        assert_ne!(RoomKey::of(a, true), RoomKey::of(b, true));
        assert_eq!(RoomKey::of(a, false), RoomKey::of(b, false));
    }
}
