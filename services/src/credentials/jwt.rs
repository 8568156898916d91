//! NATS JWTs of version 2. The broker reads the rights of operators, accounts and users from them.
//!
//! The format is `base64url(header).base64url(claims).base64url(signature)`, as in <https://github.com/nats-io/jwt>
//! (v2). An `NKey` signs the header and the claims. No library is used: `nats-io-jwt` 0.1 is incomplete, and `nats-jwt`
//! 0.3 cannot make operators.

use data_encoding::BASE64URL_NOPAD;
use gpubnb_events::Timestamp;
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// A JWT cannot be made or read.
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

/// The subjects that a user may publish and subscribe to. All others are denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Permissions {
    pub(crate) publish: Vec<String>,
    pub(crate) subscribe: Vec<String>,
    /// The most subscriptions of a connection, and the most bytes of a message; `None` for the broker's own limits.
    pub(crate) limits: Option<ConnectionLimits>,
}

/// The limits of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    pub(crate) subscriptions: u32,
    pub(crate) message_bytes: u32,
}

impl Permissions {
    fn claims(&self) -> Value {
        let unlimited = -1_i64;
        let limits = self.limits;
        json!({
            "pub": { "allow": self.publish },
            "sub": { "allow": self.subscribe },
            "subs": limits.map_or(unlimited, |limits| limits.subscriptions.into()),
            "payload": limits.map_or(unlimited, |limits| limits.message_bytes.into()),
            "data": unlimited,
        })
    }
}

/// Makes a JWT about `subject`, which is a public key.
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
    // The id is a hash of the claims, so that two JWTs of the same second have different ids. The broker treats JWTs
    // with equal ids as one.
    all["jti"] = json!(gpubnb_events::hex(Sha256::digest(all.to_string().as_bytes())));
    let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let signed = format!("{}.{}", encode(HEADER.as_bytes()), encode(all.to_string().as_bytes()));
    let signature = key.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", encode(&signature)))
}

/// The operator's JWT, signed with the operator's own key. The JWT names the signing key, which may sign accounts.
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

/// The role of an account.
pub(crate) enum AccountRole<'a> {
    /// The broker's own account.
    System,
    /// The account of streams, services and the web server. It exports these subjects to the account of machines.
    Market(&'a [SharedSubject]),
    /// The account of machines. The account has no streams, and its messages reach the market's account only through
    /// exported subjects.
    Machines {
        /// The market's account.
        market: &'a str,
        /// The subjects that the market's account exports.
        shared: &'a [SharedSubject],
        /// The public key that signs the machines' credentials.
        issuer: &'a str,
        /// The rights of each machine; `{{name()}}` stands for the user's name. The issuer's key cannot give a machine
        /// any other right.
        scope: &'a Permissions,
    },
}

/// A subject that one account exports to another as a service. The broker chooses the reply subjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedSubject {
    pub(crate) subject: String,
    /// The subject's name in the other account, if it has another name there; `$1` stands for the wildcard.
    pub(crate) local: Option<String>,
    /// True if one request may have many answers.
    pub(crate) has_many_answers: bool,
}

/// The JWT of an account.
pub(crate) fn account(
    subject: &str,
    name: &str,
    role: &AccountRole<'_>,
    now: Timestamp,
    key: &KeyPair,
) -> Result<String, JwtError> {
    // -1 means no limit, 0 means nothing is allowed.
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
        let response = if self.has_many_answers { "Stream" } else { "Singleton" };
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

/// The JWT of a user, signed by the key of the account.
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

/// The JWT of a machine: a user without rights of its own. The broker takes the rights from the scope of the signing
/// key.
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

/// A new version of an account's JWT, in which this list of revoked users replaces the old list.
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

/// An account's revocation list: public key of the user → Unix second. The broker rejects credentials that were issued
/// to the user at or before that second.
pub(crate) fn revocation_list(revoked: &[(String, Timestamp)]) -> Value {
    revoked.iter().map(|(user, at)| (user.clone(), json!(at.millis() / 1_000))).collect()
}

/// The revocation list in an account's JWT.
pub(crate) fn revocations(account: &str) -> Result<Value, JwtError> {
    let list = claims(account)?["nats"]["revocations"].take();
    Ok(if list.is_null() { json!({}) } else { list })
}

/// Reads the claims of a JWT. The signature is not checked: the broker does that.
pub(crate) fn claims(jwt: &str) -> Result<Value, JwtError> {
    let part = jwt.trim().split('.').nth(1).ok_or(JwtError::NoClaims)?;
    let bytes = BASE64URL_NOPAD.decode(part.as_bytes())?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_jwt_contains_no_rights_and_expires() {
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
    fn a_new_revocation_list_changes_nothing_else_in_the_account() {
        let (operator, machines, scope) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        let now = Timestamp::from_millis(1_000);
        let rights = Permissions {
            publish: vec!["a".to_owned()],
            subscribe: vec!["b".to_owned()],
            limits: Some(ConnectionLimits { subscriptions: 7, message_bytes: 9 }),
        };
        let shared = [SharedSubject { subject: "c".to_owned(), local: None, has_many_answers: false }];
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
