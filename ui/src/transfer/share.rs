//! The shares of a store of files: the room that one account may take, and the room that all accounts without money may
//! take together. Anybody can open any number of accounts without money, so a share for each of them would limit
//! nothing. When a share is full, the upload is refused with a message that names the share, long before the store is
//! full for everybody.

use axum::http::StatusCode;
use gpubnb_files::{Files, Owner};
use tracing::warn;

use super::store::unavailable;
use crate::{app::App, error::Problem, state::Reservation};

/// Each share is one quarter of the store.
const SHARES: u64 = 4;
/// The least that a file counts, in bytes, as in the listing of a store (`ui/files/src/usage.rs`).
const LEAST_BYTES: u64 = 4 << 10;
/// Bytes that the descriptions of a file and of its parts take at most.
const PIECES_RESERVE: u64 = 64 * 1024;

/// A store of files, as its shares see it.
#[derive(Clone, Copy)]
pub(super) struct Store<'a> {
    pub(super) files: &'a Files,
    /// The name of the store in the quota.
    pub(super) name: &'static str,
    /// Most bytes of one account, if that is less than its share.
    pub(super) most: u64,
    /// Most files of one account.
    pub(super) most_files: usize,
    /// Days after which a file is removed.
    pub(super) days: u32,
}

/// The room that an upload in progress takes of its shares.
#[must_use]
pub(super) struct Claim {
    _room: Reservation,
    _own: Reservation,
    _without_money: Option<Reservation>,
}

/// Reserves room in a store for a file of this size, or refuses the file before its upload begins. A file that the
/// store refused in the middle would leave its first pieces behind. Also returns the size of the store in bytes; `None`
/// if the store has no limit.
async fn reserve_room(app: &App, store: Store<'_>, bytes: u64) -> Result<(Option<u64>, Reservation), Problem> {
    let room = store.files.room().await.map_err(unavailable)?;
    // Each piece of a file takes a little more than its bytes.
    let taken = bytes.saturating_add(bytes / 50).saturating_add(PIECES_RESERVE);
    let free = room.most.map_or(u64::MAX, |most| most.saturating_sub(room.used));
    if let Some(reservation) = app.upload_quota.reserve(store.name.to_owned(), taken, free) {
        return Ok((room.most, reservation));
    }
    warn!(store = store.name, bytes, used = room.used, most = room.most, "the store is full: a file is refused");
    let detail = "The market has no room for more files at the moment. Files are removed by and by: try again later.";
    Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "StoreFull", detail))
}

/// Claims room for an upload of an account. The claim is made before the stored files are counted, so that two uploads
/// cannot use the same free bytes.
pub(super) async fn claim(app: &App, store: Store<'_>, owner: Owner, bytes: u64) -> Result<Claim, Problem> {
    let account = owner.account;
    let (most, room) = reserve_room(app, store, bytes).await?;
    let share = most.map_or(u64::MAX, |most| most / SHARES);
    let own_share = share.min(store.most);
    let counted = bytes.max(LEAST_BYTES);
    let no_room = |detail: &str| {
        let detail = format!("{detail} Each file is removed after {} days.", store.days);
        Problem::new(StatusCode::INSUFFICIENT_STORAGE, "NoRoom", detail)
    };
    let own_full = || no_room(&format!("Your files may take {} MiB together.", own_share >> 20));
    let shared_full =
        || no_room("The room for files of accounts without money is full. Add funds on the page Wallet, or wait.");
    let (own_key, shared_key) = (format!("{}/{account}", store.name), format!("{}/without money", store.name));
    let own = app.upload_quota.reserve(own_key.clone(), counted, own_share).ok_or_else(own_full)?;
    let without_money = if owner.has_money {
        None
    } else {
        Some(app.upload_quota.reserve(shared_key.clone(), counted, share).ok_or_else(shared_full)?)
    };
    let usage = store.files.usage().await.map_err(unavailable)?;
    let (stored, free) = (usage.of(account), usage.without_money());
    let fits = |stored: u64, key: &str, most: u64| stored.saturating_add(app.upload_quota.reserved(key)) <= most;
    if stored.files >= store.most_files {
        return Err(no_room(&format!("You may have {} files.", store.most_files)));
    }
    if !fits(stored.bytes, &own_key, own_share) {
        return Err(own_full());
    }
    if !owner.has_money && !fits(free.bytes, &shared_key, share) {
        return Err(shared_full());
    }
    Ok(Claim { _room: room, _own: own, _without_money: without_money })
}
