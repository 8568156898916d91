//! Makes all keys of a new market, once: the keys of the NATS operator (the root of trust), of the NATS accounts and of
//! each process; the secret key that signs permits; and the key that opens the secrets of jobs. Also writes the
//! broker's configuration. No market runs without credentials.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, ensure};
use gpubnb_events::{Clock, SystemClock, Timestamp};
use nkeys::{KeyPair, XKey};
use rand::RngExt as _;

use super::{
    files::{ISSUER, MACHINES, REVOKER, SEALING, write_private},
    jwt::{self, AccountRole, Permissions},
    rights,
};
use crate::config::{BootstrapArgs, ClusterMember};

const TEMPLATE: &str = include_str!("nats.conf");
/// The user of the broker's system account.
pub(super) const SYSTEM_USER: &str = "system";
/// The file of the secret key for permits. A permit allows one thing for a limited time, for example the upload of the
/// files of one attempt. The services sign permits for machines, and the web server checks them with the same key.
const PERMIT_KEY: &str = "transfer.key";

/// Writes the configuration of each broker, a directory of credentials for each process, and `offline/` with keys to
/// store in a safe place.
pub fn bootstrap(args: &BootstrapArgs) -> anyhow::Result<()> {
    let brokers = brokers(args)?;
    let known = configurations(&args.dir)?;
    if known == brokers.iter().map(|broker| broker.file.clone()).collect() {
        let files: Vec<_> = known.iter().map(|file| args.dir.join(file).display().to_string()).collect();
        println!("{} is there already: kept", files.join(", "));
        return Ok(());
    }
    let dir = args.dir.display();
    ensure!(known.is_empty(), "{dir} has the keys of another market or cluster: name an empty directory");
    ensure!(args.tls_cert.is_some() == args.tls_key.is_some(), "--tls-cert and --tls-key go together");
    ensure!(args.tls_ca.is_none() || args.tls_cert.is_some(), "--tls-ca needs --tls-cert and --tls-key");
    for directory in ["services", "projector", "notifier", "ui", "offline"] {
        let dir = args.dir.join(directory);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let config = make_keys(&args.dir, SystemClock.now())?;
    let tls = args.tls_cert.as_ref().zip(args.tls_key.as_ref()).map_or_else(String::new, |(cert, key)| {
        format!("tls {{ cert_file: \"{}\", key_file: \"{}\", timeout: 5 }}", cert.display(), key.display())
    });
    let monitor = args.monitor.as_ref().map_or_else(String::new, |address| format!("http: \"{address}\""));
    let text = TEMPLATE
        .replace("@LISTEN@", &args.listen)
        .replace("@MONITOR@", &monitor)
        .replace("@STORE@", &args.store.to_string_lossy())
        .replace("@OPERATOR@", &config.operator)
        .replace("@SYSTEM@", &config.system.public_key)
        .replace("@SYSTEM_JWT@", &config.system.jwt)
        .replace("@MARKET@", &config.market.public_key)
        .replace("@MARKET_JWT@", &config.market.jwt)
        .replace("@MACHINES@", &config.machines.public_key)
        .replace("@MACHINES_JWT@", &config.machines.jwt)
        .replace("@TLS@", &tls);
    // Write these files last: without them, the next bootstrap starts over.
    for broker in &brokers {
        let text = text.replace("@NAME@", &broker.name).replace("@CLUSTER@", &broker.cluster);
        write_private(&args.dir.join(format!("{}.new", broker.file)), &text)?;
    }
    for broker in brokers {
        let file = args.dir.join(broker.file);
        let new = file.with_extension("conf.new");
        fs::rename(&new, &file).with_context(|| format!("writing {}", file.display()))?;
    }
    println!(
        "{} is ready. Move {} away: nothing that runs needs it.",
        args.dir.display(),
        args.dir.join("offline").display()
    );
    Ok(())
}

/// The names of the brokers' configurations in a directory.
fn configurations(dir: &Path) -> anyhow::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.with_context(|| format!("reading {}", dir.display()))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<std::io::Result<Vec<_>>>()?;
    let is_configuration = |name: &String| name.strip_suffix(".conf").is_some_and(|name| name.starts_with("nats"));
    Ok(names.into_iter().filter(is_configuration).collect())
}

/// The parts of the configuration that differ between the brokers of a market.
struct Broker {
    /// The name of the configuration's file.
    file: String,
    name: String,
    /// The section about the cluster; empty for a single broker.
    cluster: String,
}

