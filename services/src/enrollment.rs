//! Enrollments: the one-time codes of owners, and the public key of each machine. They lie in a bucket and not in the
//! log, because a code is a secret, and a revoked key must be gone at once.

use async_nats::jetstream::{self, kv};
use futures_util::TryStreamExt;
use gpubnb_events::{
    AccountId, MachineId, Millis, Refusal, RefusalKind, Seq, Timestamp,
    command::{EnrollmentCode, RedeemEnrollment},
};
use gpubnb_log::stream::ENROLLMENTS;
use gpubnb_runtime::rpc::Failure;
use rand::RngExt as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::credentials::signed_by;

/// How long a code can be redeemed.
const CODE_LIFE: Millis = Millis(3_600_000);
/// Most codes that an owner can have at once.
const MOST_CODES: usize = 10;
/// Most former keys of a machine that are remembered. A former key only matters until its last credential expires.
const MOST_FORMER: usize = 32;

/// A code that was given to an owner.
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
    /// The last event in the log when the machine was enrolled. If the machine left the market before that event, this
    /// enrollment is not revoked for it.
    pub(crate) enrolled_after: Seq,
    #[serde(default)]
    pub(crate) revoked_at: Option<Timestamp>,
    /// True if an operator banned the machine: no code can enroll it again.
    #[serde(default)]
    pub(crate) banned: bool,
    /// Former keys of the machine, each with a time: credentials that were issued to the key until then are void.
    #[serde(default)]
    pub(crate) former: Vec<(String, Timestamp)>,
}

impl Enrollment {
    /// All keys with void credentials, each with the time until which its credentials are void.
    pub(crate) fn void(&self) -> Vec<(String, Timestamp)> {
        let present = self.revoked_at.map(|at| (self.public_key.clone(), at));
        self.former.iter().cloned().chain(present).collect()
    }

    /// The former keys after the machine is enrolled again, with `key`.
    fn former_after(&self, key: &str, now: Timestamp) -> Vec<(String, Timestamp)> {
        let mut former = self.void();
        if self.revoked_at.is_none() && self.public_key != key {
            former.push((self.public_key.clone(), now));
        }
        let newest = former.len().saturating_sub(MOST_FORMER);
        former.split_off(newest)
    }
}

/// The codes that an owner got: the time at which each expires.
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

fn unavailable(e: impl std::error::Error + 'static) -> Failure {
    Failure::unavailable("the enrollments cannot be reached now; try again", &e)
}

/// The answer to every code that cannot be redeemed. It is always the same, so that it helps nobody to guess codes.
fn bad_code() -> Failure {
    let message = "This code is unknown, has run out, or was used. Get a new one on the page \"My machines\".";
    Failure::refused(Refusal::new("BadCode", RefusalKind::Forbidden, message))
}

fn encode(value: &impl Serialize) -> Result<bytes::Bytes, Failure> {
    serde_json::to_vec(value).map(Into::into).map_err(unavailable)
}

impl Enrollments {
    /// Opens the bucket.
    pub(crate) async fn open(js: &jetstream::Context) -> anyhow::Result<Self> {
        Ok(Self { bucket: js.get_key_value(ENROLLMENTS).await? })
    }

    async fn read<T: DeserializeOwned>(&self, key: String) -> Result<Option<(T, u64)>, Failure> {
        let entry = self.bucket.entry(key).await.map_err(unavailable)?;
        let Some(entry) = entry.filter(|e| e.operation == kv::Operation::Put) else { return Ok(None) };
        Ok(Some((serde_json::from_slice(&entry.value).map_err(unavailable)?, entry.revision)))
    }

    /// Gives an owner a code.
    pub(crate) async fn create_code(&self, owner: AccountId, now: Timestamp) -> Result<EnrollmentCode, Failure> {
        let random = data_encoding::BASE32_NOPAD.encode(&rand::rng().random::<[u8; 15]>());
        let code = random.as_bytes().chunks(6).map(String::from_utf8_lossy).collect::<Vec<_>>().join("-");
        let expires = now.plus(CODE_LIFE);
        self.count_code(owner, expires, now).await?;
        let entry = CodeEntry { owner, expires, redeemed: None };
        self.bucket.create(code_key(&code), encode(&entry)?).await.map_err(unavailable)?;
        Ok(EnrollmentCode { code, expires })
    }

    async fn count_code(&self, owner: AccountId, expires: Timestamp, now: Timestamp) -> Result<(), Failure> {
        let key = format!("owner.{owner}");
        let (mut given, revision) = match self.read::<IssuedCodes>(key.clone()).await? {
            Some((given, revision)) => (given, Some(revision)),
            None => (IssuedCodes::default(), None),
        };
        given.0.retain(|expires| *expires > now);
        if given.0.len() >= MOST_CODES {
            let message = "You got ten codes within the last hour. Use one of them, or come back later.";
            return Err(Failure::refused(Refusal::new("TooManyCodes", RefusalKind::Conflict, message)));
        }
        given.0.push(expires);
        self.put(&key, encode(&given)?, revision).await
    }

    /// Writes an entry in place of the one with this revision; `None`: there must be no entry.
    async fn put(&self, key: &str, value: bytes::Bytes, revision: Option<u64>) -> Result<(), Failure> {
        let written = match revision {
            Some(revision) => self.bucket.update(key, value, revision).await.map_err(unavailable),
            None => self.bucket.create(key, value).await.map_err(unavailable),
        };
        written.map(drop)
    }

