//! Dead letters: job messages that nobody works on are shown to operators with their trouble, and one click mends it.

use std::time::{Duration, Instant};

use gpubnb_events::{MachineId, subject::SERVICES_INBOX};
use gpubnb_log::stream::{DISPATCH, machine_consumer};
use gpubnb_runtime::nats::jetstream;
use gpubnb_tests::{
    jobs::{noop, on_machine},
    market::{Market, Worker},
    shared::{Plan, Shared},
    system::Options,
    web::Web,
};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

static MARKET: Shared = Shared::new(|| {
    let services = ["--accept-within", "2", "--suspect-after", "1000", "--lost-after", "2000"].map(str::to_owned);
    Plan::with(Options { services: services.to_vec(), ..Options::default() })
});

const LETTERS: &str = "/ops/dead-letters";

/// A market with a machine of the test's own, whose dead letters it looks at.
struct Post {
    market: Market,
    operator: Web,
    machine: MachineId,
    name: &'static str,
    worker: Worker,
}

impl Post {
    async fn open(name: &'static str) -> Self {
        let market = MARKET.open().await.unwrap();
        let worker = market.own_worker(name, &[]).await.unwrap();
        let machine = market.machine(name).unwrap().parse().unwrap();
        let post = Self { operator: market.operator().unwrap(), machine, name, market, worker };
        post.letters(<[Value]>::is_empty).await;
        post
    }

    /// The dead letters of the machine, once they fulfil a condition.
    async fn letters(&self, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let by = Instant::now() + Duration::from_secs(40);
        loop {
            let mut letters = self.operator.get(LETTERS).await.unwrap().as_array().unwrap().clone();
            letters.retain(|letter| letter["machine"] == json!(self.machine));
            if wanted(&letters) {
                return letters;
            }
            assert!(Instant::now() < by, "{letters:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Makes a dead letter: the worker hangs while a job is given to its machine, and the time to accept the job runs out.
    /// Returns the job and the letter.
    async fn overdue(&self) -> (String, Value) {
        self.worker.process.signal(Signal::STOP);
        let mut body = on_machine(noop(), &self.machine.to_string());
        body["max_attempts"] = json!(1);
        let job = self.market.web.submit(&body).await.unwrap();
        let failed = self.market.web.settled(&job).await.unwrap();
        assert_eq!(failed["state"], "Failed", "{failed:#}");
        let letter = self.letters(|letters| !letters.is_empty()).await.remove(0);
        (job, letter)
    }

    fn remedy(&self, letter: &Value) -> Value {
        json!({ "machine": self.machine, "seq": letter["message"]["seq"] })
    }

    /// A job that is given to the machine now runs.
    async fn works(&self) {
        self.worker.process.signal(Signal::CONT);
        let next = self.market.web.submit(&on_machine(noop(), &self.machine.to_string())).await.unwrap();
        let settled = self.market.web.settled(&next).await.unwrap();
        assert_eq!(settled["state"], "Completed", "{settled:#}\n{}", self.market.log(self.name));
    }
}

#[tokio::test]
async fn a_message_whose_lease_is_over_is_named_with_its_job_and_machine() {
    let post = Post::open("named").await;
    let (job, letter) = post.overdue().await;
    assert_eq!((&letter["trouble"], &letter["message"]["job"]), (&json!("lease_over"), &json!(job)), "{letter}");
    assert_eq!(letter["machine_name"], "named");
}

#[tokio::test]
async fn the_console_shows_the_trouble_and_its_remedy() {
    let post = Post::open("shown").await;
    post.overdue().await;
    let page = String::from_utf8(post.operator.bytes("/console").await.unwrap().1).unwrap();
    assert!(page.contains("its lease is over") && page.contains("Clear"), "{page}");
}

#[tokio::test]
async fn the_message_is_replayed_from_the_command_line() {
    let post = Post::open("replayed").await;
    let (job, letter) = post.overdue().await;
    let replayed = post.market.tool(&["replay", "DISPATCH", "--id", &job, "--json"]).unwrap();
    let replayed: Value = serde_json::from_slice(&replayed.stdout).unwrap();
    let expected = (&letter["message"]["seq"], &json!("JobAssigned.v2"));
    assert_eq!((&replayed["seq"], &replayed["type"]), expected, "{replayed}");
}

#[tokio::test]
async fn a_message_that_was_cleared_is_never_seen_by_its_machine() {
    let post = Post::open("cleared").await;
    let (job, letter) = post.overdue().await;
    post.operator.post(LETTERS, &post.remedy(&letter)).await.unwrap();
    post.letters(<[Value]>::is_empty).await;
    post.works().await;
    assert!(!post.market.log("cleared").contains(&job), "{}", post.market.log("cleared"));
}

#[tokio::test]
async fn a_letter_that_is_gone_has_no_remedy_and_only_operators_have_a_say() {
    let post = Post::open("gone").await;
    let (_, letter) = post.overdue().await;
    let remedy = post.remedy(&letter);
    assert_eq!(post.market.web.request(Method::POST, LETTERS, Some(&remedy)).await.unwrap().0, 404);
    post.operator.post(LETTERS, &remedy).await.unwrap();
    let again = post.operator.request(Method::POST, LETTERS, Some(&remedy)).await.unwrap();
    assert_eq!(again.0, 404, "{}", again.1);
}

#[tokio::test]
async fn a_machine_that_has_lost_its_consumer_gets_a_new_one_and_works() {
    let post = Post::open("consumerless").await;
    let client = post.market.nats_args("services").connect("append", SERVICES_INBOX).await.unwrap();
    let stream = jetstream(client).get_stream_no_info(DISPATCH).await.unwrap();
    stream.delete_consumer(&machine_consumer(post.machine)).await.unwrap();
    let found = post.letters(|letters| !letters.is_empty()).await;
    assert_eq!(found[0]["trouble"], "no_consumer", "{found:?}");
    let form = [("csrf", post.operator.csrf().to_owned()), ("machine", post.machine.to_string())];
    let clicked = post.operator.ask(Method::POST, "/console/remedy").form(&form).send().await.unwrap();
    assert_eq!(clicked.status(), 303, "{}", clicked.text().await.unwrap());
    post.letters(<[Value]>::is_empty).await;
    post.works().await;
}
