//! `prove` and `check-proof`: that one event is in the log, under a signature, for whoever has the proof.

use std::path::Path;

use anyhow::{Context as _, ensure};
use gpubnb_events::{Actor, Log, Seq, archive::Line, log::Hash, rpc::Caller, stream::CHECKPOINTS};
use serde::{Deserialize, Serialize};

use crate::{
    client::QueryClient,
    heads::{self, Head, LATEST},
    merkle,
};

/// A proof that an event is in the log (RFC 9162, 2.1.3).
#[derive(Serialize, Deserialize)]
struct Proof {
    /// The message.
    message: Line,
    /// What its leaf is hashed with, from the leaf up, hexadecimal.
    path: Vec<String>,
    /// The head of the tree that it is in.
    head: Head,
}

pub(super) async fn prove(client: async_nats::Client, log: &Log, seq: Seq) -> anyhow::Result<()> {
    let message = log.get_raw(seq).await?.with_context(|| format!("there is no event {seq}"))?;
    let bucket = log.jetstream().get_key_value(CHECKPOINTS).await.context("the signed heads cannot be read")?;
    let head = heads::get(&bucket, LATEST).await?.filter(|head| head.size >= seq.0);
    let head = head.context("no signed head holds it yet: try again in some seconds")?;
    let queries = QueryClient::new(Caller::new(client));
    let path = queries.inclusion(Actor::Operator(None), seq, head.size).await?;
    let proof = Proof { message: Line::from(&message), path, head };
    told(&proof, None).context("the projector's proof does not hold: run `gpubnb-projector verify`")?;
    println!("{}", serde_json::to_string_pretty(&proof)?);
    Ok(())
}

pub(super) fn check(file: &Path, key: Option<&str>) -> anyhow::Result<()> {
    let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let proof: Proof = serde_json::from_slice(&text).context("this is no proof")?;
    println!("{}", told(&proof, key)?);
    Ok(())
}

/// What a proof proves, in words.
fn told(proof: &Proof, key: Option<&str>) -> anyhow::Result<String> {
    let raw = proof.message.clone().raw().context("the message cannot be read")?;
    let decoded = |text: &String| hex::decode(text).ok()?.try_into().ok();
    let path: Option<Vec<Hash>> = proof.path.iter().map(decoded).collect();
    let path = path.context("the path is not made of hashes")?;
    let Head { size, root, key: signer, .. } = &proof.head;
    ensure!(key.is_none_or(|key| key == signer), "the head is signed by {signer}, not by the key you named");
    ensure!(proof.head.is_signed(), "the head's signature is not one of {signer}");
    let index = raw.seq.0.checked_sub(1).context("sequences begin at one")?;
    let proven = merkle::proven(&raw.leaf(), index, *size, &path).map(gpubnb_events::hex);
    ensure!(proven.as_ref() == Some(root), "the event is not the one that the head vouches for");
    let recorded = raw.read();
    let name = recorded.event().map_or_else(|| "a message that is no event", gpubnb_events::Event::wire_name);
    Ok(format!("{name}, recorded {}, is event {} of the log of {size} events, says {signer}", recorded.at, raw.seq))
}
