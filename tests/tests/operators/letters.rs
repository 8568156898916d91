//! Dead letters: a dead letter is a message with a job that no machine will work on. Operators see each dead letter
//! with its trouble, and remove the trouble with one click.

use std::time::{Duration, Instant};

use gpubnb_events::{
    MachineId,
    subject::{OPERATOR_INBOX, SERVICES_INBOX},
};
use gpubnb_log::stream::{DISPATCH, MARKET as MARKET_STREAM, OUTPUT, machine_consumer};
use gpubnb_runtime::nats::jetstream;
use gpubnb_tests::{
    api_client::ApiClient,
    jobs::{noop_job, pin_to_machine},
    market::{Market, Worker},
    shared::{Plan, SharedMarket},
    system::MarketSettings,
};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

static SHARED: SharedMarket = SharedMarket::new(|| {
    let services = ["--accept-within", "2", "--suspect-after", "1000", "--lost-after", "2000"].map(str::to_owned);
    Plan::with_settings(MarketSettings { services: services.to_vec(), ..MarketSettings::default() })
});

const LETTERS: &str = "/ops/dead-letters";

/// A market, and a machine that belongs to the test.
struct Fixture {
    market: Market,
    operator: ApiClient,
    machine: MachineId,
    name: &'static str,
    /// The machine's worker; `None` while it does not run.
    worker: Option<Worker>,
}

impl Fixture {
    /// Starts a worker for the test, and waits until its machine has no dead letters.
    async fn open(name: &'static str) -> Self {
        let market = SHARED.open().await.unwrap();
        let worker = market.start_scoped_worker(name, &[]).await.unwrap();
        let machine = market.machine_id(name).unwrap().parse().unwrap();
        let fixture = Self { operator: market.operator().unwrap(), machine, name, market, worker: Some(worker) };
        fixture.wait_for_letters(<[Value]>::is_empty).await;
        fixture
    }

