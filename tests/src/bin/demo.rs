//! `make demo` and `make smoke`: starts a whole market on this machine, and runs one real job on it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bollard::Docker;
use clap::Parser;
use gpubnb_events::MicroUsd;
use gpubnb_tests::{
    programs::binary,
    system::{MarketSettings, System},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Starts a whole market on this machine and runs one real job on it.
#[derive(Debug, Parser)]
struct Args {
    /// Port of the dashboard. 0 takes a free port.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Ends after the job, and prints a summary as one line of JSON.
    #[arg(long)]
    smoke: bool,
    /// Number of epochs of the training job.
    #[arg(long, default_value_t = 12)]
    epochs: u32,
}

/// The longest time that the job may take.
const TIMEOUT: Duration = Duration::from_secs(180);
const WORKER: &str = "this machine";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    Docker::connect_with_defaults()?.negotiate_version().await.context("Docker does not answer")?;
    println!("gpubnb: starting broker, services, projector, notifier, web server and a worker on 127.0.0.1");
    let port = (args.port != 0).then_some(args.port);
    let templates = tempfile::tempdir()?;
    let ui = vec!["--templates".to_owned(), templates.path().display().to_string()];
    let settings = MarketSettings { port, ui, has_rate_limits: true, ..MarketSettings::default() };
    let mut system = System::start(settings).await.with_context(|| {
        format!("the market did not start. If port {} is taken, choose another: make demo PORT=9090", args.port)
    })?;
    let summary = tokio::select! {
        summary = run_demo(&mut system, &args, templates.path()) => summary,
        _ = tokio::signal::ctrl_c() => Ok(Value::Null),
    };
    println!("gpubnb: stopping");
    drop(system);
    let summary = summary?;
    if args.smoke {
        println!("{summary}");
    }
    Ok(())
}

/// Runs the job and prints its receipt. Returns the summary for `--smoke`.
async fn run_demo(system: &mut System, args: &Args, templates: &Path) -> anyhow::Result<Value> {
    let _notifier = system.spawn_notifier(&["--url".to_owned(), system.url()])?;
    system.start_worker(WORKER, &["--region", "here", "--price", "0.36"]).await?;
    println!("gpubnb: this machine is on the market; submitting a training job");
    let epochs = args.epochs.to_string();
    let name = "Learn to read digits";
    let body = json!({ "name": name, "template": "train", "parameters": { "epochs": epochs } });
    let job = system.consumer.submit(&body).await?;
    println!("gpubnb: {}/jobs/{job}", system.url());
    let settled = follow(system, &job).await?;
    let receipt = system.consumer.get(&format!("/jobs/{job}/receipt")).await?;
    let events = system.consumer.get(&format!("/jobs/{job}/events")).await?;
    let events = events["rows"].as_array().context("an answer without rows")?;
    print_receipt(&settled, &receipt, events);
    println!("\n  dashboard  {}", system.url());
    for (who, person) in [("consumer", &system.consumer), ("provider", &system.machine_owner)] {
        println!("  sign in    {} / {}   ({who})", person.email, person.password);
    }
    println!("  operator   {}", operator_link(system)?);
    // `gpubnb-projector` and `gpubnb-services` read these variables: see docs/operator.md.
    let nats = system.nats_args("projector");
    println!("  tools      export GPUBNB_NATS_URL={} GPUBNB_NATS_CREDS={}", nats.nats, nats.nats_creds.display());
    if let Ok(docker) = std::env::var("DOCKER_HOST") {
        println!("  Docker     export DOCKER_HOST={docker}");
    }
    if settled["state"] != "Completed" {
        bail!("the job ended as {}: {}", settled["state"], settled["summary"]);
    }
    if !args.smoke {
        println!("  stop with Ctrl-C\n");
        tokio::spawn(approve_gallery(templates.to_owned()));
        loop {
            system.check_running()?;
            sleep(Duration::from_secs(1)).await;
        }
    }
    Ok(json!({
        "job": job,
        "state": settled["status"],
        "cost_usd": dollars(&receipt["cost"]),
        "provider_usd": dollars(&receipt["earned"]),
        "fee_usd": dollars(&receipt["fee"]),
        "events": events.len(),
        "verify": verify(system)?,
    }))
}

