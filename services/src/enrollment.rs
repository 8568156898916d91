//! Enrollments: the one-time codes of owners, and the public key of each machine. They are in a key-value bucket and
//! not in the log, because a code is a secret, and a revoked key must become invalid at once.

use async_nats::jetstream::{self, kv};
use futures_util::TryStreamExt;
use gpubnb_events::{
    AccountId, MachineId, Millis, Refusal, RefusalKind, Seq, Timestamp,
    command::{EnrollmentCode, RedeemEnrollment},
};
use gpubnb_log::stream::ENROLLMENTS;
use gpubnb_runtime::rpc::RpcError;
use rand::RngExt as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::credentials::is_signed_by;

/// Lifetime of a code. The code is redeemed when a machine enrolls with it.
const CODE_LIFETIME: Millis = Millis(3_600_000);
/// An owner can get at most this many codes within the lifetime of a code, used or not.
const MAX_CODES: usize = 10;
/// Most tries to count a code. A try fails only if another code of the same owner was counted at the same time.
const MAX_COUNT_TRIES: usize = 2 * MAX_CODES;
/// At most this many former keys of a machine are stored; older keys are forgotten. A former key only matters until its
/// last credential expires.
const MAX_FORMER_KEYS: usize = 32;

/// The stored entry of a code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CodeEntry {
    owner: AccountId,
    expires: Timestamp,
    /// The machine that redeemed the code, and its key. The same machine may redeem the code again with the same key,
    /// because the answer may have been lost.
    #[serde(default)]
    redeemed: Option<(MachineId, String)>,
}

/// The enrollment of a machine: its owner and its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Enrollment {
    pub(crate) owner: AccountId,
    /// The machine's `NKey`.
    pub(crate) public_key: String,
    /// The machine's x25519 key, to which the secrets of jobs are sealed.
    pub(crate) sealing_key: String,
    pub(crate) enrolled_at: Timestamp,
    /// The last event in the log when the machine was enrolled. If the machine left the market before this event, the
    /// enrollment stays valid.
    pub(crate) enrolled_after: Seq,
    #[serde(default)]
    pub(crate) revoked_at: Option<Timestamp>,
    /// True if an operator banned the machine: no code can enroll it again.
    #[serde(default)]
    pub(crate) banned: bool,
    /// The former keys of the machine, each with the time at which the key was replaced or revoked. The broker rejects
    /// credentials that were issued for the key until that time.
    #[serde(default)]
    pub(crate) former: Vec<(String, Timestamp)>,
}

impl Enrollment {
    /// The former keys, and the present key if it is revoked, each with the time at which the key was replaced or
    /// revoked.
    pub(crate) fn revoked_keys(&self) -> Vec<(String, Timestamp)> {
        let current = self.revoked_at.map(|at| (self.public_key.clone(), at));
        self.former.iter().cloned().chain(current).collect()
    }

    /// The former keys of the machine after a new enrollment with `key`.
    fn former_keys_after(&self, key: &str, now: Timestamp) -> Vec<(String, Timestamp)> {
        let mut former = self.revoked_keys();
        if self.revoked_at.is_none() && self.public_key != key {
            former.push((self.public_key.clone(), now));
        }
        let newest = former.len().saturating_sub(MAX_FORMER_KEYS);
        former.split_off(newest)
    }
}

/// The expiry times of the codes that an owner got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct IssuedCodes(Vec<Timestamp>);

/// The bucket of enrollments.
#[derive(Clone)]
pub(crate) struct Enrollments {
    bucket: kv::Store,
}

fn code_key(code: &str) -> String {
    // People may write a code in any case, and with or without dashes.
    let plain: String = code.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect();
    format!("code.{}", gpubnb_events::hex(Sha256::digest(plain.as_bytes())))
}

fn machine_key(machine: MachineId) -> String {
    format!("machine.{machine}")
}

fn unavailable(e: impl std::error::Error + 'static) -> RpcError {
    RpcError::unavailable("the enrollments cannot be reached now; try again", &e)
}

/// The answer to every code that cannot be redeemed. The answer is the same for an unknown code and for a used code, so
/// that it helps nobody to guess codes.
fn bad_code() -> RpcError {
    let message = "This code is unknown, has run out, or was used. Get a new one on the page \"My machines\".";
    RpcError::refused(Refusal::new("BadCode", RefusalKind::Forbidden, message))
}

fn encode(value: &impl Serialize) -> Result<bytes::Bytes, RpcError> {
    serde_json::to_vec(value).map(Into::into).map_err(unavailable)
}

