//! The command-line client `gpubnb`, used by a person and by a script.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

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

/// The terminal of a person, who has a home directory.
struct Terminal {
    home: PathBuf,
    url: String,
}

impl Terminal {
    fn new(market: &Market, person: &str) -> Self {
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
    fn run_successfully(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[tokio::test]
async fn a_person_signs_up_logs_in_runs_a_job_and_verifies_its_files() {
    let market = MARKET.open().await.unwrap();
    let terminal = Terminal::new(&market, "person");
    let refused = terminal.run(&["jobs", "--url", &terminal.url]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("log in first"));
    let credentials = ["person@gpubnb.example", "--password-file", "password", "--url", &terminal.url];
    terminal.run_successfully(&[&["sign-up"], &credentials[..]].concat());
    terminal.run_successfully(&[&["login"], &credentials[..]].concat());
    let login_file = terminal.home.join("config/gpubnb/login.json");
    assert_eq!(fs::metadata(&login_file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(terminal.run_successfully(&["machines"]).contains("attic"));

    // The account has no money yet. The refusal names the reason and the field.
    let parameters = ["-p", "width=160", "-p", "height=90", "-p", "samples=1"];
    let too_expensive = terminal.run(&[&["run", "--template", "render", "--budget", "5"], &parameters[..]].concat());
    assert_eq!(too_expensive.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&too_expensive.stderr).contains("InsufficientFunds (budget)"));

    let token: Value = serde_json::from_slice(&fs::read(&login_file).unwrap()).unwrap();
    assert!(token["token"].as_str().unwrap().starts_with("gpubnb_"));
    fs::write(terminal.home.join("in.txt"), "something").unwrap();
    let run = [&["run", "--template", "render", "-i", "in.txt:a/b.txt", "-e", "KEY=v", "-o", "out"], &parameters[..]]
        .concat();
    let ran = terminal.run(&run);
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(fs::read(terminal.home.join("out/render.png")).unwrap().starts_with(b"\x89PNG"));
    let jobs: Value = serde_json::from_str(&terminal.run_successfully(&["jobs", "--json"])).unwrap();
    let job = jobs["rows"][0]["job"].as_str().unwrap();
    assert!(terminal.run_successfully(&["receipt", job]).contains("cost"));
    // The end of an id names the job, too.
    assert!(terminal.run_successfully(&["receipt", &job[job.len() - 8..]]).contains("cost"));
    // The machine has signed the list of the job's files and the log. A file that is changed afterwards differs.
    let verified = terminal.run_successfully(&["verify", job, "out"]);
    assert!(verified.contains("signed by machine") && verified.contains("lines that the machine signed"), "{verified}");
    let listed: Value = serde_json::from_str(&terminal.run_successfully(&["verify", job, "--json"])).unwrap();
    assert_eq!(listed["differ"], serde_json::json!([]));
    fs::write(terminal.home.join("out/render.png"), "another").unwrap();
    let changed = terminal.run(&["verify", job, "out"]);
    assert_eq!(changed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&changed.stdout).contains("differs"));
    assert!(terminal.run_successfully(&["completions", "bash"]).contains("gpubnb"));
    let schema: Value = serde_json::from_str(&terminal.run_successfully(&["schema"])).unwrap();
    assert!(schema["properties"]["command"].is_object());
    let top = terminal.run_successfully(&["top"]);
    assert!(top.contains("available") && top.contains(job), "{top}");
}

#[tokio::test]
async fn a_script_gets_the_output_and_the_exit_code_and_ctrl_c_cancels_the_job() {
    let market = MARKET.open().await.unwrap();
    let terminal = Terminal::new(&market, "script");
    let token = market.consumer.new_token(&["jobs:read", "jobs:write"]).await.unwrap();
    let command = |arguments: &[&str]| {
        let mut command = terminal.command(arguments);
        command.env("GPUBNB_TOKEN", &token).env("GPUBNB_URL", &terminal.url);
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

    // Filters of lists and of a log. The newest line is younger than a minute.
    let printed = |arguments: &[&str]| {
        let output = command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let jobs: Value = serde_json::from_str(&printed(&["jobs", "--text", "Count", "--limit", "1", "--json"])).unwrap();
    let job = jobs["rows"][0]["job"].as_str().unwrap();
    assert_eq!(printed(&["logs", job, "--grep", "line 12", "--json"]).lines().count(), 1);
    assert!(printed(&["logs", job, "--since", "1h", "--json"]).contains("line 12"));
    assert_eq!(command(&["wait", job]).output().unwrap().status.code(), Some(3));
    assert!(printed(&["machines", "--text", "attic", "--only", "free", "--max-price", "1"]).contains("attic"));
    for other in [["--text", "cellar"], ["--min-gpus", "9"], ["--region", "nowhere"]] {
        assert!(!printed(&[&["machines"], &other[..]].concat()).contains("attic"), "{other:?}");
    }
    assert!(printed(&["quote", "--template", "noop"]).contains("attic"));
    let pages = terminal.home.join("man");
    fs::create_dir(&pages).unwrap();
    printed(&["man", pages.to_str().unwrap()]);
    assert!(fs::read_to_string(pages.join("gpubnb-run.1")).unwrap().contains("DIR"));

    let counted = count("lines=100000", "interval-ms=50", "exit-code=0");
    let mut running =
        Process::start("client", &mut command(&counted.each_ref().map(String::as_str)), market.path()).unwrap();
    wait_until("the third line", async || running.has_printed("line 3")).await;
    running.signal(Signal::INT);
    wait_until("the end of the client", async || running.check_running().is_err()).await;
    let ended = running.check_running().unwrap_err().to_string();
    assert!(ended.contains("exit status: 130"), "{ended}");
    assert!(market.process_log("client").contains("Asking the job to stop"));
}
