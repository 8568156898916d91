//! NATS JWTs, version 2: what the broker believes about operators, accounts and users.
//!
//! The form is NATS's own: `base64url(header).base64url(claims).base64url(signature)`, signed over the first two
//! with an `NKey`, as <https://github.com/nats-io/jwt> (v2) writes it. Nothing is re-encoded before it is verified.

use data_encoding::BASE64URL_NOPAD;
use gpubnb_events::Timestamp;
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// A JWT that could not be made or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JwtError {
    /// The key cannot sign.
    #[error("the key cannot sign")]
    Key(#[from] nkeys::error::Error),
    /// The text has no second part.
    #[error("not a JWT: it has no claims")]
    NoClaims,
    /// The claims are not base64url.
    #[error("not a JWT: its claims are not base64url")]
    Encoding(#[from] data_encoding::DecodeError),
    /// The claims are not JSON.
    #[error("not a JWT: its claims are not JSON")]
    Claims(#[from] serde_json::Error),
}

/// What a user may publish and subscribe to. What is not allowed is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Permissions {
    pub(crate) publish: Vec<String>,
    pub(crate) subscribe: Vec<String>,
}

impl Permissions {
    fn claims(&self) -> Value {
        let unlimited = -1;
        json!({
            "pub": { "allow": self.publish },
            "sub": { "allow": self.subscribe },
            "subs": unlimited, "data": unlimited, "payload": unlimited,
        })
    }
}

/// Signs claims about `subject`, a public key.
fn sign(
    subject: &str,
    name: &str,
    issued: Timestamp,
    expires: Option<Timestamp>,
    claims: Value,
    key: &KeyPair,
) -> Result<String, JwtError> {
    let mut all = json!({
        "iat": issued.millis() / 1_000,
        "iss": key.public_key(),
        "name": name,
        "sub": subject,
        "nats": claims,
    });
    if let Some(expires) = expires {
        all["exp"] = json!(expires.millis() / 1_000);
    }
    // Tells two claims of the same second apart: the broker takes those with one id for the same.
    all["jti"] = json!(gpubnb_events::hex(Sha256::digest(all.to_string().as_bytes())));
    let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let signed = format!("{}.{}", encode(HEADER.as_bytes()), encode(all.to_string().as_bytes()));
    let signature = key.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", encode(&signature)))
}

/// The operator's word about itself: its signing key may sign accounts.
pub(crate) fn operator(
    key: &KeyPair,
    signing_key: &str,
    system_account: &str,
    now: Timestamp,
) -> Result<String, JwtError> {
    let claims = json!({
        "type": "operator", "version": 2,
        "signing_keys": [signing_key],
        "system_account": system_account,
    });
    sign(&key.public_key(), "gpubnb", now, None, claims, key)
}

/// What an account is for.
pub(crate) enum AccountRole<'a> {
    /// The broker's own.
    System,
    /// Streams, services and the edge. Offers these subjects to the account of machines.
    Market(&'a [SharedSubject]),
    /// Machines, and nothing that lasts: what they say reaches the market's account only by the subjects it offers.
    Machines {
        /// The market's account.
        market: &'a str,
        /// What it offers.
        shared: &'a [SharedSubject],
        /// The key that issues machines.
        issuer: &'a str,
        /// What each of them may do; `{{name()}}` in it stands for the name of the user, so that whoever holds that key
        /// can issue machines and nothing else.
        scope: &'a Permissions,
    },
}

/// A subject that one account offers another as a service: the broker itself makes up where answers go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedSubject {
    pub(crate) subject: String,
    /// What it is called in the other account, where that differs; `$1` stands for its wildcard.
    pub(crate) local: Option<String>,
    /// Whether one request may have many answers.
    pub(crate) many: bool,
}

/// An account.
pub(crate) fn account(
    subject: &str,
    name: &str,
    role: &AccountRole<'_>,
    now: Timestamp,
    key: &KeyPair,
) -> Result<String, JwtError> {
    let jetstream = if matches!(role, AccountRole::Market(_)) { -1 } else { 0 };
    let mut claims = json!({
        "type": "account", "version": 2,
        "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1,
            "mem_storage": jetstream, "disk_storage": jetstream, "streams": jetstream, "consumer": jetstream,
        },
    });
    match role {
        AccountRole::System => {}
        AccountRole::Market(shared) => claims["exports"] = shared.iter().map(SharedSubject::export).collect(),
        AccountRole::Machines { market, shared, issuer, scope } => {
            claims["imports"] = shared.iter().map(|shared| shared.import(market)).collect();
            claims["signing_keys"] =
                json!([{ "kind": "user_scope", "key": issuer, "role": "machine", "template": scope.claims() }]);
        }
    }
    sign(subject, name, now, None, claims, key)
}

