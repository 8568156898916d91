//! Templates: an operator approves one and retires it while the market runs, and the jobs of the gallery do their work.

use std::{fs, path::Path};

use gpubnb_events::CommandId;
use gpubnb_tests::{
    api_client::ApiClient,
    market::Market,
    programs::binary,
    registry::{ImageKind, Registry},
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;

/// The gallery of this repository.
const GALLERY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../templates");
/// An image with the programs that the templates' own images have, or that their jobs install (`deploy/images.sh`).
const PYTHON: &str = "gpubnb/gallery:1";

static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = ["--approve-image", PYTHON].map(str::to_owned).into();
    Plan::with_settings(MarketSettings { services, ..MarketSettings::default() })
        .with_worker("attic", &["--slots", "2"])
});

/// Runs `gpubnb-ui approve-template`. Returns true if all files were approved, and what was printed.
async fn approve(file: &Path, directory: &Path, registry: &Registry) -> (bool, String) {
    let mut command = Command::new(binary("gpubnb-ui").unwrap());
    command.arg("approve-template").arg(file).arg("--templates").arg(directory);
    let output = command.args(["--private-registry", &registry.url()]).output().await.unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).unwrap())
}

#[tokio::test]
async fn an_operator_approves_a_template_and_retires_it_while_the_market_runs() {
    let registry = Registry::start(&[("tool", ImageKind::Plain, 10)]).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let approved = directory.path().join("approved");
    fs::create_dir(&approved).unwrap();
    let digest = registry.pinned_name("tool").rsplit_once('@').unwrap().1.to_owned();
    let image = format!("{}@{digest}", registry.name("tool"));
    let mut system = System::start(MarketSettings {
        services: vec!["--approve-image".to_owned(), image.clone()],
        ui: vec!["--templates".to_owned(), approved.display().to_string()],
        ..MarketSettings::default()
    })
    .await
    .unwrap();
    system.start_worker("attic", &["--private-registry", &registry.url()]).await.unwrap();
    let consumer = &system.consumer;
    let file = directory.path().join("lines.toml");
    let mut request = json!({ "template": "lines", "parameters": { "lines": "5" }, "budget_usd": "0.10" });
    let (status, refused) = consumer.request(Method::POST, "/jobs", Some(&request)).await.unwrap();
    assert_eq!((status, &refused["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("template")));
    // An image that the registry does not have.
    fs::write(&file, template_file(&registry.name("missing"))).unwrap();
    let (is_approved, printed) = approve(&file, &approved, &registry).await;
    assert!(!is_approved && printed.contains("missing"), "{printed}");
    fs::write(&file, template_file(&registry.name("tool"))).unwrap();
    let (is_approved, printed) = approve(&file, &approved, &registry).await;
    assert!(is_approved && printed.contains(&digest), "{printed}");

    let offered = async || {
        let all = consumer.get("/templates").await.unwrap();
        all.as_array().unwrap().iter().find(|template| template["id"] == "lines").cloned()
    };
    wait_until("the template is offered", async || offered().await.is_some()).await;
    assert_eq!(offered().await.unwrap()["image"], image.as_str());
    // A quote needs no file, and the job does.
    consumer.post("/quote", &request).await.unwrap();
    let (status, refused) = consumer.request(Method::POST, "/jobs", Some(&request)).await.unwrap();
    assert_eq!((status, &refused["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("inputs")));
    let upload = upload(consumer, b"x").await;
    request["inputs"] = json!([{ "input": upload, "path": "file" }]);
    let job = consumer.submit(&request).await.unwrap();
    let settled = consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    assert_eq!((&settled["spec"]["template"], &settled["spec"]["image"]), (&json!("lines"), &json!(image)));
    let log = consumer.get(&format!("/jobs/{job}/logs")).await.unwrap();
    assert_eq!(log["rows"].as_array().unwrap().len(), 5);
    for (bad, field) in [
        (json!({ "lines": "10" }), "lines"),
        (json!({ "lines": "1; ls" }), "lines"),
        (json!({ "other": "1" }), "parameters"),
    ] {
        let mut request = request.clone();
        request["parameters"] = bad;
        let (status, refused) = consumer.request(Method::POST, "/jobs", Some(&request)).await.unwrap();
        assert_eq!((status, &refused["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(field)));
    }
    let again = format!("/jobs/new?again={job}");
    check_pages(consumer, &again).await;

    fs::remove_file(approved.join("lines.toml")).unwrap();
    wait_until("the template is retired", async || offered().await.is_none()).await;
    let (status, refused) = consumer.request(Method::POST, "/jobs", Some(&request)).await.unwrap();
    assert_eq!((status, &refused["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("template")));
    // The job runs again from its image.
    let (_, page) = consumer.bytes(&again).await.unwrap();
    assert!(String::from_utf8(page).unwrap().contains(&digest));
}

/// A template that prints lines, in this image.
fn template_file(image: &str) -> String {
    format!(
        "title = \"Print lines\"\nabout = \"Prints lines.\"\nimage = \"{image}\"\ninput = \"One file.\"\n\
         command = [\"count\", \"--lines\", \"{{lines}}\", \"--interval-ms\", \"0\"]\nseconds = 60\n\
         [resources]\ncpu_millis = 500\nmemory_mib = 64\noutput_mib = 16\n\
         [[field]]\nname = \"lines\"\nlabel = \"Lines\"\ndefault = \"3\"\nleast = 1\nmost = 9\n"
    )
}

/// The pages show the template, and the job once more.
async fn check_pages(consumer: &ApiClient, again: &str) {
    for (address, wanted) in [
        ("/jobs/new?template=lines", "name=\"template\" value=\"lines\""),
        (again, "name=\"template\" value=\"lines\""),
        (again, "value=\"5\""),
        ("/templates?q=print", "href=\"/jobs/new?template=lines\""),
    ] {
        let (status, page) = consumer.bytes(address).await.unwrap();
        let page = String::from_utf8(page).unwrap();
        assert!(status == StatusCode::OK && page.contains(wanted), "{address} {wanted}");
    }
}

/// Uploads an input file.
async fn upload(consumer: &ApiClient, content: &[u8]) -> CommandId {
    let id = CommandId::generate();
    let put = consumer.build_request(Method::PUT, &format!("/api/v1/inputs/{id}")).body(content.to_vec());
    assert!(put.send().await.unwrap().status().is_success());
    id
}

/// Runs a job of the gallery in a local image: the template's own command, with the default of each field but those
/// that `values` name. Returns the settled job.
async fn run_template(market: &Market, id: &str, image: &str, values: &[(&str, &str)], input: (&str, &[u8])) -> Value {
    let text = fs::read_to_string(format!("{GALLERY}/{id}.toml")).unwrap();
    let file: toml::Table = toml::from_str(&text).unwrap();
    let mut command: Vec<String> = file["command"].clone().try_into().unwrap();
    for field in file["field"].as_array().unwrap() {
        let (name, default) = (field["name"].as_str().unwrap(), field["default"].as_str().unwrap());
        let value = values.iter().find(|(wanted, _)| *wanted == name).map_or(default, |(_, value)| value);
        for argument in &mut command {
            *argument = argument.replace(&format!("{{{name}}}"), value);
        }
    }
    let upload = upload(&market.consumer, input.1).await;
    let resources = &file["resources"];
    let job = json!({
        "image": image, "command": command, "name": id, "time_seconds": 120, "max_attempts": 1,
        "cpu_millis": 1_000, "memory_mib": 2_048, "output_mib": resources["output_mib"].as_integer().unwrap().min(256),
        "disk_mib": 1_024, "inputs": [{ "input": upload, "path": input.0 }],
    });
    let job = market.consumer.submit(&job).await.unwrap();
    market.consumer.wait_until_settled(&job).await.unwrap()
}

/// The content of an output file of a job.
async fn output(market: &Market, job: &Value, path: &str) -> Vec<u8> {
    let address = format!("/api/v1/jobs/{}/artifacts/{path}", job["job"].as_str().unwrap());
    let answer = market.consumer.build_request(Method::GET, &address).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{job:#}");
    answer.bytes().await.unwrap().to_vec()
}

#[tokio::test]
async fn the_template_for_tables_learns_and_keeps_its_model() {
    let market = MARKET.open().await.unwrap();
    // Texts, truths, a gap, and a name of a column that the library does not take.
    let line = |n: u32| {
        let colour = if n.is_multiple_of(3) { "red" } else { "blue" };
        let sold = if n == 5 { String::new() } else { u32::from(n % 7 > 3).to_string() };
        format!("{},{colour},{},{sold}\n", n % 7, n.is_multiple_of(2))
    };
    let table = format!("size [m],colour,new,sold\n{}", (0..400).map(line).collect::<String>());
    let values = [("target", "sold"), ("rounds", "20"), ("depth", "3")];
    let job = run_template(&market, "xgboost", PYTHON, &values, ("shop.csv", table.as_bytes())).await;
    assert_eq!(job["state"], "Completed", "{job:#}");
    let metrics: Value = serde_json::from_slice(&output(&market, &job, "metrics.json").await).unwrap();
    let errors = metrics["mlogloss"].as_array().unwrap();
    assert!(errors.len() == 20 && errors[19].as_f64() < Some(0.1), "{metrics}");
    let features = String::from_utf8(output(&market, &job, "features.csv").await).unwrap();
    assert!(features.lines().nth(1).unwrap().starts_with("size_(m),"), "{features}");
    assert!(!output(&market, &job, "model.json").await.is_empty());
    // A wrong column is told by its name.
    let job = run_template(&market, "xgboost", PYTHON, &[], ("shop.csv", table.as_bytes())).await;
    assert_eq!((&job["state"], &job["reason"]["name"]), (&json!("Failed"), &json!("NonZeroExit")));
    let log = market.consumer.get(&format!("/jobs/{}/logs", job["job"].as_str().unwrap())).await.unwrap();
    assert!(log.to_string().contains("Its columns are: size [m], colour, new, sold"), "{log:#}");
}

#[tokio::test]
async fn the_template_for_notebooks_keeps_the_outputs_also_when_a_cell_fails() {
    let market = MARKET.open().await.unwrap();
    let cell = |source: &str| {
        json!({ "cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": null,
            "id": format!("c{}", source.len()) })
    };
    let notebook = |last: &str| {
        let cells = [cell("answer = 6 * 7\nprint(answer)"), cell(last)];
        let metadata = json!({ "kernelspec": { "name": "python3", "display_name": "Python", "language": "python" } });
        json!({ "nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells }).to_string()
    };
    for (last, state) in [("answer + 1", "Completed"), ("raise ValueError('no')", "Failed")] {
        let input = notebook(last);
        let job = run_template(&market, "notebook", PYTHON, &[], ("work.ipynb", input.as_bytes())).await;
        assert_eq!(job["state"], state, "{job:#}");
        let ran = String::from_utf8(output(&market, &job, "notebook.ipynb").await).unwrap();
        assert!(ran.contains("42\\n"), "{ran}");
        let page = String::from_utf8(output(&market, &job, "notebook.html").await).unwrap();
        assert!(page.contains("42") && page.contains("<html"));
    }
}

#[tokio::test]
async fn the_template_for_videos_makes_an_mp4() {
    let market = MARKET.open().await.unwrap();
    // One second of 16 grey pictures, each 33 by 31, in the plainest of all formats for videos (YUV4MPEG2).
    let mut video = b"YUV4MPEG2 W33 H31 F16:1 Ip A1:1 C420jpeg\n".to_vec();
    for number in 0..16_u8 {
        video.extend_from_slice(b"FRAME\n");
        video.extend(std::iter::repeat_n(number * 16, 33 * 31).chain(std::iter::repeat_n(128, 2 * 17 * 16)));
    }
    let job = run_template(&market, "video", PYTHON, &[("preset", "ultrafast")], ("clip.y4m", &video)).await;
    assert_eq!(job["state"], "Completed", "{job:#}");
    let mp4 = output(&market, &job, "video.mp4").await;
    assert_eq!(&mp4[4..8], b"ftyp");
}
