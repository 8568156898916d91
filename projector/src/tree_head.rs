//! Signed tree heads (RFC 6962). A tree head is the root of the Merkle tree over the first `size` messages of the log.
//! The projector signs tree heads with its key and keeps them in the bucket CHECKPOINTS. Anybody may keep copies. If
//! the log is changed afterwards, its roots differ from the signed heads.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream::{self, kv};
use gpubnb_log::stream::CHECKPOINTS;
use gpubnb_model::merkle::{Merkle, StoredTree, roots};
use gpubnb_proof::{SignedTreeHead, merkle};
use gpubnb_runtime::metric;
use gpubnb_store;
use nkeys::KeyPair;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::fold::Tables;

/// The pause before the projector signs the next heads.
const SIGN_EVERY: Duration = Duration::from_secs(2);
/// The bucket's key for the newest head.
pub const LATEST: &str = "latest";

/// The bucket's key for the head of the first `size` messages.
pub fn bucket_key(size: u64) -> String {
    format!("head.{size}")
}

/// Reads a head from the bucket, if it exists.
pub async fn get(bucket: &kv::Store, name: &str) -> anyhow::Result<Option<SignedTreeHead>> {
    let found = bucket.get(name).await?;
    found.map(|bytes| serde_json::from_slice(&bytes).with_context(|| format!("{name} is not a tree head"))).transpose()
}

/// Signs and publishes every root that the Merkle model stores, and the newest root, until shutdown.
pub(crate) async fn publish(js: jetstream::Context, tables: Tables, key: KeyPair, shutdown: CancellationToken) {
    let (mut signed, mut latest) = (0, 0);
    while shutdown.run_until_cancelled(tokio::time::sleep(SIGN_EVERY)).await.is_some() {
        if let Err(e) = sign(&js, &tables, &key, &mut signed, &mut latest).await {
            warn!(error = format!("{e:#}"), "the tree head was not signed; trying again");
        }
    }
}

/// Signs the roots that the Merkle model stores for sizes above `signed`, and the root of all folded messages. Updates
/// `signed` (the size of the last signed stored root) and `latest` (the size of the newest signed head).
async fn sign(
    js: &jetstream::Context,
    tables: &Tables,
    key: &KeyPair,
    signed: &mut u64,
    latest: &mut u64,
) -> anyhow::Result<()> {
    let table = tables.of(&Merkle)?;
    let size = gpubnb_store::checkpoint(&table)?.0;
    if size <= *latest {
        return Ok(());
    }
    let bucket = js.get_key_value(CHECKPOINTS).await?;
    for stored_root in roots(&table, *signed) {
        let (size, root) = stored_root?;
        let head = SignedTreeHead::sign(size, &root, key)?;
        match bucket.create(bucket_key(size), serde_json::to_vec(&head)?.into()).await {
            Ok(_) => {}
            Err(e) if e.kind() == kv::CreateErrorKind::AlreadyExists => {
                let known = get(&bucket, &bucket_key(size)).await?;
                if known.is_some_and(|known| known.root != head.root) {
                    error!(size, "the log was changed after its head was signed: run `gpubnb-projector verify`");
                    bail!("the head of {size} messages has another root");
                }
            }
            Err(e) => return Err(e.into()),
        }
        *signed = size;
    }
    if let Some(known) = get(&bucket, LATEST).await? {
        // Another projector has folded more messages and signed their head. If instead the log has lost its last
        // messages, `gpubnb-projector verify` reports the loss.
        if known.size > size {
            set_signed_gauge(known.size);
            return Ok(());
        }
        if known.root != gpubnb_events::hex(merkle::root(&StoredTree(&table), 0, known.size)?) {
            error!(
                size = known.size,
                "the log was changed after its newest head was signed: run `gpubnb-projector verify`"
            );
            bail!("the newest head, of {} messages, has another root", known.size);
        }
    }
    let head = SignedTreeHead::sign(size, &merkle::root(&StoredTree(&table), 0, size)?, key)?;
    bucket.put(LATEST, serde_json::to_vec(&head)?.into()).await?;
    *latest = size;
    set_signed_gauge(size);
    Ok(())
}

/// Sets the gauge of the number of messages that the newest signed head covers.
// The number is exact in an f64 up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn set_signed_gauge(size: u64) {
    metrics::gauge!(metric::SIGNED).set(size as f64);
}