    /// Redeems a code, which enrolls a machine. A code can be redeemed once.
    pub(crate) async fn redeem(
        &self,
        c: &RedeemEnrollment,
        now: Timestamp,
        applied: Seq,
    ) -> Result<Enrollment, Failure> {
        if !signed_by(&c.public_key, &c.signed_text(), &c.signature) {
            let message = "The request is not signed with the key that it names.";
            return Err(Failure::refused(Refusal::new("BadSignature", RefusalKind::Forbidden, message)));
        }
        if nkeys::XKey::from_public_key(&c.sealing_key).is_err() {
            return Err(Failure::refused(Refusal::new(
                "BadKey",
                RefusalKind::Invalid,
                "The sealing key is no x25519 public key.",
            )));
        }
        let key = code_key(&c.code);
        let (code, revision): (CodeEntry, u64) = self.read(key.clone()).await?.ok_or_else(bad_code)?;
        let who = (c.machine, c.public_key.clone());
        if now > code.expires || code.redeemed.as_ref().is_some_and(|by| *by != who) {
            return Err(bad_code());
        }
        let known = self.read::<Enrollment>(machine_key(c.machine)).await?;
        if let Some((known, _)) = &known {
            if known.owner != code.owner {
                return Err(Failure::refused(Refusal::new(
                    "NotYours",
                    RefusalKind::Forbidden,
                    "This machine belongs to another account.",
                )));
            }
            if known.banned {
                let message = "This machine was banned from the market. Talk to those who run it.";
                return Err(Failure::refused(Refusal::new("Banned", RefusalKind::Forbidden, message)));
            }
        }
        if code.redeemed.is_some() {
            // The machine repeats its request: the answer may have been lost. An enrollment that was revoked in the
            // meantime stays revoked.
            let same = |e: &Enrollment| e.revoked_at.is_none() && e.public_key == c.public_key;
            return known.map(|(e, _)| e).filter(same).ok_or_else(bad_code);
        }
        let used = CodeEntry { redeemed: Some(who), ..code.clone() };
        // If two machines redeem one code at once, the bucket takes the first.
        self.bucket.update(&key, encode(&used)?, revision).await.map_err(|_| bad_code())?;
        let former = known.as_ref().map(|(e, _)| e.former_after(&c.public_key, now)).unwrap_or_default();
        let enrollment = Enrollment {
            owner: code.owner,
            public_key: c.public_key.clone(),
            sealing_key: c.sealing_key.clone(),
            enrolled_at: now,
            enrolled_after: applied,
            revoked_at: None,
            banned: false,
            former,
        };
        let revision = known.map(|(_, revision)| revision);
        self.put(&machine_key(c.machine), encode(&enrollment)?, revision).await?;
        Ok(enrollment)
    }

    /// The enrollment of a machine, revoked or not.
    pub(crate) async fn of(&self, machine: MachineId) -> Result<Option<Enrollment>, Failure> {
        Ok(self.read(machine_key(machine)).await?.map(|(enrollment, _)| enrollment))
    }

    /// The enrollment of a machine, unless it is revoked.
    pub(crate) async fn live(&self, machine: MachineId) -> Result<Enrollment, Failure> {
        let live = self.of(machine).await?.filter(|e| e.revoked_at.is_none());
        live.ok_or_else(|| {
            let message = "This machine is not enrolled, or its credential was revoked. Enroll it with a new code.";
            Failure::refused(Refusal::new("NotEnrolled", RefusalKind::Forbidden, message))
        })
    }

    /// Revokes the enrollment of a machine. With `ban`, no code can enroll the machine again.
    pub(crate) async fn revoke(&self, machine: MachineId, ban: bool, now: Timestamp) -> Result<(), Failure> {
        let Some((enrollment, revision)) = self.read::<Enrollment>(machine_key(machine)).await? else { return Ok(()) };
        if enrollment.revoked_at.is_some() && enrollment.banned >= ban {
            return Ok(());
        }
        let banned = enrollment.banned || ban;
        let revoked = Enrollment { revoked_at: enrollment.revoked_at.or(Some(now)), banned, ..enrollment };
        self.bucket.update(&machine_key(machine), encode(&revoked)?, revision).await.map_err(unavailable)?;
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<String>, Failure> {
        self.bucket.keys().await.map_err(unavailable)?.try_collect().await.map_err(unavailable)
    }

    /// All enrollments. An entry that cannot be read is logged and left out, so that it keeps no other machine from
    /// being revoked.
    pub(crate) async fn all(&self) -> Result<Vec<(MachineId, Enrollment)>, Failure> {
        let mut machines = Vec::new();
        for key in self.keys().await? {
            let Some(machine) = key.strip_prefix("machine.").and_then(|id| id.parse().ok()) else { continue };
            match self.of(machine).await {
                Ok(found) => machines.extend(found.map(|enrollment| (machine, enrollment))),
                Err(e) => tracing::error!(%machine, error = %e, "an enrollment cannot be read"),
            }
        }
        Ok(machines)
    }

    /// Removes the codes that have expired.
    pub(crate) async fn sweep(&self, now: Timestamp) -> Result<(), Failure> {
        for key in self.keys().await?.into_iter().filter(|key| key.starts_with("code.")) {
            if self.read::<CodeEntry>(key.clone()).await?.is_none_or(|(code, _)| now > code.expires) {
                self.bucket.purge(&key).await.map_err(unavailable)?;
            }
        }
        Ok(())
    }
}
