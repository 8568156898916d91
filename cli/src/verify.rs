//! Two checks. `verify` checks the files that a job left and the lines of its log: the signature of the manifest, which
//! is the list of files, the hash of each file, and the signed digest of the log. `check-proof` checks that an event is
//! in the market's log.
//!
//! `check-proof` trusts only the keys that the user names, or that the market published at the first login. `verify`
//! has to trust more: the market sends the public keys of the job's machine with the manifest, and nothing proves that
//! these keys are the machine's. The output therefore names the key that signed. A user can compare this key with the
//! key in the machine's event `MachineListed`.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, bail, ensure};
use gpubnb_events::{
    JobId, Lease, MachineId,
    manifest::signed_text,
    output::LogLine,
    signed_log::{LogChain, SignedLog},
    spec::Artifact,
    text::{is_plain_path, make_plain},
};
use gpubnb_proof::{EXIT_NO_TRUSTED_KEY, Proof};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{api::Api, saved};

/// Exit code if a file differs from the signed list, or the log from the signed log.
const DIFFERS: u8 = 1;

/// The manifest of a job: the list of the files that it left, with the machine's signature.
#[derive(Deserialize)]
struct JobManifest {
    job: JobId,
    lease: Lease,
    machine: MachineId,
    public_keys: Vec<String>,
    outputs: Vec<Artifact>,
    signature: String,
    log: Option<SignedLog>,
}

impl JobManifest {
    /// The key with which the machine signed the list; `None` if no key of the machine did.
    fn signer(&self) -> anyhow::Result<Option<&String>> {
        self.signer_of(&signed_text(self.job, self.lease, &self.outputs), &self.signature)
    }

    fn signer_of(&self, text: &str, signature: &str) -> anyhow::Result<Option<&String>> {
        let signature = data_encoding::BASE64URL_NOPAD.decode(signature.as_bytes()).context("the signature")?;
        // The library does not distinguish a wrong length from a wrong signature.
        ensure!(signature.len() == 64, "the signature is not 64 bytes long");
        let has_signed = |key: &&String| {
            let key = nkeys::KeyPair::from_public_key(key);
            key.is_ok_and(|key| key.verify(text.as_bytes(), &signature).is_ok())
        };
        Ok(self.public_keys.iter().find(has_signed))
    }
}

/// A proof proves nothing. `verify` has the same exit code if something differs.
const EXIT_NOT_PROVEN: u8 = 1;

/// `gpubnb check-proof`: reads a proof from a file, and checks it. The proof shows that an event is in the log. Only a
/// tree head signed by one of `keys` is trusted. If `keys` is empty, the trusted keys are those that the market
/// published at the first login. If there are none either, the proof can only be consistent with itself. Returns the
/// exit code.
pub(crate) fn check_proof(file: &Path, mut keys: Vec<String>) -> anyhow::Result<u8> {
    if keys.is_empty() {
        keys = saved::read()?.map(|login| login.head_keys).unwrap_or_default();
    }
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    let proof: Proof = serde_json::from_slice(&text).context("this file is not a proof")?;
    match proof.description(&keys) {
        Ok(sentence) => outln!("{sentence}"),
        Err(e) => {
            outln!("Not proven: {e}");
            return Ok(EXIT_NOT_PROVEN);
        }
    }
    if keys.is_empty() {
        errln!("Name the market's key with --key, or log in to the market: it publishes its keys.");
        return Ok(EXIT_NO_TRUSTED_KEY);
    }
    Ok(0)
}

