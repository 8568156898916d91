//! Makes what a new market needs once: passwords, the key for transfers, the broker's configuration.
//! There is no mode without credentials.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context as _;
use rand::RngExt as _;

use crate::config::BootstrapArgs;

const TEMPLATE: &str = include_str!("nats.conf");
/// The broker's users, and the process that holds the password of each.
const USERS: [(&str, &str); 6] = [
    ("bootstrap", "services"),
    ("serve", "services"),
    ("append", "services"),
    ("projector", "projector"),
    ("ui", "ui"),
    ("machine", "provider"),
];
/// What changes, trims or replaces a stream.
const CHANGES: [&str; 6] = ["CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "RESTORE"];

/// Writes `nats.conf`, one `<process>.passwords` per process, and `transfer.key`.
pub fn bootstrap(args: &BootstrapArgs) -> anyhow::Result<()> {
    fs::create_dir_all(&args.dir).with_context(|| format!("creating {}", args.dir.display()))?;
    let conf = args.dir.join("nats.conf");
    if conf.exists() {
        println!("{} is there already: kept", conf.display());
        return Ok(());
    }
    let mut text = TEMPLATE
        .replace("@LISTEN@", &args.listen)
        .replace("@STORE@", &args.store.to_string_lossy())
        .replace("@STREAM_CHANGES@", &stream_changes("*", &CHANGES))
        .replace(
            "@STREAM_CHANGES_BUT_TELEMETRY@",
            &[
                stream_changes("*", &CHANGES[1..]),
                stream_changes("MARKET", &["CREATE"]),
                stream_changes("DISPATCH", &["CREATE"]),
                stream_changes("OUTPUT", &["CREATE"]),
            ]
            .join(", "),
        )
        // Files are replaced by purging their old chunks, and nothing else of the kind is allowed.
        .replace(
            "@STREAM_CHANGES_BUT_FILES@",
            &[
                stream_changes("*", &["CREATE", "UPDATE", "DELETE", "MSG.DELETE", "RESTORE"]),
                stream_changes("MARKET", &["PURGE"]),
                stream_changes("DISPATCH", &["PURGE"]),
                stream_changes("OUTPUT", &["PURGE"]),
                stream_changes("TELEMETRY", &["PURGE"]),
            ]
            .join(", "),
        );
    let mut passwords: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (user, process) in USERS {
        let password = secret();
        text = text.replace(&format!("@{user}@"), &password);
        passwords.entry(process).or_default().push(format!("{user}:{password}\n"));
    }
    for (process, lines) in passwords {
        write_private(&args.dir.join(format!("{process}.passwords")), &lines.concat())?;
    }
    write_private(&args.dir.join("transfer.key"), &secret())?;
    // Last: where it is, everything is. A bootstrap that was interrupted begins anew.
    write_private(&conf, &text)?;
    println!("{} is ready", args.dir.display());
    Ok(())
}

fn stream_changes(stream: &str, verbs: &[&str]) -> String {
    let subjects = verbs.iter().map(|verb| format!("\"$JS.API.STREAM.{verb}.{stream}\""));
    subjects.collect::<Vec<_>>().join(", ")
}

/// 256 bits from the operating system's generator, as text.
fn secret() -> String {
    gpubnb_events::hex(rand::rng().random::<[u8; 32]>())
}

/// Writes a file that only its owner may read, all of it or nothing.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    let written = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    written().with_context(|| format!("writing {}", path.display()))
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
        };
        bootstrap(&args).unwrap();
        let conf = fs::read_to_string(dir.path().join("nats.conf")).unwrap();
        assert!(!conf.contains('@'), "{conf}");
        assert!(conf.contains("sync_interval: always"));
        let passwords = dir.path().join("services.passwords");
        assert_eq!(fs::metadata(&passwords).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(passwords).unwrap().lines().count(), 3);
        bootstrap(&args).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("nats.conf")).unwrap(), conf);
    }
}
