//! Signed tree heads (RFC 6962): the projector signs, with its own key, the root of the log's Merkle tree. The heads
//! are kept in a bucket beside the log, and anybody may keep copies elsewhere. Whoever changes the log afterwards
//! cannot make the old heads agree with it.

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

/// How often the projector looks for a new root to sign.
const LOOK: Duration = Duration::from_secs(2);
/// The key of the newest head in the bucket.
pub const LATEST: &str = "latest";

/// The key of the head of the first `size` messages.
pub fn name(size: u64) -> String {
    format!("head.{size}")
}

/// A head from the bucket, if there is one.
pub async fn get(bucket: &kv::Store, name: &str) -> anyhow::Result<Option<SignedTreeHead>> {
    let found = bucket.get(name).await?;
    found.map(|bytes| serde_json::from_slice(&bytes).with_context(|| format!("{name} is no head"))).transpose()
}

/// Signs each stored root once it is there, and the newest root; until shutdown.
pub(crate) async fn publish(js: jetstream::Context, tables: Tables, key: KeyPair, shutdown: CancellationToken) {
    let (mut signed, mut latest) = (0, 0);
    while shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        if let Err(e) = sign(&js, &tables, &key, &mut signed, &mut latest).await {
            warn!(error = format!("{e:#}"), "the tree head is signed later");
        }
    }
}

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
    for kept in roots(&table, *signed) {
        let (size, root) = kept?;
        let head = SignedTreeHead::sign(size, &root, key)?;
        match bucket.create(name(size), serde_json::to_vec(&head)?.into()).await {
            Ok(_) => {}
            Err(e) if e.kind() == kv::CreateErrorKind::AlreadyExists => {
                let known = get(&bucket, &name(size)).await?;
                if known.is_some_and(|known| known.root != head.root) {
                    error!(size, "the log is not what it was when its head was signed: run `gpubnb-projector verify`");
                    bail!("the head of {size} has another root");
                }
            }
            Err(e) => return Err(e.into()),
        }
        *signed = size;
    }
    if let Some(known) = get(&bucket, LATEST).await? {
        // Another projector is further ahead; or the log has lost its end, which a verification reports.
        if known.size > size {
            show_signed(known.size);
            return Ok(());
        }
        if known.root != gpubnb_events::hex(merkle::root(&StoredTree(&table), 0, known.size)?) {
            error!(
                size = known.size,
                "the log is not what it was when its newest head was signed: run `gpubnb-projector verify`"
            );
            bail!("the newest head, of {}, has another root", known.size);
        }
    }
    let head = SignedTreeHead::sign(size, &merkle::root(&StoredTree(&table), 0, size)?, key)?;
    bucket.put(LATEST, serde_json::to_vec(&head)?.into()).await?;
    *latest = size;
    show_signed(size);
    Ok(())
}

/// Shows monitoring how far the log is signed.
// Exact in an f64 up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn show_signed(size: u64) {
    metrics::gauge!(metric::SIGNED).set(size as f64);
}