/// `gpubnb verify`: checks a job's manifest, the files in `directory`, and the log. Returns the exit code.
pub(crate) async fn verify(api: &Api, job: &str, directory: Option<&Path>, json: bool) -> anyhow::Result<u8> {
    let manifest: JobManifest = serde_json::from_value(api.get(&format!("/jobs/{job}/manifest")).await?)?;
    ensure!(job.parse() == Ok(manifest.job), "the market answered with the list of another job");
    let Some(signer) = manifest.signer()? else {
        bail!("the list is not signed by a key of the machine {}: do not trust it", manifest.machine);
    };
    let mut differs = Vec::new();
    for file in &manifest.outputs {
        let found = directory.map(|directory| {
            ensure!(is_plain_path(&file.path), "the name is not safe");
            size_and_hash(&directory.join(&file.path))
        });
        let why = match found {
            None => None,
            Some(Ok((bytes, sha256))) => (bytes != file.bytes || sha256 != file.sha256).then(|| "differs".to_owned()),
            Some(Err(e)) => Some(format!("{e:#}")),
        };
        if !json {
            let verdict = why.as_deref().unwrap_or(if directory.is_some() { "ok" } else { "listed" });
            outln!("{}  {:>12}  {}  {}", file.sha256, file.bytes, make_plain(&file.path), make_plain(verdict));
        }
        differs.extend(why.map(|why| json!({ "path": file.path, "why": why })));
    }
    let log = match &manifest.log {
        None => None,
        Some(log) => Some((log.lines, check_log(api, &manifest, log).await?)),
    };
    let is_log_wrong = log.as_ref().is_some_and(|(_, why)| why.is_some());
    if json {
        let machine = manifest.machine;
        let log = log.map(|(lines, why)| json!({ "lines": lines, "differs": why }));
        let JobManifest { job, outputs, .. } = &manifest;
        let verdict = json!({
            "job": job, "machine": machine, "signed_by": signer, "files": outputs, "differ": differs, "log": log,
        });
        outln!("{verdict}");
    } else {
        match log {
            None => outln!("the log is not signed"),
            Some((lines, None)) => outln!("the log has the {lines} lines that the machine signed"),
            Some((_, Some(why))) => outln!("the log differs: {why}"),
        }
        outln!("signed by machine {} with key {signer}", manifest.machine);
    }
    Ok(if differs.is_empty() && !is_log_wrong { 0 } else { DIFFERS })
}

/// A line of a log, as the market's API shows it.
#[derive(Deserialize)]
struct ShownLine {
    lease: Lease,
    number: u64,
    #[serde(flatten)]
    line: LogLine,
}

/// Compares the log that the market shows with the log that the machine signed. Returns how they differ.
async fn check_log(api: &Api, manifest: &JobManifest, log: &SignedLog) -> anyhow::Result<Option<String>> {
    let (job, lease) = (manifest.job, manifest.lease);
    if manifest.signer_of(&SignedLog::signed_text(job, lease, log.lines, &log.sha256), &log.signature)?.is_none() {
        return Ok(Some("no key of the machine has signed it".to_owned()));
    }
    let (mut chain, mut cursor) = (LogChain::default(), String::new());
    loop {
        let mut page = api.get(&format!("/jobs/{job}/logs{cursor}")).await?;
        let rows: Vec<ShownLine> = serde_json::from_value(page["rows"].take()).context("a page of the log")?;
        for shown in rows.into_iter().filter(|shown| shown.lease == lease) {
            if shown.number > chain.lines {
                return Ok(Some(format!("line {} is missing", chain.lines)));
            }
            // A page may repeat lines.
            if shown.number == chain.lines {
                chain.add(&shown.line);
            }
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("?cursor={next}"),
            None => break,
        }
    }
    Ok(match (chain.lines == log.lines, chain.sha256() == log.sha256) {
        (true, true) => None,
        (true, false) => Some("a line is another one".to_owned()),
        (false, _) => Some(format!("the market shows {} lines, the machine signed {}", chain.lines, log.lines)),
    })
}

/// The size in bytes and the SHA-256 (hexadecimal) of a file. A link is refused.
pub(crate) fn size_and_hash(path: &Path) -> anyhow::Result<(u64, String)> {
    ensure!(!path.symlink_metadata()?.is_symlink(), "is a link");
    let mut file = File::open(path)?;
    let (mut hash, mut buffer, mut bytes) = (Sha256::new(), vec![0; 128 * 1024], 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, gpubnb_events::hex(hash.finalize())));
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
}
