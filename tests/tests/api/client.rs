//! The command-line client, as a person and a script use it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use gpubnb_tests::{
    market::Market,
    parts::binary,
    process::Process,
    shared::{Plan, Shared},
    wait::until,
};
use rustix::process::Signal;
use serde_json::Value;

static MARKET: Shared = Shared::new(|| Plan::default().worker("attic", &["--price", "0", "--slots", "2"]));

/// The terminal of a person, with a home directory.
struct Terminal {
    home: PathBuf,
    url: String,
}

impl Terminal {
    fn of(market: &Market, person: &str) -> Self {
        let home = market.path().join(person);
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join("password"), "a long enough one\n").unwrap();
        Self { home, url: market.url() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("gpubnb").unwrap());
        command.args(arguments).current_dir(&self.home).env("XDG_CONFIG_HOME", self.home.join("config"));
        command.env_remove("GPUBNB_TOKEN").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The output of a command that must succeed.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[tokio::test]
async fn a_person_signs_up_logs_in_runs_a_job_and_reads_its_bill() {
    let market = MARKET.open().await.unwrap();
    let t = Terminal::of(&market, "person");
    let asked = t.run(&["jobs", "--url", &t.url]);
    assert!(!asked.status.success() && String::from_utf8_lossy(&asked.stderr).contains("log in first"));
    let who = ["person@gpubnb.example", "--password-file", "password", "--url", &t.url];
    t.says(&[&["sign-up"], &who[..]].concat());
    t.says(&[&["login"], &who[..]].concat());
    let kept = t.home.join("config/gpubnb/login.json");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(t.says(&["machines"]).contains("attic"));

    // Without money the refusal names its reason and its field.
    let parameters = ["-p", "width=160", "-p", "height=90", "-p", "samples=1"];
    let poor = t.run(&[&["run", "--template", "render", "--budget", "5"], &parameters[..]].concat());
    assert_eq!(poor.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&poor.stderr).contains("InsufficientFunds (budget)"));

    let token: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    assert!(token["token"].as_str().unwrap().starts_with("gpubnb_"));
    fs::write(t.home.join("in.txt"), "something").unwrap();
    let run = [&["run", "--template", "render", "-i", "in.txt:a/b.txt", "-e", "KEY=v", "-o", "out"], &parameters[..]]
        .concat();
    let ran = t.run(&run);
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(fs::read(t.home.join("out/render.png")).unwrap().starts_with(b"\x89PNG"));
    let jobs: Value = serde_json::from_str(&t.says(&["jobs", "--json"])).unwrap();
    let job = jobs["rows"][0]["job"].as_str().unwrap();
    assert!(t.says(&["receipt", job]).contains("cost"));
    // The machine signed the list of files that the job left: a file that was changed since differs from it.
    assert!(t.says(&["verify", job, "out"]).contains("signed by machine"));
    let listed: Value = serde_json::from_str(&t.says(&["verify", job, "--json"])).unwrap();
    assert_eq!(listed["differ"], serde_json::json!([]));
    fs::write(t.home.join("out/render.png"), "another").unwrap();
    let changed = t.run(&["verify", job, "out"]);
    assert_eq!(changed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&changed.stdout).contains("differs"));
    assert!(t.says(&["completions", "bash"]).contains("gpubnb"));
}

#[tokio::test]
async fn a_script_gets_the_jobs_lines_and_its_exit_code_and_ctrl_c_stops_it() {
    let market = MARKET.open().await.unwrap();
    let t = Terminal::of(&market, "script");
    let token = market.web.new_token(&["jobs:read", "jobs:write"]).await.unwrap();
    let command = |arguments: &[&str]| {
        let mut command = t.command(arguments);
        command.env("GPUBNB_TOKEN", &token).env("GPUBNB_URL", &t.url);
        command
    };
    let count = |lines: &str, pause: &str, code: &str| {
        ["run", "--template", "count", "-p", lines, "-p", pause, "-p", code].map(str::to_owned)
    };
    let counted = count("lines=20", "interval-ms=5", "exit-code=3");
    let output = command(&counted.each_ref().map(String::as_str)).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8_lossy(&output.stdout).lines().filter(|l| l.starts_with("line ")).count();
    assert_eq!(lines, 10, "half of the lines go to stdout: {}", String::from_utf8_lossy(&output.stdout));

    let counted = count("lines=100000", "interval-ms=50", "exit-code=0");
    let mut running =
        Process::start("client", &mut command(&counted.each_ref().map(String::as_str)), market.path()).unwrap();
    until("the third line", async || running.has_said("line 3")).await;
    running.signal(Signal::INT);
    until("the end of the client", async || running.check().is_err()).await;
    let ended = running.check().unwrap_err().to_string();
    assert!(ended.contains("exit status: 130"), "{ended}");
    assert!(market.log("client").contains("Asking the job to stop"));
}
