//! The command-line client in scripts: old tokens, odd file names, full disks, signals, and files to fetch.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use gpubnb_events::JobId;
use gpubnb_tests::{
    market::Market,
    process::Process,
    programs::binary,
    shared::{Plan, SharedMarket},
    wait::wait_until,
};
use rustix::process::Signal;
use serde_json::Value;

static MARKET: SharedMarket =
    SharedMarket::new(|| Plan::default().with_worker("attic", &["--price", "0", "--slots", "2"]));

/// A directory in which commands run with a token, and with no other environment.
struct Script {
    directory: PathBuf,
    environment: [(&'static str, String); 2],
}

impl Script {
    async fn new(market: &Market, name: &str) -> Self {
        let directory = market.path().join(name);
        fs::create_dir_all(&directory).unwrap();
        let token = market.consumer.new_token(&["jobs:read", "jobs:write"]).await.unwrap();
        Self { directory, environment: [("GPUBNB_URL", market.url()), ("GPUBNB_TOKEN", token)] }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("gpubnb").unwrap());
        command.args(arguments).current_dir(&self.directory).env_clear().envs(self.environment.clone());
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn an_address_and_a_token_are_enough_without_a_home_directory() {
    let market = MARKET.open().await.unwrap();
    let script = Script::new(&market, "bare").await;
    let listed = script.run(&["jobs", "--json"]);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    serde_json::from_slice::<Value>(&listed.stdout).unwrap();
}

#[tokio::test]
async fn an_old_token_does_not_keep_a_person_from_logging_in() {
    let market = MARKET.open().await.unwrap();
    let directory = market.path().join("returning");
    fs::create_dir_all(directory.join("config/gpubnb")).unwrap();
    let saved = serde_json::json!({ "url": market.url(), "token": "gpubnb_that_has_expired" });
    fs::write(directory.join("config/gpubnb/login.json"), saved.to_string()).unwrap();
    let with_password = |arguments: &[&str]| {
        let mut command = Command::new(binary("gpubnb").unwrap());
        command.args(arguments).arg("--password-stdin").current_dir(&directory).env_clear();
        command.env("XDG_CONFIG_HOME", directory.join("config")).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut running.stdin.take().unwrap(), b"a long enough one\n").unwrap();
        running.wait_with_output().unwrap()
    };
    for command in ["sign-up", "login"] {
        let output = with_password(&[command, "returning@gpubnb.example"]);
        assert!(output.status.success(), "{command}: {}", text(&output.stderr));
    }
    // `login` and `logout` work although the file is damaged. A command that needs the token, such as `jobs`, fails
    // and names the file.
    let damage = || fs::write(directory.join("config/gpubnb/login.json"), "{").unwrap();
    let without_password = |command: &str| {
        let mut client = Command::new(binary("gpubnb").unwrap());
        client.arg(command).env_clear().env("XDG_CONFIG_HOME", directory.join("config")).output().unwrap()
    };
    damage();
    let refused = without_password("jobs");
    assert!(!refused.status.success() && text(&refused.stderr).contains("login.json"), "{}", text(&refused.stderr));
    let login = with_password(&["login", "returning@gpubnb.example", "--url", &market.url()]);
    assert!(login.status.success(), "{}", text(&login.stderr));
    damage();
    assert!(without_password("logout").status.success());
    assert!(!directory.join("config/gpubnb/login.json").exists());
}

#[tokio::test]
async fn a_submission_that_is_repeated_with_its_id_makes_one_job() {
    let market = MARKET.open().await.unwrap();
    let script = Script::new(&market, "repeater").await;
    let id = JobId::generate().to_string();
    for _ in 0..2 {
        let submitted = script.run(&["run", "-d", "--template", "noop", "--id", &id]);
        assert!(submitted.status.success(), "{}", text(&submitted.stderr));
        assert_eq!(text(&submitted.stdout).trim(), id);
    }
    let other = script.run(&["run", "-d", "--template", "count", "--id", &id]);
    assert!(text(&other.stderr).contains("IdReused"), "{}", text(&other.stderr));
    let listed: Value = serde_json::from_slice(&script.run(&["jobs", "--json"]).stdout).unwrap();
    let with_id = listed["rows"].as_array().unwrap().iter().filter(|job| job["job"] == id.as_str());
    assert_eq!(with_id.count(), 1, "{listed:#}");
}

#[tokio::test]
async fn files_are_fetched_later_again_and_despite_an_odd_name_of_an_input() {
    let market = MARKET.open().await.unwrap();
    let script = Script::new(&market, "fetcher").await;
    fs::write(script.path("run:1.csv"), "a,b\n").unwrap();
    let parameters = ["-p", "width=64", "-p", "height=64", "-p", "samples=1"];
    let run = [&["run", "-d", "--template", "render", "-i", "run:1.csv"], &parameters[..]].concat();
    let submitted = script.run(&run);
    assert!(submitted.status.success(), "{}", text(&submitted.stderr));
    let job = text(&submitted.stdout).trim().to_owned();
    market.consumer.wait_until_settled(&job).await.unwrap();
    let fetch = || script.run(&["fetch", &job, "files"]);
    assert!(fetch().status.success());
    let picture = script.path("files/render.png");
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let first = modified(&picture);
    assert!(fetch().status.success());
    assert_eq!(modified(&picture), first, "a file that is the same is kept");
    fs::write(&picture, "damaged").unwrap();
    assert!(fetch().status.success());
    assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
}

#[tokio::test]
async fn output_that_cannot_be_written_is_a_failure_and_a_closed_pipe_is_none() {
    let market = MARKET.open().await.unwrap();
    let script = Script::new(&market, "writer").await;
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = script.command(&["machines"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("cannot be written"), "{}", text(&output.stderr));
    let mut closed = script.command(&["machines"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(closed.stdout.take());
    assert!(closed.wait().unwrap().success());
}

#[tokio::test]
async fn a_client_that_is_terminated_cancels_its_job() {
    let market = MARKET.open().await.unwrap();
    let script = Script::new(&market, "terminated").await;
    let run = ["run", "--template", "count", "-p", "lines=100000", "-p", "interval-ms=50"];
    let mut running = Process::start("terminated-client", &mut script.command(&run), market.path()).unwrap();
    wait_until("the third line", async || running.has_printed("line 3")).await;
    running.signal(Signal::TERM);
    wait_until("the end of the client", async || running.check_running().is_err()).await;
    let ended = running.check_running().unwrap_err().to_string();
    assert!(ended.contains("exit status: 130"), "{ended}");
}

#[tokio::test]
async fn every_line_reaches_a_pipe_as_the_job_wrote_it() {
    let market = MARKET.open().await.unwrap();
    let script = Script::new(&market, "reader").await;
    let run = ["run", "--template", "count", "-p", "lines=3000", "-p", "interval-ms=0"];
    let output = script.run(&run);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().filter(|line| line.starts_with("line ")).count(), 1_500);
}