/// Approves the templates of the gallery (`templates/`) in the name of the operator. The registries of their images
/// must answer for that.
async fn approve_gallery(approved: PathBuf) {
    let gallery = Path::new(env!("CARGO_MANIFEST_DIR")).join("../templates");
    let approve = async {
        let mut command = tokio::process::Command::new(binary("gpubnb-ui")?);
        command.arg("approve-template").arg("--templates").arg(approved).kill_on_drop(true);
        for entry in std::fs::read_dir(&gallery)? {
            command.arg(entry?.path());
        }
        anyhow::Ok(command.output().await?)
    };
    match approve.await {
        Ok(output) if output.stdout.is_empty() => {
            println!("gpubnb: the gallery of templates is not offered, because no registry answers");
        }
        Ok(output) => {
            let approved = String::from_utf8_lossy(&output.stdout).lines().count();
            println!("gpubnb: {approved} templates of the gallery are on the page Templates");
        }
        Err(e) => println!("gpubnb: the gallery of templates is not offered: {e:#}"),
    }
}

/// Runs `gpubnb-projector verify`, which folds the log again and compares the rows with those of the market.
fn verify(system: &System) -> anyhow::Result<&'static str> {
    let verified = system.run_operator_tool(&["verify"])?;
    anyhow::ensure!(verified.status.success(), "verify: {}", String::from_utf8_lossy(&verified.stderr));
    Ok("clean")
}

/// The link with which the first operator signs up. The web server printed the link at its first start.
fn operator_link(system: &System) -> anyhow::Result<String> {
    let log = system.process_log("ui");
    let link = log.split_whitespace().find(|word| word.contains("/operator/"));
    Ok(link.context("the web server printed no link")?.to_owned())
}

/// Follows the job with a progress bar until it is settled.
async fn follow(system: &mut System, job: &str) -> anyhow::Result<Value> {
    let style = ProgressStyle::with_template("  {msg:<44} [{bar:40}] {percent:>3} %")?.progress_chars("=> ");
    let bar = ProgressBar::new(1_000).with_style(style);
    let deadline = Instant::now() + TIMEOUT;
    let mut last = String::new();
    loop {
        let now = system.consumer.get(&format!("/jobs/{job}")).await?;
        let fraction = now["progress"]["fraction"].as_f64().unwrap_or(0.0);
        // The fraction is from 0 to 1.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        bar.set_position(if now["state"] == "Completed" { 1_000 } else { (fraction * 1_000.0) as u64 });
        let progress = now["progress"]["message"].as_str().unwrap_or_default();
        let message = format!("{}  {progress}", now["status"].as_str().unwrap_or_default());
        if message != last && bar.is_hidden() {
            println!("  {:>3.0} %  {message}", fraction * 100.0);
        }
        bar.set_message(message.clone());
        last = message;
        if now["settled"] == true {
            bar.finish();
            return Ok(now);
        }
        if Instant::now() > deadline {
            bail!("the job is not settled after {TIMEOUT:?}: {now:#}");
        }
        system.check_running()?;
        sleep(Duration::from_millis(100)).await;
    }
}

fn amount(value: &Value) -> MicroUsd {
    MicroUsd(value.as_i64().unwrap_or(0))
}

/// Money in dollars, for the summary of `--smoke`: programs expect a number there.
#[allow(clippy::cast_precision_loss)]
fn dollars(value: &Value) -> f64 {
    amount(value).0 as f64 / 1e6
}

fn print_receipt(job: &Value, receipt: &Value, events: &[Value]) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    println!("\n  Receipt of \"{}\": {}", text(&job["spec"]["name"]), text(&job["summary"]));
    let metering = &receipt["metering"];
    println!("    {:<34} {:>12} ms", "metered", metering["billed"]);
    println!("    {:<34} {:>12}", "price", format!("{}/h", amount(&receipt["terms"]["price"])));
    println!("    {:<34} {:>12}", "cost", amount(&receipt["cost"]).to_string());
    println!("    {:<34} {:>12}", "  to the provider", amount(&receipt["earned"]).to_string());
    println!("    {:<34} {:>12}", "  GPUbnb's fee", amount(&receipt["fee"]).to_string());
    println!("  Files");
    for file in job["outputs"].as_array().into_iter().flatten() {
        let path = file["path"].as_str().unwrap_or_default();
        let hash = file["sha256"].as_str().unwrap_or_default();
        println!("    {path:<34} {:>12} bytes  sha256 {}…", file["bytes"], hash.get(..12).unwrap_or_default());
    }
    println!("  Events");
    for event in events {
        let name = event["event"].as_str().unwrap_or_default();
        println!("    {:>6}  {:<26} {}", event["seq"], name, event["recorded_at"].as_str().unwrap_or_default());
    }
    // An error means that the terminal is closed. The market must be stopped all the same.
    drop(std::io::stdout().flush());
}
