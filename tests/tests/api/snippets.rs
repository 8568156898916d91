//! The snippets on the page of a job: the command, curl and Python submit the same job.

use std::process::Command;

use gpubnb_tests::{
    jobs::unplaceable,
    programs::binary,
    shared::{Plan, SharedMarket},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

/// The value of a variable of the job.
const SECRET: &str = "hunter2-7f3a";

/// The text of an element `<pre id="…">`.
fn text_of(page: &str, id: &str) -> String {
    let begin = page.find(&format!("id=\"{id}\"")).unwrap();
    let (_, rest) = page[begin..].split_once('>').unwrap();
    let (html, _) = rest.split_once("</pre>").unwrap();
    let signs = [("&#60;", "<"), ("&#62;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&#38;", "&")];
    signs.iter().fold(html.to_owned(), |text, (escaped, sign)| text.replace(escaped, sign))
}

#[tokio::test]
async fn each_snippet_submits_the_same_job() {
    let market = MARKET.open().await.unwrap();
    let consumer = &market.consumer;
    let token = consumer.new_token(&["jobs:read", "jobs:write"]).await.unwrap();
    let form = [("template", "noop"), ("env", &format!("TOKEN={SECRET}"))];
    let quote = consumer.browser_session().build_request(Method::POST, "/jobs/quote").form(&form).send().await.unwrap();
    let quote = quote.text().await.unwrap();
    assert!(text_of(&quote, "snippet-command").contains("--env=TOKEN"), "{quote}");
    assert!(!quote.contains(SECRET), "the value of a variable is shown");
    // `deploy/python-package.sh` installs the Python package there.
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/sdk/bin/python");
    let words = ["sh", "-c", "echo \"it's $HOME\" \\ '''\n\"\"\" <b> {x} %s"];
    let custom = json!({
        "image": format!("docker.io/library/debian@sha256:{}", "0".repeat(64)),
        "name": "it's \"mine\" & $HOME",
        "command": words,
        "workdir": "/a b",
        "egress": ["*.pypi.org", "github.com"],
        "strategy": "most_reliable",
        "min_reliability": 50,
        "verified": true,
        "price_cap_usd": "1.5",
        "memory_mib": 512,
        "env": { "TOKEN": SECRET },
    });
    let template = json!({ "template": "count", "parameters": { "lines": "7" }, "max_attempts": 1 });
    for request in [custom, template] {
        let first = consumer.submit(&unplaceable(request, "0.01")).await.unwrap();
        let (status, page) = consumer.browser_session().bytes(&format!("/jobs/{first}")).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        let page = String::from_utf8(page).unwrap();
        assert!(!page.contains(SECRET), "the value of a variable is shown");
        let command = text_of(&page, "snippet-command").replacen("gpubnb run", "gpubnb run --detach", 1);
        let path = binary("gpubnb").unwrap().parent().unwrap().display().to_string();
        let run = |program: &str, option: &str, text: &str| {
            let mut command = Command::new(program);
            command.args([option, text]).current_dir(market.path()).env("GPUBNB_TOKEN", &token).env("TOKEN", "x");
            command.env("PATH", format!("{path}:{}", std::env::var("PATH").unwrap())).env("GPUBNB_URL", market.url());
            let output = command.output().unwrap();
            assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let by_command = run("bash", "-c", &command).trim().to_owned();
        let by_curl: Value = serde_json::from_str(&run("bash", "-c", &text_of(&page, "snippet-curl"))).unwrap();
        let printed = run(python, "-c", &text_of(&page, "snippet-python"));
        let by_python = printed.trim().rsplit('/').next().unwrap().to_owned();
        let expected = consumer.get(&format!("/jobs/{first}")).await.unwrap();
        for job in [first.as_str(), &by_command, by_curl["job"].as_str().unwrap(), &by_python] {
            let view = consumer.get(&format!("/jobs/{job}")).await.unwrap();
            for part in ["spec", "placement", "limits"] {
                assert_eq!(view[part], expected[part], "{job}");
            }
            consumer.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
        }
    }
}
