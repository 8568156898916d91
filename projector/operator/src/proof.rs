//! `prove` fetches a proof that one event is in the signed log. `check-proof` checks such a proof, without a broker.

use std::process::ExitCode;

use anyhow::Context as _;
use gpubnb_events::{Actor, Seq};
use gpubnb_proof::{EXIT_NO_TRUSTED_KEY, Proof};
use gpubnb_query::QueryClient;
use gpubnb_runtime::rpc::Caller;

use super::print_result;
use crate::config::CheckProofArgs;

pub(crate) async fn prove(client: async_nats::Client, seq: Seq) -> anyhow::Result<()> {
    let proof = QueryClient::new(Caller::new(client)).proof(Actor::Operator(None), seq).await?;
    proof.check(&[]).context("the projector's proof is wrong: run `gpubnb-projector verify`")?;
    print_result(serde_json::to_string_pretty(&proof)?)
}

pub(crate) fn check(args: &CheckProofArgs) -> anyhow::Result<ExitCode> {
    let file = &args.file;
    let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let proof: Proof = serde_json::from_slice(&text).context("this file is not a proof")?;
    let description = match proof.description(&args.keys) {
        Ok(description) => description,
        Err(why) => {
            if args.json {
                print_result(serde_json::json!({ "proven": false, "why": why.to_string() }))?;
            }
            return Err(why.into());
        }
    };
    if args.json {
        let (seq, key, size) = (proof.message.seq, &proof.head.key, proof.head.size);
        let is_vouched = !args.keys.is_empty();
        print_result(serde_json::json!({
            "proven": is_vouched, "consistent": true, "seq": seq, "size": size, "key": key, "says": description
        }))?;
    } else {
        print_result(description)?;
    }
    Ok(if args.keys.is_empty() { EXIT_NO_TRUSTED_KEY.into() } else { ExitCode::SUCCESS })
}
