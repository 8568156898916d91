//! Passkeys: a second way to sign in, with a key that a device keeps (<https://www.w3.org/TR/webauthn-3/>). The crate
//! `webauthn-rs` checks every answer of a browser.
//!
//! A *ceremony* is the way from a challenge to the browser's answer. Its state has no secret. The browser carries the
//! state as a signed permit, so that any web server can finish what another one began. A ceremony works once: the row
//! of the account keeps the ids of those that were finished, until they have expired.

use std::sync::Arc;

use axum::http::StatusCode;
use gpubnb_events::{AccountId, CommandId, Millis, Timestamp};
use gpubnb_runtime::permit::{Permit, PermitKey, Purpose};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use url::Url;
use webauthn_rs::prelude::{
    DiscoverableAuthentication, Passkey, PasskeyRegistration, PublicKeyCredential, RegisterPublicKeyCredential, Uuid,
    Webauthn, WebauthnBuilder, WebauthnError,
};

use super::{kv_cache::KvCache, users::check_label};
use crate::error::Problem;

/// The maximum number of passkeys of one account.
const MAX_PASSKEYS: usize = 10;
/// The time that a person has for one ceremony.
const CEREMONY_LIFE: Millis = Millis(5 * 60_000);

/// A passkey as stored in the bucket.
#[derive(Serialize, Deserialize)]
struct StoredPasskey {
    #[serde(flatten)]
    info: PasskeyInfo,
    key: Passkey,
}

/// A passkey without its public key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PasskeyInfo {
    pub(crate) id: CommandId,
    /// The name that its owner chose.
    pub(crate) label: String,
    pub(crate) created_at: Timestamp,
    #[serde(default)]
    pub(crate) last_used: Option<Timestamp>,
}

/// The row of an account.
#[derive(Default, Serialize, Deserialize)]
struct Row {
    passkeys: Vec<StoredPasskey>,
    /// The ceremonies that were finished, with the times at which they expire.
    finished: Vec<(String, Timestamp)>,
    /// A ceremony that began earlier adds no passkey: the password was changed meanwhile.
    #[serde(default)]
    not_before: Option<Timestamp>,
}

impl Row {
    /// Marks a ceremony as finished. Fails if it was finished before.
    fn finish(&mut self, ceremony: &str, now: Timestamp) -> Result<(), Problem> {
        self.finished.retain(|(_, expires)| *expires >= now);
        if self.finished.iter().any(|(id, _)| id == ceremony) {
            return Err(not_accepted());
        }
        self.finished.push((ceremony.to_owned(), now.plus(CEREMONY_LIFE)));
        Ok(())
    }
}

/// The passkeys of all accounts, in the bucket CREDENTIALS: `passkeys.<account>`.
#[derive(Clone)]
pub(crate) struct Passkeys {
    rows: KvCache,
    permit_key: PermitKey,
    /// `None` if this server does not know the address of its pages.
    webauthn: Option<Arc<Webauthn>>,
}

fn row_key(account: AccountId) -> String {
    format!("passkeys.{account}")
}

fn not_accepted() -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "PasskeyRefused", "This passkey was not accepted. Try again.")
}

/// A ceremony that begins: what the browser needs for it.
fn begun(options: impl Serialize, ceremony: String) -> Result<Value, Problem> {
    let mut options = serde_json::to_value(options).map_err(|e| Problem::internal(&e))?;
    Ok(json!({ "options": options["publicKey"].take(), "ceremony": ceremony }))
}

impl Passkeys {
    /// `url` is the address at which people open the pages. A passkey works only there.
    pub(super) fn new(rows: KvCache, permit_key: PermitKey, url: Option<&Url>) -> anyhow::Result<Self> {
        let named = url.and_then(|url| Some((url, url.domain()?)));
        if let (Some(url), None) = (url, named) {
            tracing::warn!(%url, "there are no passkeys: browsers have none for an address without a name");
        }
        let build = |(url, host)| Ok(Arc::new(WebauthnBuilder::new(host, url)?.rp_name("GPUbnb").build()?));
        let webauthn = named.map(build).transpose().map_err(|e: WebauthnError| anyhow::Error::from(e))?;
        Ok(Self { rows, permit_key, webauthn })
    }

    fn webauthn(&self) -> Result<&Webauthn, Problem> {
        let off = || Problem::new(StatusCode::NOT_FOUND, "NoPasskeys", "This market has no passkeys.");
        self.webauthn.as_deref().ok_or_else(off)
    }

    /// The origin of the pages on which passkeys work, such as `https://market.example`; `None` if there are none.
    pub(crate) fn origin(&self) -> Option<String> {
        let origins = self.webauthn.as_ref()?.get_allowed_origins();
        origins.first().map(|origin| origin.origin().ascii_serialization())
    }

    fn sign(&self, state: &impl Serialize, now: Timestamp) -> Result<String, Problem> {
        let state = serde_json::to_string(state).map_err(|e| Problem::internal(&e))?;
        let purpose = Purpose::Passkey { ceremony: CommandId::generate().to_string(), state };
        let permit = Permit { purpose, expires: now.plus(CEREMONY_LIFE) };
        self.permit_key.sign(&permit).ok_or_else(not_accepted)
    }

    /// The id and the state of a ceremony that this market began and that has not expired.
    fn verify<T: DeserializeOwned>(&self, ceremony: &str, now: Timestamp) -> Result<(String, T), Problem> {
        match self.permit_key.verify(ceremony, now) {
            Ok(Purpose::Passkey { ceremony, state }) => {
                Ok((ceremony, serde_json::from_str(&state).map_err(|_| not_accepted())?))
            }
            _ => Err(not_accepted()),
        }
    }

    async fn row(&self, account: AccountId) -> Result<Row, Problem> {
        Ok(self.rows.get(&row_key(account)).await?.unwrap_or_default())
    }