impl SharedSubject {
    fn export(&self) -> Value {
        let response = if self.many { "Stream" } else { "Singleton" };
        json!({ "name": self.subject, "subject": self.subject, "type": "service", "response_type": response })
    }

    fn import(&self, from: &str) -> Value {
        let mut import = json!({ "name": self.subject, "subject": self.subject, "account": from, "type": "service" });
        if let Some(local) = &self.local {
            import["local_subject"] = json!(local);
        }
        import
    }
}

/// A user of an account, signed by the account's own key.
pub(crate) fn user(
    subject: &str,
    name: &str,
    permissions: &Permissions,
    now: Timestamp,
    key: &KeyPair,
) -> Result<String, JwtError> {
    let mut claims = permissions.claims();
    claims["type"] = json!("user");
    claims["version"] = json!(2);
    sign(subject, name, now, None, claims, key)
}

/// A machine: a user signed by the scoped key, whose rights are the scope's.
pub(crate) fn machine(
    subject: &str,
    name: &str,
    account: &str,
    now: Timestamp,
    expires: Timestamp,
    key: &KeyPair,
) -> Result<String, JwtError> {
    let claims = json!({ "type": "user", "version": 2, "issuer_account": account });
    sign(subject, name, now, Some(expires), claims, key)
}

/// The account's JWT anew, with these users revoked: what was issued to them until then counts for nothing.
pub(crate) fn with_revocations(
    account: &str,
    revoked: &[(String, Timestamp)],
    now: Timestamp,
    key: &KeyPair,
) -> Result<String, JwtError> {
    let claims = claims(account)?;
    let text = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
    let mut nats = claims["nats"].clone();
    nats["revocations"] = revocation_list(revoked);
    sign(&text("sub"), &text("name"), now, None, nats, key)
}

/// Revoked users, as an account lists them: each with the second until which what was issued to it is void.
pub(crate) fn revocation_list(revoked: &[(String, Timestamp)]) -> Value {
    revoked.iter().map(|(user, at)| (user.clone(), json!(at.millis() / 1_000))).collect()
}

/// The users that an account lists as revoked.
pub(crate) fn revocations(account: &str) -> Result<Value, JwtError> {
    let list = claims(account)?["nats"]["revocations"].take();
    Ok(if list.is_null() { json!({}) } else { list })
}

/// What a JWT of ours says. Its signature is the broker's affair.
pub(crate) fn claims(jwt: &str) -> Result<Value, JwtError> {
    let part = jwt.trim().split('.').nth(1).ok_or(JwtError::NoClaims)?;
    let bytes = BASE64URL_NOPAD.decode(part.as_bytes())?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_jwt_has_no_rights_of_its_own_and_says_when_it_ends() {
        let (issuer, user) = (KeyPair::new_account(), KeyPair::new_user());
        let (now, later) = (Timestamp::from_millis(1_000), Timestamp::from_millis(61_000));
        let jwt = machine(&user.public_key(), "m", "ACCOUNT", now, later, &issuer).unwrap();
        let claims = claims(&jwt).unwrap();
        assert_eq!((claims["exp"].as_i64(), &claims["iss"]), (Some(61), &json!(issuer.public_key())));
        assert!(claims["nats"].get("pub").is_none() && claims["nats"].get("subs").is_none());
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        issuer.verify(signed.as_bytes(), &BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap()).unwrap();
    }

    #[test]
    fn revoking_keeps_all_else_that_an_account_is() {
        let (operator, machines, scope) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        let now = Timestamp::from_millis(1_000);
        let rights = Permissions { publish: vec!["a".to_owned()], subscribe: vec!["b".to_owned()] };
        let shared = [SharedSubject { subject: "c".to_owned(), local: None, many: false }];
        let role = AccountRole::Machines { market: "M", shared: &shared, issuer: &scope.public_key(), scope: &rights };
        let before = account(&machines.public_key(), "MACHINES", &role, now, &operator).unwrap();
        let after = with_revocations(&before, &[("UX".to_owned(), now)], now, &operator).unwrap();
        let (before, mut after) = (claims(&before).unwrap(), claims(&after).unwrap());
        assert_eq!(after["nats"]["revocations"], json!({ "UX": 1 }));
        assert_ne!(after["jti"], before["jti"]);
        after["nats"].as_object_mut().unwrap().remove("revocations");
        assert_eq!((&after["nats"], &after["sub"]), (&before["nats"], &before["sub"]));
    }
}
