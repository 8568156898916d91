//! Makes all keys of a new market, once: the keys of the NATS operator (the root of trust), of the NATS accounts and of
//! each process; the secret key that signs permits; and the key that opens the secrets of jobs. Also writes the
//! broker's configuration. No market runs without credentials.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use gpubnb_events::{Clock, SystemClock, Timestamp};
use nkeys::{KeyPair, XKey};
use rand::RngExt as _;

use super::{
    files::{ISSUER, MACHINES, REVOKER, SEALING, write_private},
    jwt::{self, AccountRole, Permissions},
    rights,
};
use crate::config::BootstrapArgs;

const TEMPLATE: &str = include_str!("nats.conf");
/// The user of the broker's system account.
pub(super) const SYSTEM_USER: &str = "system";
/// The file of the secret key with which the services sign permits, which are for file transfers, and with which the
/// web server checks them.
const PERMIT_KEY: &str = "transfer.key";

/// Writes `nats.conf`, a directory of credentials for each process, and `offline/` with keys to store in a safe place.
pub fn bootstrap(args: &BootstrapArgs) -> anyhow::Result<()> {
    let conf = args.dir.join("nats.conf");
    if conf.exists() {
        println!("{} is there already: kept", conf.display());
        return Ok(());
    }
    ensure!(args.tls_cert.is_some() == args.tls_key.is_some(), "--tls-cert and --tls-key go together");
    for directory in ["services", "projector", "ui", "offline"] {
        let dir = args.dir.join(directory);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let config = make_keys(&args.dir, SystemClock.now())?;
    let tls = args.tls_cert.as_ref().zip(args.tls_key.as_ref()).map_or_else(String::new, |(cert, key)| {
        format!("tls {{ cert_file: \"{}\", key_file: \"{}\", timeout: 5 }}", cert.display(), key.display())
    });
    let text = TEMPLATE
        .replace("@LISTEN@", &args.listen)
        .replace("@STORE@", &args.store.to_string_lossy())
        .replace("@OPERATOR@", &config.operator)
        .replace("@SYSTEM@", &config.system.public_key)
        .replace("@SYSTEM_JWT@", &config.system.jwt)
        .replace("@MARKET@", &config.market.public_key)
        .replace("@MARKET_JWT@", &config.market.jwt)
        .replace("@MACHINES@", &config.machines.public_key)
        .replace("@MACHINES_JWT@", &config.machines.jwt)
        .replace("@TLS@", &tls);
    // Write this file last: without this file, the next bootstrap starts over.
    write_private(&conf, &text)?;
    println!(
        "{} is ready. Move {} away: nothing that runs needs it.",
        args.dir.display(),
        args.dir.join("offline").display()
    );
    Ok(())
}

/// The values in the broker's configuration: the operator's JWT, and the NATS accounts.
struct BrokerConfig {
    operator: String,
    system: AccountConfig,
    market: AccountConfig,
    machines: AccountConfig,
}

/// An account of NATS in the broker's configuration.
struct AccountConfig {
    public_key: String,
    jwt: String,
}

fn make_keys(dir: &Path, now: Timestamp) -> anyhow::Result<BrokerConfig> {
    let (operator, operator_signing) = (KeyPair::new_operator(), KeyPair::new_operator());
    let [system, market, machines, issuer] = [(); 4].map(|()| KeyPair::new_account());
    let shared = rights::shared_with_machines();
    let role = AccountRole::Machines {
        market: &market.public_key(),
        shared: &shared,
        issuer: &issuer.public_key(),
        scope: &rights::machine_rights(),
    };
    let system_jwt = jwt::account(&system.public_key(), "SYSTEM", &AccountRole::System, now, &operator_signing)?;
    let market_jwt =
        jwt::account(&market.public_key(), "MARKET", &AccountRole::Market(&shared), now, &operator_signing)?;
    let machines_jwt = jwt::account(&machines.public_key(), "MACHINES", &role, now, &operator_signing)?;
    for user in rights::users() {
        write_credential(&dir.join(user.process), user.name, &user.permissions, now, &market)?;
    }
    let services = dir.join("services");
    write_credential(&services, SYSTEM_USER, &rights::revoker_rights(&machines.public_key()), now, &system)?;
    write_private(&services.join(ISSUER), &issuer.seed()?)?;
    // The services revoke machines by signing a new version of the machines' account, which needs this key.
    write_private(&services.join(REVOKER), &operator_signing.seed()?)?;
    write_private(&services.join(MACHINES), &machines_jwt)?;
    write_private(&services.join(SEALING), &XKey::new().seed()?)?;
    let permit_key = random_secret();
    for process in ["services", "ui"] {
        write_private(&dir.join(process).join(PERMIT_KEY), &permit_key)?;
    }
    for (name, key) in [("operator", &operator), ("system", &system), ("market", &market), ("machines", &machines)] {
        write_private(&dir.join("offline").join(format!("{name}.seed")), &key.seed()?)?;
    }
    Ok(BrokerConfig {
        operator: jwt::operator(&operator, &operator_signing.public_key(), &system.public_key(), now)?,
        system: AccountConfig { public_key: system.public_key(), jwt: system_jwt },
        market: AccountConfig { public_key: market.public_key(), jwt: market_jwt },
        machines: AccountConfig { public_key: machines.public_key(), jwt: machines_jwt },
    })
}

/// Writes `<user>.creds` in the format of NATS's own tools.
fn write_credential(
    dir: &Path,
    name: &str,
    permissions: &Permissions,
    now: Timestamp,
    account: &KeyPair,
) -> anyhow::Result<()> {
    let user = KeyPair::new_user();
    let token = jwt::user(&user.public_key(), name, permissions, now, account)?;
    let seed = user.seed()?;
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    write_private(&dir.join(format!("{name}.creds")), &text)
}

/// 256 bits from the operating system's generator, as text.
fn random_secret() -> String {
    gpubnb_events::hex(rand::rng().random::<[u8; 32]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_and_files_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let args = BootstrapArgs {
            dir: dir.path().to_path_buf(),
            listen: "127.0.0.1:1".to_owned(),
            store: dir.path().join("store"),
            tls_cert: None,
            tls_key: None,
        };
        bootstrap(&args).unwrap();
        let conf = fs::read_to_string(dir.path().join("nats.conf")).unwrap();
        assert!(!conf.contains('@'), "{conf}");
        assert!(conf.contains("sync_interval: always"));
        for directory in ["services", "projector", "ui", "offline"] {
            for entry in fs::read_dir(dir.path().join(directory)).unwrap() {
                let entry = entry.unwrap();
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
            }
        }
        bootstrap(&args).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("nats.conf")).unwrap(), conf);
    }
}
