//! Dead letters: job messages that nobody works on are told to operators, with what is wrong, and one click mends it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use gpubnb_events::{MachineId, subject::SERVICES_INBOX};
use gpubnb_log::stream::{DISPATCH, machine_consumer};
use gpubnb_runtime::nats::jetstream;
use gpubnb_tests::{
    system::{Options, System},
    web::Web,
};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

const LETTERS: &str = "/ops/dead-letters";

/// The dead letters, once they are as wanted.
async fn letters(operator: &Web, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let by = Instant::now() + Duration::from_secs(40);
    loop {
        let letters = operator.get(LETTERS).await.unwrap().as_array().unwrap().clone();
        if wanted(&letters) {
            return letters;
        }
        assert!(Instant::now() < by, "{letters:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn what_nobody_works_on_is_told_and_mended_with_one_click() {
    let services = ["--accept-within", "2", "--suspect-after", "1000", "--lost-after", "2000"].map(str::to_owned);
    let mut system = System::start(Options { services: services.to_vec(), ..Options::default() }).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let machine: MachineId = system.machine("attic").unwrap().parse().unwrap();
    let operator = Web::operator(&system).await.unwrap();
    assert_eq!(letters(&operator, |_| true).await, Vec::<Value>::new());

    // A worker hangs while a job is given to its machine; the job's time to be accepted is soon over.
    system.workers[0].signal(Signal::STOP);
    let job = system.web.submit(&json!({ "template": "noop", "max_attempts": 1 })).await.unwrap();
    let failed = system.web.settled(&job).await.unwrap();
    assert_eq!(failed["state"], "Failed", "{failed:#}");
    let found = letters(&operator, |l| !l.is_empty()).await;
    let (letter, message) = (&found[0], &found[0]["message"]);
    assert_eq!((&letter["trouble"], &message["job"]), (&json!("lease_over"), &json!(job)), "{letter}");
    assert_eq!(letter["machine_name"], "attic");
    let page = String::from_utf8(operator.bytes("/console").await.unwrap().1).unwrap();
    assert!(page.contains("its lease is over") && page.contains("Clear"), "{page}");

    let replayed = system.tool(&["replay", "DISPATCH", "--json"]).unwrap();
    let replayed: Value = serde_json::from_slice(&replayed.stdout).unwrap();
    assert_eq!((&replayed["seq"], &replayed["type"]), (&message["seq"], &json!("JobAssigned.v2")), "{replayed}");

    let remedy = json!({ "machine": machine, "seq": message["seq"] });
    operator.post(LETTERS, &remedy).await.unwrap();
    letters(&operator, <[Value]>::is_empty).await;
    // What is not there any more has no remedy, and nobody else has a say.
    let again = operator.request(Method::POST, LETTERS, Some(&remedy)).await.unwrap();
    assert_eq!(again.0, 404, "{}", again.1);
    assert_eq!(system.web.request(Method::POST, LETTERS, Some(&remedy)).await.unwrap().0, 404);

    // A machine has lost its consumer. With a new one it works again, and never sees the message that was cleared.
    let client = system.nats_args("services").connect("append", SERVICES_INBOX).await.unwrap();
    let stream = jetstream(client).get_stream_no_info(DISPATCH).await.unwrap();
    stream.delete_consumer(&machine_consumer(machine)).await.unwrap();
    let found = letters(&operator, |l| !l.is_empty()).await;
    assert_eq!(found[0]["trouble"], "no_consumer", "{found:?}");
    let form = [("csrf", operator.csrf().to_owned()), ("machine", machine.to_string())];
    let clicked = operator.ask(Method::POST, "/console/remedy").form(&form).send().await.unwrap();
    assert_eq!(clicked.status(), 303, "{}", clicked.text().await.unwrap());
    letters(&operator, <[Value]>::is_empty).await;
    system.workers[0].signal(Signal::CONT);
    let next = system.web.submit(&json!({ "template": "noop" })).await.unwrap();
    let settled = system.web.settled(&next).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}\n{}", system.log("attic"));
    assert!(!system.log("attic").contains(&job), "{}", system.log("attic"));
}
