//! The shares of a store of files: the room that one account may take, and the room that all accounts without money may
//! take together. Anybody can open any number of accounts without money, so a share for each of them would limit
//! nothing. When a share is full, the upload is refused with a message that names the share, long before the store is
//! full for everybody.

use axum::http::StatusCode;
use gpubnb_events::Lease;
use gpubnb_files::{Files, Owner};
use tracing::warn;

use super::store::unavailable;
use crate::{
    app::App,
    error::Problem,
    state::uploads::{self, Claim, Claims, Upload},
};

/// Each share is one quarter of the store.
const SHARES: u64 = 4;
/// The least that a file counts, in bytes, as in the listing of a store (`ui/files/src/usage.rs`).
pub(super) const LEAST_BYTES: u64 = 4 << 10;
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

/// An upload that claims room.
pub(super) struct NewUpload {
    /// The name of the file in the store.
    pub(super) file: String,
    pub(super) owner: Owner,
    pub(super) bytes: u64,
    /// The number of files.
    pub(super) files: usize,
    /// The bytes of stored files that this upload replaces, as they count in a share.
    pub(super) replaced: u64,
    /// The attempt that uploads, and the most bytes that it may upload; `None` for an input.
    pub(super) attempt: Option<(Lease, u64)>,
}

/// Claims room for an upload, or refuses the file before its upload begins. A file that the store refused in the middle
/// would leave its first pieces behind.
pub(super) async fn claim(app: &App, store: Store<'_>, new: NewUpload) -> Result<Claim, Problem> {
    let upload = Upload::new(&new.file, new.owner, new.bytes, new.attempt.map(|(lease, _)| lease)).of_files(new.files);
    let _turn = app.uploads.turn(store.name).await?;
    for _ in 0..uploads::MAX_TRIES {
        let (claims, revision) = app.uploads.read(store.name).await?;
        fits(app, store, &new, &claims).await?;
        if let Some(claim) = app.uploads.add(store.name, (claims, revision), &upload).await? {
            return Ok(claim);
        }
    }
    Err(uploads::busy())
}

/// Refuses an upload that runs already, or that has no room beside the stored files and the claims of other uploads.
async fn fits(app: &App, store: Store<'_>, new: &NewUpload, claims: &Claims) -> Result<(), Problem> {
    match new.attempt {
        // A worker takes a conflict for a sign that the file is stored.
        None if claims.has(&new.file) => {
            let detail = "A file with this id is being uploaded: wait for its end.";
            return Err(Problem::new(StatusCode::CONFLICT, "InProgress", detail));
        }
        None => {}
        Some((lease, max_bytes)) => {
            let stored = app.uploads.stored_by(lease).await?;
            let wanted = stored.saturating_add(new.bytes);
            if wanted > max_bytes {
                return Err(Problem::too_large());
            }
            // Other files of the attempt may still be refused, or break off.
            if wanted.saturating_add(claims.of_attempt(lease, &new.file)) > max_bytes {
                return Err(uploads::too_many());
            }
        }
    }
    let (result, running) = (fits_store(store, new, claims).await, claims.without_stored());
    let (Err(_), Some(running), Some(newest)) = (&result, running, claims.newest_stored()) else { return result };
    // The listing of the store may have the files that are stored already. A listing that began later certainly has
    // them.
    if store.files.usage_age().is_none_or(|age| age >= app.now().since(newest).duration()) {
        store.files.forget_usage();
    }
    fits_store(store, new, &running).await
}

/// Refuses an upload that has no room beside the stored files and the claims of other uploads.
async fn fits_store(store: Store<'_>, new: &NewUpload, claims: &Claims) -> Result<(), Problem> {
    let room = store.files.room().await.map_err(unavailable)?;
    let needed = room.used.saturating_add(claims.total(with_pieces)).saturating_add(with_pieces(new.bytes));
    if room.most.is_some_and(|most| needed > most) {
        let (bytes, used, most) = (new.bytes, room.used, room.most);
        warn!(store = store.name, bytes, used, most, "the store is full: a file is refused");
        let detail =
            "The market has no room for more files at the moment. Files are removed by and by: try again later.";
        return Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "StoreFull", detail));
    }
    let no_room = |detail: &str| {
        let detail = format!("{detail} Each file is removed after {} days.", store.days);
        Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "NoRoom", detail))
    };
    let usage = store.files.usage().await.map_err(unavailable)?;
    let Owner { account, has_money } = new.owner;
    let share = room.most.map_or(u64::MAX, |most| most / SHARES);
    let own_share = share.min(store.most);
    let sum = |stored: u64, claimed: u64| {
        stored.saturating_sub(new.replaced).saturating_add(claimed).saturating_add(counted(new.bytes))
    };
    if usage.of(account).files + claims.files_of(account) + new.files > store.most_files {
        return no_room(&format!("You may have {} files.", store.most_files));
    }
    if sum(usage.of(account).bytes, claims.of(account, counted)) > own_share {
        return no_room(&format!("Your files may take {} MiB together.", own_share >> 20));
    }
    if !has_money && sum(usage.without_money().bytes, claims.without_money(counted)) > share {
        return no_room("The room for files of accounts without money is full. Add funds on the page Wallet, or wait.");
    }
    Ok(())
}

/// The bytes that a file counts in its share.
fn counted(bytes: u64) -> u64 {
    bytes.max(LEAST_BYTES)
}

/// The bytes that a file takes of a store: each piece of the file takes a little more than its bytes.
fn with_pieces(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 50).saturating_add(PIECES_RESERVE)
}