    /// The passkeys of an account, oldest first.
    pub(crate) async fn list(&self, account: AccountId) -> Result<Vec<PasskeyInfo>, Problem> {
        Ok(self.row(account).await?.passkeys.into_iter().map(|stored| stored.info).collect())
    }

    /// Begins to add a passkey. `name` is the name of the account that the browser shows.
    pub(crate) async fn begin_adding(&self, account: AccountId, name: &str, now: Timestamp) -> Result<Value, Problem> {
        let known = self.row(account).await?.passkeys.iter().map(|stored| stored.key.cred_id().clone()).collect();
        let user = Uuid::from_bytes(*account.as_bytes());
        let begin = self.webauthn()?.start_passkey_registration(user, name, name, Some(known));
        let (mut options, state) = begin.map_err(|e| Problem::internal(&e))?;
        // The device must find the key without knowing the account, because signing in asks for no address.
        if let Some(selection) = options.public_key.authenticator_selection.as_mut() {
            selection.resident_key = Some(webauthn_rs_proto::ResidentKeyRequirement::Required);
            selection.require_resident_key = true;
        }
        begun(options, self.sign(&(account, now, state), now)?)
    }

    /// Adds a passkey with the browser's answer.
    pub(crate) async fn add(
        &self,
        account: AccountId,
        ceremony: &str,
        answer: &RegisterPublicKeyCredential,
        label: &str,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let label = check_label(label, "Enter a name of up to 80 characters for the passkey.")?;
        let (ceremony, (begun_by, begun_at, state)) =
            self.verify::<(AccountId, Timestamp, PasskeyRegistration)>(ceremony, now)?;
        if begun_by != account {
            return Err(not_accepted());
        }
        let key = self.webauthn()?.finish_passkey_registration(answer, &state).map_err(|e| refused(&e))?;
        let info = PasskeyInfo { id: CommandId::generate(), label: label.to_owned(), created_at: now, last_used: None };
        self.rows
            .change(&row_key(account), |row: &mut Option<Row>| {
                let row = row.get_or_insert_default();
                row.finish(&ceremony, now)?;
                if row.not_before.is_some_and(|earliest| begun_at <= earliest) {
                    return Err(not_accepted());
                }
                if row.passkeys.len() >= MAX_PASSKEYS {
                    return Err(Problem::invalid("label", "You have 10 passkeys: remove one that you do not use."));
                }
                if row.passkeys.iter().any(|stored| stored.key.cred_id() == key.cred_id()) {
                    return Err(not_accepted());
                }
                row.passkeys.push(StoredPasskey { info: info.clone(), key: key.clone() });
                Ok(())
            })
            .await
    }

    /// Removes a passkey.
    pub(crate) async fn remove(&self, account: AccountId, id: CommandId) -> Result<(), Problem> {
        self.rows
            .change(&row_key(account), |row: &mut Option<Row>| {
                let passkeys = &mut row.get_or_insert_default().passkeys;
                let before = passkeys.len();
                passkeys.retain(|stored| stored.info.id != id);
                if passkeys.len() < before { Ok(()) } else { Err(Problem::not_found("passkey")) }
            })
            .await
    }

    /// Removes all passkeys of an account whose password was changed. One that is being added is refused: whoever adds
    /// it may know only the former password.
    pub(crate) async fn remove_all(&self, account: AccountId, now: Timestamp) -> Result<(), Problem> {
        self.rows
            .change(&row_key(account), |row: &mut Option<Row>| {
                let row = row.get_or_insert_default();
                row.passkeys.clear();
                row.not_before = Some(now);
                Ok(())
            })
            .await
    }

    /// Forgets everything of an account that was closed.
    pub(crate) async fn forget(&self, account: AccountId) -> Result<(), Problem> {
        self.rows.remove(&row_key(account)).await
    }

    /// Begins to sign in.
    pub(crate) fn begin_sign_in(&self, now: Timestamp) -> Result<Value, Problem> {
        let begin = self.webauthn()?.start_discoverable_authentication();
        let (options, state) = begin.map_err(|e| Problem::internal(&e))?;
        begun(options, self.sign(&state, now)?)
    }

    /// The account whose passkey the browser's answer proves.
    pub(crate) async fn sign_in(
        &self,
        ceremony: &str,
        answer: &PublicKeyCredential,
        now: Timestamp,
    ) -> Result<AccountId, Problem> {
        let (ceremony, state) = self.verify::<DiscoverableAuthentication>(ceremony, now)?;
        let webauthn = self.webauthn()?;
        let (user, key_id) = webauthn.identify_discoverable_authentication(answer).map_err(|e| refused(&e))?;
        let account = AccountId::from_bytes(*user.as_bytes()).map_err(|_| not_accepted())?;
        self.rows
            .change(&row_key(account), |row: &mut Option<Row>| {
                let row = row.as_mut().ok_or_else(not_accepted)?;
                row.finish(&ceremony, now)?;
                let stored = row.passkeys.iter_mut().find(|stored| stored.key.cred_id().as_slice() == key_id);
                let stored = stored.ok_or_else(not_accepted)?;
                // A counter that goes back, as that of a copied key does, is refused here, too.
                let checked = webauthn.finish_discoverable_authentication_v2(answer, state.clone(), &stored.key);
                stored.key.update_credential(&checked.map_err(|e| refused(&e))?);
                stored.info.last_used = Some(now);
                Ok(())
            })
            .await?;
        Ok(account)
    }
}

/// The reason is for the server's log only: it would help an attacker more than a person.
fn refused(e: &WebauthnError) -> Problem {
    tracing::debug!(error = e as &dyn std::error::Error, "the answer of a passkey is refused");
    not_accepted()
}
