//! A test of the bounds of every command: no text and no list of a command can make an event large. The test does not
//! know the fields. It takes a valid command as JSON, and makes each text and list in it too large, one by one.

use gpubnb_events::{
    Actor, CommandId, Lease, MicroUsd, Millis,
    command::{ClosePayout, ListMachine, Outcome, RecordTest, Report, RequestPayout, Secret, SetSuspension, Start},
    event::{Check, Reason},
    signed_log::SignedLog,
    spec::{Artifact, DatasetMount, Gpu, HostTraffic, Input, LeftOut, LeftOutReason, Mebibytes, Traffic, Usage},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Command, Decision, Listing,
    machine::COMPLETE_TEST,
    testing::{TestMarket, given},
};

/// Largest event in JSON, bytes. The broker takes messages of 1 MB.
const MAX_EVENT: usize = 768 << 10;
/// How much an event may grow by one field that is not refused, bytes.
const MAX_GROWTH: usize = 300 << 10;

/// Copies of a value. In each copy, one text or one list is too large. The first part of each pair is the place of this
/// text or list, for example `SubmitJob.spec.image (long)`.
fn too_large(value: &Value, place: &str) -> Vec<(String, Value)> {
    let nested = |changes: Vec<(String, Value)>, put: &dyn Fn(Value) -> Value| {
        changes.into_iter().map(|(place, changed)| (place, put(changed))).collect::<Vec<_>>()
    };
    match value {
        // JSON takes six bytes for a control character.
        Value::String(_) => [("x".repeat(1 << 20), "long"), ("\u{1}".repeat(4_096), "control")]
            .map(|(text, kind)| (format!("{place} ({kind})"), Value::String(text)))
            .to_vec(),
        Value::Array(items) => {
            let first = items.first().cloned().unwrap_or_else(|| Value::String("x".to_owned()));
            let copies = (0..100_000).map(|number| numbered(&first, number)).collect();
            let mut found = vec![(format!("{place}[]"), Value::Array(copies))];
            for (index, item) in items.iter().enumerate() {
                found.extend(nested(too_large(item, &format!("{place}[{index}]")), &|changed| {
                    let mut items = items.clone();
                    items[index] = changed;
                    Value::Array(items)
                }));
            }
            found
        }
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, field)| {
                nested(too_large(field, &format!("{place}.{name}")), &|changed| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), changed);
                    Value::Object(fields)
                })
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// A copy of an item of a list that differs from the other copies, so that no rule against doubles refuses the list
/// before its length does.
fn numbered(item: &Value, number: usize) -> Value {
    match item {
        Value::String(text) => Value::String(format!("{text}{number}")),
        Value::Object(fields) => {
            let names = ["path", "id", "uuid", "example", "host"];
            let change = |(name, field): (&String, &Value)| {
                let is_name = names.contains(&name.as_str());
                (name.clone(), if is_name { numbered(field, number) } else { field.clone() })
            };
            Value::Object(fields.iter().map(change).collect())
        }
        other => other.clone(),
    }
}

/// The size of the event of a command; `None` if the command is refused, or appends nothing.
fn event_size(market: &TestMarket, actor: Actor, command: &Command) -> Option<usize> {
    match market.world.decide(actor, command, None, market.now, &market.settings) {
        Ok(Decision::Append(proposal)) => Some(serde_json::to_vec(&proposal.event).unwrap().len()),
        _ => None,
    }
}

fn check<C: Serialize + DeserializeOwned>(
    market: &TestMarket,
    actor: Actor,
    valid: &C,
    command: impl Fn(C) -> Command,
) {
    let name = std::any::type_name::<C>().rsplit("::").next().unwrap();
    let value = serde_json::to_value(valid).unwrap();
    let usual = event_size(market, actor, &command(serde_json::from_value(value.clone()).unwrap()));
    let usual = usual.unwrap_or_else(|| panic!("{name} is refused"));
    for (place, changed) in too_large(&value, name) {
        // A value that cannot be read is refused before the decision.
        let Ok(changed) = serde_json::from_value::<C>(changed) else { continue };
        if let Some(size) = event_size(market, actor, &command(changed)) {
            assert!(size < MAX_EVENT && size < usual + MAX_GROWTH, "{place}: an event of {size} bytes");
        }
    }
}