impl Enrollments {
    /// Opens the bucket.
    pub(crate) async fn open(js: &jetstream::Context) -> anyhow::Result<Self> {
        Ok(Self { bucket: js.get_key_value(ENROLLMENTS).await? })
    }

    async fn read<T: DeserializeOwned>(&self, key: String) -> Result<Option<(T, u64)>, RpcError> {
        let entry = self.bucket.entry(key).await.map_err(unavailable)?;
        let Some(entry) = entry.filter(|e| e.operation == kv::Operation::Put) else { return Ok(None) };
        Ok(Some((serde_json::from_slice(&entry.value).map_err(unavailable)?, entry.revision)))
    }

    /// Gives an owner a code.
    pub(crate) async fn create_code(&self, owner: AccountId, now: Timestamp) -> Result<EnrollmentCode, RpcError> {
        let random = data_encoding::BASE32_NOPAD.encode(&rand::rng().random::<[u8; 15]>());
        let code = random.as_bytes().chunks(6).map(String::from_utf8_lossy).collect::<Vec<_>>().join("-");
        let expires = now.plus(CODE_LIFETIME);
        self.count_guess(owner, expires, now).await?;
        let entry = CodeEntry { owner, expires, redeemed: None };
        self.bucket.create(code_key(&code), encode(&entry)?).await.map_err(unavailable)?;
        Ok(EnrollmentCode { code, expires })
    }

    /// Counts a new code of the owner. Refuses the code if the owner got too many codes in the last hour. If the owner
    /// asks for several codes at once, each is counted.
    async fn count_guess(&self, owner: AccountId, expires: Timestamp, now: Timestamp) -> Result<(), RpcError> {
        for _ in 0..MAX_COUNT_TRIES {
            if self.try_to_count_code(owner, expires, now).await? {
                return Ok(());
            }
        }
        Err(RpcError::Unavailable("too many codes are asked for at once; try again".to_owned()))
    }

    /// Returns false if another code of the owner was counted at the same time.
    async fn try_to_count_code(&self, owner: AccountId, expires: Timestamp, now: Timestamp) -> Result<bool, RpcError> {
        let key = format!("owner.{owner}");
        let (mut issued, revision) = match self.read::<IssuedCodes>(key.clone()).await? {
            Some((issued, revision)) => (issued, Some(revision)),
            None => (IssuedCodes::default(), None),
        };
        issued.0.retain(|expires| *expires > now);
        if issued.0.len() >= MAX_CODES {
            let message = "You got ten codes within the last hour. Use an unused one, or try again later.";
            return Err(RpcError::refused(Refusal::new("TooManyCodes", RefusalKind::Conflict, message)));
        }
        issued.0.push(expires);
        self.put(&key, encode(&issued)?, revision).await
    }

    /// Writes a value. `revision` is the revision of the entry that the caller has read; `None` if there was no entry.
    /// Returns false, and writes nothing, if somebody has written the entry since.
    async fn put(&self, key: &str, value: bytes::Bytes, revision: Option<u64>) -> Result<bool, RpcError> {
        use kv::{CreateErrorKind::AlreadyExists, UpdateErrorKind::WrongLastRevision};
        match revision {
            Some(revision) => match self.bucket.update(key, value, revision).await {
                Ok(_) => Ok(true),
                Err(e) if e.kind() == WrongLastRevision => Ok(false),
                Err(e) => Err(unavailable(e)),
            },
            None => match self.bucket.create(key, value).await {
                Ok(_) => Ok(true),
                Err(e) if e.kind() == AlreadyExists => Ok(false),
                Err(e) => Err(unavailable(e)),
            },
        }
    }