fn brokers(args: &BootstrapArgs) -> anyhow::Result<Vec<Broker>> {
    let members = &args.cluster;
    if members.is_empty() {
        let (file, name) = ("nats.conf".to_owned(), "gpubnb".to_owned());
        return Ok(vec![Broker { file, name, cluster: String::new() }]);
    }
    let names: BTreeSet<_> = members.iter().map(|member| &member.name).collect();
    ensure!(names.len() == members.len(), "each broker of --cluster has a name of its own");
    ensure!(members.len() % 2 == 1, "a cluster has an odd number of brokers: more than half of them must be up");
    let password = random_secret();
    Ok(members.iter().map(|member| cluster_member(member, args, &password)).collect())
}

/// The configuration of one broker of a cluster. The brokers know each other by a password, and with `--tls-ca` also by
/// their certificates.
fn cluster_member(member: &ClusterMember, args: &BootstrapArgs, password: &str) -> Broker {
    let others = args.cluster.iter().filter(|other| *other != member);
    let routes: Vec<_> =
        others.map(|other| format!("    \"nats-route://route:{password}@{}\"\n", other.address)).collect();
    let files = args.tls_cert.as_ref().zip(args.tls_key.as_ref()).zip(args.tls_ca.as_ref());
    let tls = files.map_or_else(String::new, |((cert, key), ca)| {
        format!(
            "  tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true, timeout: 5 }}\n",
            cert.display(),
            key.display(),
            ca.display()
        )
    });
    let cluster = format!(
        "cluster {{\n  name: gpubnb\n  listen: \"{}\"\n  no_advertise: true\n  authorization {{ user: route, password: \
         \"{password}\", timeout: 5 }}\n{tls}  routes: [\n{}  ]\n}}",
        member.address,
        routes.concat()
    );
    Broker { file: format!("nats-{}.conf", member.name), name: member.name.clone(), cluster }
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
            tls_ca: None,
            monitor: None,
            cluster: Vec::new(),
        };
        bootstrap(&args).unwrap();
        let conf = fs::read_to_string(dir.path().join("nats.conf")).unwrap();
        assert!(!conf.contains('@'), "{conf}");
        assert!(conf.contains("sync_interval: always"));
        for directory in ["services", "projector", "notifier", "ui", "offline"] {
            for entry in fs::read_dir(dir.path().join(directory)).unwrap() {
                let entry = entry.unwrap();
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
            }
        }
        bootstrap(&args).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("nats.conf")).unwrap(), conf);
    }

    #[test]
    fn each_broker_of_a_cluster_has_a_name_and_routes_to_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let args = |cluster: &str| BootstrapArgs {
            dir: dir.path().to_path_buf(),
            listen: "127.0.0.1:1".to_owned(),
            store: dir.path().join("store"),
            tls_cert: Some("/c".into()),
            tls_key: Some("/k".into()),
            tls_ca: Some("/a".into()),
            monitor: Some("127.0.0.1:8222".to_owned()),
            cluster: cluster.split(',').map(|member| member.parse().unwrap()).collect(),
        };
        assert!(bootstrap(&args("a=h:1,b=h:2")).is_err(), "two brokers stop as soon as one of them does");
        assert!(bootstrap(&args("a=h:1,a=h:2,b=h:3")).is_err());
        bootstrap(&args("a=h:1,b=h:2,c=h:3")).unwrap();
        let conf = fs::read_to_string(dir.path().join("nats-b.conf")).unwrap();
        for expected in
            ["server_name: b", "listen: \"h:2\"", "@h:1\"", "@h:3\"", "verify: true", "http: \"127.0.0.1:8222\""]
        {
            assert!(conf.contains(expected), "{expected}: {conf}");
        }
        assert!(!conf.contains("@h:2") && !dir.path().join("nats.conf").exists());
        let keys = || fs::read(dir.path().join("services/append.creds")).unwrap();
        let before = keys();
        bootstrap(&args("a=h:1,b=h:2,c=h:3")).unwrap();
        for other in ["a=h:1,b=h:2,d=h:3", "a=h:1"] {
            assert!(bootstrap(&args(other)).is_err(), "the keys of a market are never replaced");
        }
        assert_eq!(keys(), before);
        for bad in ["a", "a=h", "=h:1", "a=h:x", "a b=h:1", "a=h\"}:1", "a=:1"] {
            assert!(bad.parse::<ClusterMember>().is_err(), "{bad}");
        }
    }
}