#[test]
fn no_text_and_no_list_of_a_consumer_or_an_operator_makes_an_event_large() {
    let mut market = given();
    let account = market.consumer;
    let mut submit = market.new_submission();
    submit.spec.template = None;
    submit.spec.image = format!("ghcr.io/a/b@sha256:{}", "0".repeat(64));
    submit.budget = Some(MicroUsd(1_000));
    (submit.spec.command, submit.spec.workdir) = (vec!["a".to_owned()], Some("/a".to_owned()));
    (submit.spec.env, submit.env) = (vec!["A".to_owned()], [("A".to_owned(), Secret("b".to_owned()))].into());
    submit.placement.requirements.gpu_model = Some("a".to_owned());
    submit.placement.requirements.region = Some("a".to_owned());
    let mut batch = market.new_batch(1);
    (batch.job.spec.template, batch.job.spec.image) = (None, format!("ghcr.io/a/b@sha256:{}", "0".repeat(64)));
    (batch.job.budget, batch.job.spec.command) = (Some(MicroUsd(1_000)), vec!["a".to_owned()]);
    batch.tasks.indices = vec![7];
    (batch.tasks.names, batch.tasks.rows) = (vec!["a".to_owned()], vec![vec!["b".to_owned()]]);
    check(&market, market.as_consumer(), &batch, |batch| Command::SubmitBatch(account, batch));
    submit.spec.inputs =
        vec![Input { path: "a".to_owned(), input: CommandId::generate(), bytes: 1, sha256: "0".repeat(64) }];
    let dataset = "0".repeat(64).parse().unwrap();
    submit.spec.datasets =
        vec![DatasetMount { dataset, directory: "a".to_owned(), writable: true, files: 1, bytes: 1 }];
    check(&market, market.as_consumer(), &submit, |c| Command::Submit(account, c));
    let payout = RequestPayout { payout: CommandId::generate(), amount: MicroUsd(1) };
    market.when(market.as_consumer(), Command::RequestPayout(account, payout)).expect_appended();
    let close = ClosePayout { account, payout: payout.payout, failed: Some("a".to_owned()) };
    check(&market, market.as_operator(), &close, Command::ClosePayout);
    let suspend = SetSuspension { account, reason: Some("a".to_owned()) };
    check(&market, market.as_operator(), &suspend, Command::SetSuspension);
}

#[test]
fn no_text_and_no_list_of_a_machine_makes_an_event_large() {
    let mut market = given();
    let machine = market.machine;
    let mut offer = market.offer();
    let text = || Some("a".to_owned());
    offer.hardware.gpus = vec![Gpu {
        uuid: "a".to_owned(),
        model: "a".to_owned(),
        memory: Mebibytes(1),
        capability: text(),
        pci: text(),
    }];
    (offer.hardware.driver, offer.hardware.cuda, offer.policy.hours) = (text(), text(), text());
    offer.policy.egress = "a.example".parse().unwrap();
    offer.policy.registries = Some(vec!["a".to_owned()]);
    let owner = market.provider;
    let listing = |c: ListMachine| Command::ListMachine(machine, Listing { owner, public_key: None, offer: c.offer });
    check(&market, market.as_machine(), &ListMachine { offer }, listing);
    let one = |id: &&str| Check {
        id: (*id).to_owned(),
        actual: String::new(),
        required: String::new(),
        unit: String::new(),
        passed: true,
        remedy: "a".to_owned(),
        recommended: false,
    };
    let test = RecordTest { checks: COMPLETE_TEST.iter().map(one).collect() };
    check(&market, market.as_machine(), &test, |c| Command::RecordTest(machine, c));
    let mut submission = market.new_submission();
    submission.spec.egress = "*.example".parse().unwrap();
    let job = market.submit(submission);
    let lease = market.assign(job);
    market.accept(job, lease);
    let start = Start { job, lease, image_digest: "sha256:0".to_owned() };
    check(&market, market.as_machine(), &start, |c| Command::Start(machine, c));
    market.start(job, lease);
    check_report(&market, job, lease);
}

fn check_report(market: &TestMarket, job: gpubnb_events::JobId, lease: Lease) {
    let file = Artifact { path: "a".to_owned(), bytes: 1, sha256: "0".repeat(64) };
    let left_out = LeftOut { reason: LeftOutReason::NotAFile, entries: 1, example: "a".to_owned() };
    let traffic = HostTraffic { host: "a.example".to_owned(), received: 1, sent: 1 };
    let failed = Outcome::Failed { reason: Reason::NonZeroExit { code: 1 }, detail: "a".to_owned() };
    for outcome in [Outcome::Completed, failed] {
        let report = Report {
            job,
            lease,
            outcome,
            outputs: vec![file.clone()],
            left_out: vec![left_out.clone()],
            usage: Some(Usage { run: Millis(1) }),
            traffic: Some(Traffic { hosts: vec![traffic.clone()], refused: 1 }),
            occurred_at: market.now,
            signature: Some("a".to_owned()),
            log: Some(SignedLog { lines: 1, sha256: "0".repeat(64), signature: "a".to_owned() }),
        };
        check(market, market.as_machine(), &report, |c| Command::Report(market.machine, c));
    }
}
