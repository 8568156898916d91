//! Named secrets: stored once, given to jobs by name, and read by nobody but the job.

use std::process::Command;

use gpubnb_events::{JobId, subject};
use gpubnb_log::stream;
use gpubnb_tests::{
    jobs::{counting_job, noop_job, wait_until_running},
    shared::{Plan, SharedMarket},
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(|| Plan::default().with_worker("attic", &[]));

const VALUE: &str = "hf_a1-b2\nsecond line ";

/// The environment of the container in which a job runs.
async fn environment(job: &str) -> Vec<String> {
    let docker = |arguments: &[&str]| {
        let output = Command::new("docker").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let filter = format!("label=gpubnb.job={job}");
    let find = || docker(&["ps", "--quiet", "--filter", &filter]);
    // The event `Started` does not prove that the container exists.
    wait_until("the job's container", async || !find().is_empty()).await;
    let found = docker(&["inspect", "--format", "{{json .Config.Env}}", find().trim()]);
    serde_json::from_str(&found).unwrap()
}

#[tokio::test]
async fn a_stored_secret_reaches_a_job_by_its_name_and_is_shown_nowhere() {
    let market = MARKET.open().await.unwrap();
    let person = market.new_consumer().await.unwrap();
    let put = |name: &str, value: &str| {
        let request = person.build_request(Method::PUT, &format!("/api/v1/secrets/{name}"));
        request.json(&json!({ "value": value })).send()
    };
    let missing = json!({ "template": "noop", "secrets": ["HF_TOKEN"] });
    for path in ["/quote", "/jobs"] {
        let (status, refused) = person.request(Method::POST, path, Some(&missing)).await.unwrap();
        assert_eq!((status, &refused["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("secrets")), "{refused}");
    }
    for (name, value) in [("1A", "x"), ("GPUBNB_X", "x"), ("A", ""), ("A", &"x".repeat(16_385)), ("A", "a\0b")] {
        assert_eq!(put(name, value).await.unwrap().status(), StatusCode::UNPROCESSABLE_ENTITY, "{name}");
    }
    assert_eq!(put("HF_TOKEN", "old").await.unwrap().status(), StatusCode::OK);
    assert_eq!(put("HF_TOKEN", VALUE).await.unwrap().status(), StatusCode::OK);

    let mut request = counting_job(1_000, 100);
    request["secrets"] = json!(["HF_TOKEN"]);
    request["env"] = json!({ "OTHER": "1" });
    let job = person.submit(&request).await.unwrap();
    wait_until_running(&person, &job).await;
    let environment = environment(&job).await;
    assert!(environment.contains(&format!("HF_TOKEN={VALUE}")) && environment.contains(&"OTHER=1".to_owned()));
    let shown = person.get(&format!("/jobs/{job}")).await.unwrap();
    assert_eq!(shown["spec"]["secrets"], json!(["HF_TOKEN"]));
    assert_eq!(shown["spec"]["env"], json!(["HF_TOKEN", "OTHER"]));
    person.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
    person.wait_until_settled(&job).await.unwrap();

    let listed = person.get("/secrets").await.unwrap();
    assert_eq!(listed[0]["name"], "HF_TOKEN");
    assert!(listed[0]["used_at"].is_string() && listed.as_array().unwrap().len() == 1, "{listed}");
    // "Run again" names the secret, and does not ask for its value.
    let form = person.bytes(&format!("/jobs/new?again={job}")).await.unwrap().1;
    let form = String::from_utf8(form).unwrap();
    let box_of_secret = form.split("value=\"HF_TOKEN\"").nth(1).unwrap().split('>').next().unwrap();
    assert!(box_of_secret.contains("checked") && form.contains("OTHER=") && !form.contains("HF_TOKEN="));
    let pages = ["/account/secrets", "/account/export.jsonl", &format!("/jobs/{job}")];
    for page in pages {
        let (status, text) = person.bytes(page).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{page}");
        assert!(!String::from_utf8_lossy(&text).contains("hf_a1"), "{page}");
    }
    for process in ["services-0", "projector", "ui", "attic", "nats"] {
        let log = market.process_log(process);
        assert!(!log.is_empty() && !log.contains("hf_a1"), "{process} wrote the secret, or wrote nothing");
    }
    // In the broker, too, nothing but the sealed value is stored.
    let client = market.nats_args("services").connect("append", subject::SERVICES_INBOX).await.unwrap();
    let bucket = gpubnb_runtime::nats::jetstream(client).get_key_value(stream::SECRETS).await.unwrap();
    let stored = bucket.get(&person.account).await.unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&stored).contains("hf_a1"));
    let events = person.get(&format!("/jobs/{job}/events")).await.unwrap().to_string();
    assert!(events.contains("HF_TOKEN") && !events.contains("hf_a1"), "{events}");

    // A closed account leaves no secret behind.
    let form = [("csrf", person.csrf()), ("password", person.password.as_str()), ("given_up", "10000000")];
    let balance = person.get("/wallet").await.unwrap()["balance"]["available"].to_string();
    let form = form.map(|(name, value)| (name, if name == "given_up" { balance.as_str() } else { value }));
    let closed =
        person.browser_session().build_request(Method::POST, "/account/close").form(&form).send().await.unwrap();
    assert!(closed.status().is_redirection(), "{}", closed.text().await.unwrap());
    assert_eq!(bucket.get(&person.account).await.unwrap(), None);
}

#[tokio::test]
async fn a_secret_belongs_to_its_account_and_a_repeated_submission_outlives_it() {
    let market = MARKET.open().await.unwrap();
    let (person, other) = (market.new_consumer().await.unwrap(), market.new_consumer().await.unwrap());
    let run = |arguments: &[&str], input: &str| person.run_client(arguments, input).unwrap().status.success();
    assert!(run(&["secrets", "set", "TOKEN"], "from the pipe\n"));
    assert!(!run(&["secrets", "set", "A/B"], "x"));
    let id = JobId::generate().to_string();
    let mut request = noop_job();
    (request["secrets"], request["job"]) = (json!(["TOKEN"]), json!(id));
    let (status, refused) = other.request(Method::POST, "/jobs", Some(&request)).await.unwrap();
    assert_eq!((status, &refused["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("secrets")));
    let job = person.submit(&request).await.unwrap();
    assert_eq!(person.wait_until_settled(&job).await.unwrap()["state"], "Completed");

    assert!(run(&["secrets", "delete", "TOKEN"], ""));
    assert!(!run(&["secrets", "delete", "TOKEN"], ""));
    // The same submission once more is the same job, although its secret is gone.
    assert_eq!(person.submit(&request).await.unwrap(), job);
    request["job"] = json!(JobId::generate().to_string());
    let (_, refused) = person.request(Method::POST, "/jobs", Some(&request)).await.unwrap();
    assert!(refused["detail"].as_str().unwrap().contains("gpubnb secrets set TOKEN"), "{refused}");
    let both: Value = json!({ "template": "noop", "secrets": ["TOKEN"], "env": { "TOKEN": "x" } });
    let (_, refused) = person.request(Method::POST, "/jobs", Some(&both)).await.unwrap();
    assert_eq!(refused["field"], "secrets", "{refused}");
}
