//! Proofs that an event is in the log, and the signed tree heads that they end at. Whoever trusts nothing but the key of
//! the market's operator can check them, without a broker and without the rest of the log.
//!
//! Belongs here: the Merkle tree, signed tree heads, proofs, and the JSON form of a message. Must not come here: where
//! the hashes lie (`projector`), or how a message is fetched (`gpubnb-log`).

mod line;
pub mod merkle;

use gpubnb_events::{Event, Recorded, hex as hexadecimal, message::Hash};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

pub use line::MessageLine;

/// What the log was after its first messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SignedTreeHead {
    /// How many messages.
    pub size: u64,
    /// Root of their Merkle tree (RFC 6962), hexadecimal.
    pub root: String,
    /// Public key (an `NKey`) of who says so.
    pub key: String,
    /// Its Ed25519 signature of the size and the root, hexadecimal.
    pub signature: String,
}

impl SignedTreeHead {
    fn signed_text(size: u64, root: &str) -> Vec<u8> {
        format!("gpubnb tree head\n{size}\n{root}\n").into_bytes()
    }

    /// Signs a root.
    pub fn sign(size: u64, root: &Hash, key: &KeyPair) -> Result<Self, nkeys::error::Error> {
        let root = hexadecimal(root);
        let signature = hexadecimal(key.sign(&Self::signed_text(size, &root))?);
        Ok(Self { size, root, key: key.public_key(), signature })
    }

    /// Whether it is signed by the key it names.
    pub fn is_signed(&self) -> bool {
        is_signed(&self.key, &Self::signed_text(self.size, &self.root), &self.signature)
    }
}

/// Whether a signature (hexadecimal) is a key's (an `NKey`) of what is said.
pub fn is_signed(key: &str, text: &[u8], signature: &str) -> bool {
    // The library takes for granted that it is as long as it should be.
    let Some(signature) = hex::decode(signature).ok().filter(|bytes| bytes.len() == 64) else { return false };
    KeyPair::from_public_key(key).is_ok_and(|key| key.verify(text, &signature).is_ok())
}

/// A proof that a message is in the log (RFC 9162, 2.1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Proof {
    /// The message.
    #[schema(value_type = Object)]
    pub message: MessageLine,
    /// What its leaf is hashed with, from the leaf up, hexadecimal.
    pub path: Vec<String>,
    /// The head of the tree that it is in.
    pub head: SignedTreeHead,
}

/// Why a proof proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    /// It is no proof.
    #[error("the {0} cannot be read")]
    Unreadable(&'static str),
    /// Somebody else signed.
    #[error("the head is signed by {0}, not by the key you named")]
    OtherKey(String),
    /// Nobody did.
    #[error("the head's signature is not one of {0}")]
    NotSigned(String),
    /// It is of another message.
    #[error("the event is not the one that the head vouches for")]
    OtherEvent,
}

impl Proof {
    /// The message, if the head vouches for it; only heads of `key` are believed where one is named.
    pub fn check(&self, key: Option<&str>) -> Result<Recorded, NotProven> {
        let recorded = self.message.read().ok_or(NotProven::Unreadable("message"))?;
        let decoded = |text: &String| hex::decode(text).ok()?.try_into().ok();
        let path: Option<Vec<Hash>> = self.path.iter().map(decoded).collect();
        let path = path.ok_or(NotProven::Unreadable("path"))?;
        let SignedTreeHead { size, root, key: signer, .. } = &self.head;
        if key.is_some_and(|key| key != signer) {
            return Err(NotProven::OtherKey(signer.clone()));
        }
        if !self.head.is_signed() {
            return Err(NotProven::NotSigned(signer.clone()));
        }
        let index = recorded.seq.0.checked_sub(1).ok_or(NotProven::Unreadable("sequence"))?;
        let proven = merkle::proven(&recorded.leaf, index, *size, &path).map(hexadecimal);
        if proven.as_ref() == Some(root) { Ok(recorded) } else { Err(NotProven::OtherEvent) }
    }

    /// What it proves, in words.
    pub fn description(&self, key: Option<&str>) -> Result<String, NotProven> {
        let recorded = self.check(key)?;
        let name = recorded.event().map_or("a message that is no event", Event::wire_name);
        let SignedTreeHead { size, key, .. } = &self.head;
        let (at, seq) = (recorded.at, recorded.seq);
        Ok(format!("{name}, recorded {at}, is event {seq} of the log of {size} events, says {key}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_was_changed_is_not_signed() {
        let head = SignedTreeHead::sign(3, &[7; 32], &KeyPair::new_user()).unwrap();
        assert!(head.is_signed());
        assert!(!SignedTreeHead { size: 4, ..head.clone() }.is_signed());
        assert!(!SignedTreeHead { signature: head.signature[2..].to_owned(), ..head.clone() }.is_signed());
        assert!(!SignedTreeHead { key: KeyPair::new_user().public_key(), ..head }.is_signed());
    }
}