    /// Waits until `wanted` returns true for the dead letters of the machine, and returns them.
    async fn wait_for_letters(&self, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let mut letters = self.operator.get(LETTERS).await.unwrap().as_array().unwrap().clone();
            letters.retain(|letter| letter["machine"] == json!(self.machine));
            if wanted(&letters) {
                return letters;
            }
            assert!(Instant::now() < deadline, "{letters:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Sends a signal to the worker, if it runs.
    fn signal(&self, signal: Signal) {
        if let Some(worker) = &self.worker {
            worker.process.signal(signal);
        }
    }

    /// Makes a dead letter: suspends the worker, and lets the time to accept a job run out. Returns the id of the job
    /// and the dead letter.
    async fn make_letter(&self) -> (String, Value) {
        self.signal(Signal::STOP);
        let mut body = pin_to_machine(noop_job(), &self.machine.to_string());
        body["max_attempts"] = json!(1);
        let job = self.market.consumer.submit(&body).await.unwrap();
        let failed = self.market.consumer.wait_until_settled(&job).await.unwrap();
        assert_eq!(failed["state"], "Failed", "{failed:#}");
        // The services may know a moment after the projector that the lease is over.
        let is_over = |letters: &[Value]| letters.first().is_some_and(|letter| letter["trouble"] == "lease_over");
        let letter = self.wait_for_letters(is_over).await.remove(0);
        (job, letter)
    }

    /// The body of the request that clears a dead letter.
    fn remedy(&self, letter: &Value) -> Value {
        json!({ "machine": self.machine, "seq": letter["message"]["seq"] })
    }

    /// Resumes the worker, and checks that the machine completes a new job.
    async fn assert_machine_works(&self) {
        self.signal(Signal::CONT);
        let next = self.market.consumer.submit(&pin_to_machine(noop_job(), &self.machine.to_string())).await.unwrap();
        let settled = self.market.consumer.wait_until_settled(&next).await.unwrap();
        assert_eq!(settled["state"], "Completed", "{settled:#}\n{}", self.market.process_log(self.name));
    }
}

#[tokio::test]
async fn a_dead_letter_names_its_trouble_its_job_and_its_machine() {
    let fixture = Fixture::open("named").await;
    let (job, letter) = fixture.make_letter().await;
    assert_eq!((&letter["trouble"], &letter["message"]["job"]), (&json!("lease_over"), &json!(job)), "{letter}");
    assert_eq!(letter["machine_name"], "named");
}

#[tokio::test]
async fn the_console_shows_a_dead_letter_and_its_remedy() {
    let fixture = Fixture::open("shown").await;
    fixture.make_letter().await;
    let page = String::from_utf8(fixture.operator.bytes("/console").await.unwrap().1).unwrap();
    assert!(page.contains("the lease in the message is over") && page.contains("Clear"), "{page}");
}

#[tokio::test]
async fn a_dead_letter_can_be_printed_from_the_command_line() {
    let fixture = Fixture::open("replayed").await;
    let (job, letter) = fixture.make_letter().await;
    let replayed = fixture.market.run_operator_tool(&["replay", "DISPATCH", "--id", &job, "--json"]).unwrap();
    let replayed: Value = serde_json::from_slice(&replayed.stdout).unwrap();
    let expected = (&letter["message"]["seq"], &json!("JobAssigned.v2"));
    assert_eq!((&replayed["seq"], &replayed["type"]), expected, "{replayed}");
}

#[tokio::test]
async fn a_cleared_message_never_reaches_its_machine() {
    let mut fixture = Fixture::open("cleared").await;
    // The worker ends: a suspended worker may have asked for the next message already.
    fixture.worker = None;
    let (job, letter) = fixture.make_letter().await;
    fixture.operator.post(LETTERS, &fixture.remedy(&letter)).await.unwrap();
    fixture.wait_for_letters(<[Value]>::is_empty).await;
    fixture.worker = Some(fixture.market.start_scoped_worker(fixture.name, &[]).await.unwrap());
    fixture.assert_machine_works().await;
    assert!(!fixture.market.process_log("cleared").contains(&job), "{}", fixture.market.process_log("cleared"));
}

#[tokio::test]
async fn only_an_operator_can_clear_a_dead_letter_and_only_once() {
    let fixture = Fixture::open("gone").await;
    let (_, letter) = fixture.make_letter().await;
    let remedy = fixture.remedy(&letter);
    assert_eq!(fixture.market.consumer.request(Method::POST, LETTERS, Some(&remedy)).await.unwrap().0, 404);
    fixture.operator.post(LETTERS, &remedy).await.unwrap();
    let repeated = fixture.operator.request(Method::POST, LETTERS, Some(&remedy)).await.unwrap();
    assert_eq!(repeated.0, 404, "{}", repeated.1);
}

#[tokio::test]
async fn a_machine_whose_jetstream_consumer_was_deleted_gets_a_new_one() {
    let fixture = Fixture::open("consumerless").await;
    // A running worker would notice that its JetStream consumer is gone, and ask the market for a new one.
    fixture.signal(Signal::STOP);
    let client = fixture.market.nats_args("services").connect("append", SERVICES_INBOX).await.unwrap();
    let stream = jetstream(client).get_stream_no_info(DISPATCH).await.unwrap();
    stream.delete_consumer(&machine_consumer(fixture.machine)).await.unwrap();
    let found = fixture.wait_for_letters(|letters| !letters.is_empty()).await;
    assert_eq!(found[0]["trouble"], "no_consumer", "{found:?}");
    let form = [("csrf", fixture.operator.csrf().to_owned()), ("machine", fixture.machine.to_string())];
    let clicked = fixture.operator.build_request(Method::POST, "/console/remedy").form(&form).send().await.unwrap();
    assert_eq!(clicked.status(), 303, "{}", clicked.text().await.unwrap());
    fixture.wait_for_letters(<[Value]>::is_empty).await;
    fixture.signal(Signal::CONT);
    fixture.assert_machine_works().await;
}

#[tokio::test]
async fn an_operators_credential_takes_no_jobs_and_deletes_nothing() {
    let fixture = Fixture::open("guarded").await;
    let client = fixture.market.nats_args("projector").connect("operator", OPERATOR_INBOX).await.unwrap();
    let stream = jetstream(client.clone()).get_stream(DISPATCH).await.unwrap();
    let consumer = machine_consumer(fixture.machine);
    for call in [
        format!("CONSUMER.DELETE.{DISPATCH}.{consumer}"),
        format!("CONSUMER.CREATE.{DISPATCH}.thief"),
        format!("STREAM.PURGE.{DISPATCH}"),
        format!("STREAM.DELETE.{OUTPUT}"),
        format!("STREAM.MSG.DELETE.{MARKET_STREAM}"),
    ] {
        // The broker does not answer a request that it refuses.
        let answer = timeout(Duration::from_millis(300), client.request(format!("$JS.API.{call}"), "{}".into())).await;
        assert!(answer.is_err(), "{call}: {answer:?}");
    }
    assert!(stream.consumer_info(&consumer).await.is_ok());
    fixture.assert_machine_works().await;
}