    /// Redeems a code, which enrolls a machine. A code can be redeemed once.
    pub(crate) async fn redeem(
        &self,
        request: &RedeemEnrollment,
        now: Timestamp,
        applied: Seq,
    ) -> Result<Enrollment, RpcError> {
        if !is_signed_by(&request.public_key, &request.signed_text(), &request.signature) {
            let message = "The request is not signed with the key that it names.";
            return Err(RpcError::refused(Refusal::new("BadSignature", RefusalKind::Forbidden, message)));
        }
        if nkeys::XKey::from_public_key(&request.sealing_key).is_err() {
            return Err(RpcError::refused(Refusal::new(
                "BadKey",
                RefusalKind::Invalid,
                "The sealing key is no x25519 public key.",
            )));
        }
        let key = code_key(&request.code);
        let (code, revision): (CodeEntry, u64) = self.read(key.clone()).await?.ok_or_else(bad_code)?;
        let redeemer = (request.machine, request.public_key.clone());
        if now > code.expires || code.redeemed.as_ref().is_some_and(|by| *by != redeemer) {
            return Err(bad_code());
        }
        let known = self.read::<Enrollment>(machine_key(request.machine)).await?;
        if let Some((known, _)) = &known {
            if known.owner != code.owner {
                return Err(RpcError::refused(Refusal::new(
                    "NotYours",
                    RefusalKind::Forbidden,
                    "This machine belongs to another account.",
                )));
            }
            if known.banned {
                let message = "This machine was banned from the market. Talk to those who run it.";
                return Err(RpcError::refused(Refusal::new("Banned", RefusalKind::Forbidden, message)));
            }
        }
        if code.redeemed.is_some() {
            // The machine repeats its request, because the answer may have been lost. A revoked enrollment stays
            // revoked.
            let is_same = |e: &Enrollment| e.revoked_at.is_none() && e.public_key == request.public_key;
            return known.map(|(e, _)| e).filter(is_same).ok_or_else(bad_code);
        }
        let used = CodeEntry { redeemed: Some(redeemer), ..code.clone() };
        // If two machines redeem one code at once, the bucket accepts only the first.
        self.bucket.update(&key, encode(&used)?, revision).await.map_err(|_| bad_code())?;
        let former = known.as_ref().map(|(e, _)| e.former_keys_after(&request.public_key, now)).unwrap_or_default();
        let enrollment = Enrollment {
            owner: code.owner,
            public_key: request.public_key.clone(),
            sealing_key: request.sealing_key.clone(),
            enrolled_at: now,
            enrolled_after: applied,
            revoked_at: None,
            banned: false,
            former,
        };
        let revision = known.map(|(_, revision)| revision);
        if !self.put(&machine_key(request.machine), encode(&enrollment)?, revision).await? {
            let message = "This machine was enrolled or revoked at the same moment. Enroll it again with a new code.";
            return Err(RpcError::refused(Refusal::new("AtOnce", RefusalKind::Conflict, message)));
        }
        Ok(enrollment)
    }

    /// The enrollment of a machine, revoked or not.
    pub(crate) async fn get(&self, machine: MachineId) -> Result<Option<Enrollment>, RpcError> {
        Ok(self.read(machine_key(machine)).await?.map(|(enrollment, _)| enrollment))
    }

    /// The enrollment of a machine, unless it is revoked.
    pub(crate) async fn active(&self, machine: MachineId) -> Result<Enrollment, RpcError> {
        let active = self.get(machine).await?.filter(|e| e.revoked_at.is_none());
        active.ok_or_else(|| {
            let message = "This machine is not enrolled, or its credential was revoked. Enroll it with a new code.";
            RpcError::refused(Refusal::new("NotEnrolled", RefusalKind::Forbidden, message))
        })
    }

    /// Revokes the enrollment of a machine. With `ban`, no code can enroll the machine again.
    pub(crate) async fn revoke(&self, machine: MachineId, ban: bool, now: Timestamp) -> Result<(), RpcError> {
        let Some((enrollment, revision)) = self.read::<Enrollment>(machine_key(machine)).await? else { return Ok(()) };
        if enrollment.revoked_at.is_some() && enrollment.banned >= ban {
            return Ok(());
        }
        let banned = enrollment.banned || ban;
        let revoked = Enrollment { revoked_at: enrollment.revoked_at.or(Some(now)), banned, ..enrollment };
        self.bucket.update(&machine_key(machine), encode(&revoked)?, revision).await.map_err(unavailable)?;
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<String>, RpcError> {
        self.bucket.keys().await.map_err(unavailable)?.try_collect().await.map_err(unavailable)
    }

    /// All enrollments. An unreadable entry is logged and left out, so that the other machines can still be revoked.
    pub(crate) async fn all(&self) -> Result<Vec<(MachineId, Enrollment)>, RpcError> {
        let mut machines = Vec::new();
        for key in self.keys().await? {
            let Some(machine) = key.strip_prefix("machine.").and_then(|id| id.parse().ok()) else { continue };
            match self.get(machine).await {
                Ok(found) => machines.extend(found.map(|enrollment| (machine, enrollment))),
                Err(e) => tracing::error!(%machine, error = %e, "an enrollment cannot be read"),
            }
        }
        Ok(machines)
    }

    /// Removes the codes that have expired.
    pub(crate) async fn sweep(&self, now: Timestamp) -> Result<(), RpcError> {
        for key in self.keys().await?.into_iter().filter(|key| key.starts_with("code.")) {
            if self.read::<CodeEntry>(key.clone()).await?.is_none_or(|(code, _)| now > code.expires) {
                self.bucket.purge(&key).await.map_err(unavailable)?;
            }
        }
        Ok(())
    }
}
