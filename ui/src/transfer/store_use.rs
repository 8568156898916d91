//! How full each store of files is, and which accounts take most of it. For operators.

use gpubnb_events::AccountId;
use gpubnb_log::stream::{ARTIFACTS, INPUTS};
use serde::Serialize;
use utoipa::ToSchema;

use super::store::unavailable;
use crate::{app::App, error::Problem};

/// Most accounts in the list.
const LARGEST: usize = 10;

/// The use of a store of files.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoreUse {
    /// `INPUTS` or `ARTIFACTS`.
    pub(crate) store: String,
    /// Bytes that are taken.
    pub(crate) used: u64,
    /// Room in bytes; `null` if there is no bound.
    pub(crate) most: Option<u64>,
    /// Bytes of the files that accounts without money stored. They share one quarter of the store.
    pub(crate) without_money: u64,
    /// The accounts that take most, most first.
    pub(crate) largest: Vec<AccountUse>,
}

/// The use of a store by one account.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AccountUse {
    /// The account.
    #[schema(value_type = String, format = Uuid)]
    pub(crate) account: AccountId,
    /// Bytes. A small file counts 4 KiB.
    pub(crate) bytes: u64,
    /// Number of files.
    pub(crate) files: usize,
}

/// The use of each store.
pub(crate) async fn store_uses(app: &App) -> Result<Vec<StoreUse>, Problem> {
    let mut uses = Vec::new();
    for (store, files) in [(INPUTS, &app.inputs), (ARTIFACTS, &app.artifacts)] {
        let (room, usage) = tokio::try_join!(files.room(), files.usage()).map_err(unavailable)?;
        let account = |(account, used): (AccountId, gpubnb_files::UsedBytes)| AccountUse {
            account,
            bytes: used.bytes,
            files: used.files,
        };
        uses.push(StoreUse {
            store: store.to_owned(),
            used: room.used,
            most: room.most,
            without_money: usage.without_money().bytes,
            largest: usage.largest(LARGEST).into_iter().map(account).collect(),
        });
    }
    Ok(uses)
}
