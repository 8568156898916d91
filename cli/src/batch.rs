//! Batches: `gpubnb map`, `gpubnb run` with many tasks, and `gpubnb batch`.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use gpubnb_events::{
    BatchId,
    batch_request::BatchRequest,
    job_request::{DatasetRequest, JobRequest},
    text::make_plain,
};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    CANCELLED,
    api::{Api, REQUEST_TIMEOUT},
    args::{EndArgs, QuoteArgs, RunArgs},
    batch_args::{BatchCommand, MapArgs, TaskArgs},
    datasets,
    directory::Directory,
    download,
    job_args::{JobArgs, JobOptions},
    show::{self, dollars, text},
    signal::StopSignal,
    submit::{self, Described},
    task_lists::{read_lines, read_objects},
};

/// The directory below `/data` in which the tasks of `gpubnb map` find the files.
const FILES: &str = "files";
/// The time after which a batch is looked at again.
const PERIOD: Duration = Duration::from_secs(1);
/// Without a terminal, the progress is printed after this many looks.
const LOOKS_PER_LINE: u32 = 30;
/// The number of failed tasks that are named at the end.
const NAMED_FAILURES: usize = 5;
/// The number of tasks whose files are downloaded at the same time.
const CONCURRENT_DOWNLOADS: usize = 4;
/// The fewest characters of an id that name a batch.
const SHORTEST: usize = 4;
/// The most pages of the list that are searched.
const MAX_PAGES: usize = 20;
/// Exit code if tasks failed.
const TASKS_FAILED: u8 = 1;

/// A batch that a person wants to submit.
pub(crate) struct Submission {
    directory: Option<PathBuf>,
    options: JobOptions,
    command: Vec<String>,
    tasks: TaskArgs,
    /// The lines of `--each-line`; `None` without this option.
    lines: Option<Vec<String>>,
    /// The objects of `--from-json`; empty without this option.
    objects: Vec<BTreeMap<String, String>>,
    /// The files of `gpubnb map`; empty for `gpubnb run`.
    files: Vec<PathBuf>,
    end: EndArgs,
    id: Option<BatchId>,
}

impl Submission {
    pub(crate) fn from_map(map: MapArgs) -> anyhow::Result<Self> {
        let MapArgs { command, files, code, options, max_running, max_failures, end, id } = map;
        let words = shlex::split(&command).context("a quote in the command is not closed")?;
        ensure!(
            words.iter().any(|word| word.contains("{}") || word.contains("{item}")),
            "the command has no {{}}, so that every task would do the same: gpubnb map 'python convert.py {{}}' *.wav"
        );
        let tasks = TaskArgs { max_running, max_failures, ..TaskArgs::default() };
        let (lines, objects) = (None, Vec::new());
        Ok(Self { directory: code, options, command: words, tasks, lines, objects, files, end, id })
    }

    fn from_quote(quote: QuoteArgs) -> anyhow::Result<Self> {
        let QuoteArgs { job, tasks } = quote;
        let end = EndArgs { detach: true, output: None, no_download: true };
        Self::new(job, tasks, end, None)
    }

    /// Reads the lists of tasks, which may come from the standard input.
    fn new(job: JobArgs, tasks: TaskArgs, end: EndArgs, id: Option<BatchId>) -> anyhow::Result<Self> {
        let (directory, options, command) = (job.directory, job.options, job.command);
        let lines = tasks.each_line.as_deref().map(read_lines).transpose()?;
        let objects = tasks.from_json.as_deref().map(read_objects).transpose()?.unwrap_or_default();
        Ok(Self { directory, options, command, tasks, lines, objects, files: Vec::new(), end, id })
    }

    pub(crate) fn from_run(run: RunArgs) -> anyhow::Result<Self> {
        let RunArgs { job, id, tasks, end } = run;
        let id = id.map(|id| id.to_string().parse::<BatchId>()).transpose();
        let id = id.context("the id of a batch ends with five zeros")?;
        Self::new(job, tasks, end, id)
    }

    /// The request, without the files of the job, and the input files of every task. `files` are the paths of the files
    /// of `gpubnb map` in their dataset.
    fn request(&self, files: &[String]) -> anyhow::Result<(BatchRequest, Vec<String>)> {
        let described =
            Described { directory: self.directory.as_deref(), options: &self.options, command: &self.command };
        let (job, inputs) = submit::describe(described)?;
        let TaskArgs { array, sweep, max_running, max_failures, .. } = &self.tasks;
        let of_files = || files.iter().map(|path| format!("/data/{FILES}/{path}")).collect();
        let request = BatchRequest {
            batch: None,
            job,
            array: array.clone(),
            items: self.lines.clone().unwrap_or_else(of_files),
            sweep: sweep.iter().cloned().collect(),
            tasks: self.objects.clone(),
            indices: Vec::new(),
            max_running: *max_running,
            max_failures: *max_failures,
        };
        ensure!(request.sweep.len() == sweep.len(), "--sweep names a parameter twice");
        Ok((request, inputs))
    }
}

/// `gpubnb quote` with many tasks. Nothing is uploaded.
pub(crate) async fn quote(api: &Api, quote: QuoteArgs, json: bool) -> anyhow::Result<u8> {
    let (request, _) = Submission::from_quote(quote)?.request(&[])?;
    let quote = api.post("/batches/quote", &serde_json::to_value(&request)?).await?;
    if json {
        outln!("{quote}");
        return Ok(0);
    }
    let line = |name: &str, value: String| outln!("{name:<14}{value}");
    line("tasks", quote["tasks"].to_string());
    line("at once", format!("at most {}", quote["max_running"]));
    line("failures", format!("after more than {}, the rest is cancelled", quote["max_failures"]));
    line(
        "all full time",
        quote["expected"].as_i64().map_or_else(|| "unknown".to_owned(), |_| dollars(&quote["expected"])),
    );
    line("all held", format!("{} (never more than this)", dollars(&quote["hold"])));
    outln!("\neach task");
    let mut task = quote["task"].clone();
    task["image"] = quote["image"].clone();
    show::quote(&task);
    Ok(0)
}

/// `gpubnb map`, and `gpubnb run` with many tasks.
pub(crate) async fn run(api: &Api, submission: Submission, json: bool) -> anyhow::Result<u8> {
    let mut stop = StopSignal::new()?;
    let batch = submission.id.unwrap_or_else(BatchId::generate);
    let id = batch.to_string();
    let request = tokio::select! {
        request = prepare(api, &submission) => BatchRequest { batch: Some(batch), ..request? },
        () = stop.received() => bail!("stopped before the batch was submitted"),
    };
    let request = serde_json::to_value(request)?;
    let submit = || api.request(Method::POST, "/batches").timeout(REQUEST_TIMEOUT).json(&request);
    let submitted: Value = tokio::select! {
        answer = api.send_repeatedly(submit) => answer?.json().await?,
        () = stop.received() => {
            // The market may have the batch already.
            let cancel = api.post(&format!("/batches/{id}/cancel"), &json!({})).await;
            let now = if cancel.is_ok() { "the batch was cancelled" } else { "the batch may run" };
            bail!("stopped before the market answered; {now}: gpubnb batch show {id}");
        }
    };
    if submission.end.detach {
        outln!("{}", if json { submitted.to_string() } else { id });
        return Ok(0);
    }
    errln!("Batch {id}: {}/batches/{id}", api.url);
    let ended = follow(api, &id, json, Some(&mut stop)).await?;
    if json {
        outln!("{ended}");
    } else {
        print_failures(api, &id, &ended).await?;
    }
    if !submission.end.no_download {
        let directory = submission.end.output.clone().unwrap_or_else(|| PathBuf::from(&id));
        tokio::select! {
            saved = fetch_all(api, &id, &directory) => saved?,
            () = stop.received() => bail!("stopped; the rest of the files: gpubnb batch fetch {id}"),
        }
    }
    Ok(exit_code(&ended))
}

/// Asks the market for a quote, and uploads the files. The quote comes first, so that a wrong name does not cost the
/// time of an upload.
async fn prepare(api: &Api, submission: &Submission) -> anyhow::Result<BatchRequest> {
    let paths = submission.files.clone();
    let read = (!paths.is_empty()).then(|| tokio::task::spawn_blocking(move || Directory::of_files(&paths)));
    let (files, order) = match read {
        Some(read) => read.await?.map(|(files, order)| (Some(files), order))?,
        None => (None, Vec::new()),
    };
    let (mut request, inputs) = submission.request(&order)?;
    let quote = api.post("/batches/quote", &serde_json::to_value(&request)?).await?;
    let expected = match &quote["expected"] {
        Value::Null => "no machine is free now".to_owned(),
        expected => format!("{} if each uses its full time on the machine that is free now", dollars(expected)),
    };
    errln!("{} tasks: {expected}. {} is set aside, and it costs no more.", quote["tasks"], dollars(&quote["hold"]));
    submit::check_funds(&quote["hold"], &quote["task"]["available"])?;
    request.job = submit::upload_files(api, request.job, submission.directory.as_deref(), &inputs).await?;
    if let Some(files) = files {
        let stored = datasets::push(api, files, None).await?;
        let dataset = text(&stored["dataset"]);
        let mount = DatasetRequest { dataset, directory: Some(FILES.to_owned()), writable: false };
        request.job = JobRequest { datasets: [request.job.datasets, vec![mount]].concat(), ..request.job };
    }
    Ok(request)
}

/// The number of tasks that have ended.
fn ended_tasks(batch: &Value) -> u64 {
    ["completed", "failed", "cancelled"].iter().filter_map(|state| batch["counts"][state].as_u64()).sum()
}

/// The progress of a batch in words.
fn progress_words(batch: &Value) -> String {
    let count = |state: &str| batch["counts"][state].as_u64().unwrap_or_default();
    format!("{} running, {} failed, {} so far", count("running"), count("failed"), dollars(&batch["cost"]))
}

/// Shows the progress of a batch until its last task is settled, and returns the batch. A signal cancels the rest.
async fn follow(api: &Api, id: &str, json: bool, mut stop: Option<&mut StopSignal>) -> anyhow::Result<Value> {
    let is_shown = std::io::stderr().is_terminal() && !json;
    let style = ProgressStyle::with_template("[{bar:30}] {pos} of {len} ended, {msg}")?.progress_chars("=> ");
    let bar = if is_shown { ProgressBar::new(0).with_style(style) } else { ProgressBar::hidden() };
    let (mut looks, mut printed) = (0_u32, String::new());
    loop {
        let batch = api.get(&format!("/batches/{id}")).await?;
        bar.set_length(batch["tasks"].as_u64().unwrap_or_default());
        bar.set_position(ended_tasks(&batch));
        bar.set_message(progress_words(&batch));
        if !batch["ended_at"].is_null() {
            bar.finish_and_clear();
            errln!(
                "{}: {} of {} tasks completed, {}.",
                text(&batch["status"]),
                batch["counts"]["completed"],
                batch["tasks"],
                dollars(&batch["cost"])
            );
            return Ok(batch);
        }
        let line = format!("{} of {} ended, {}", ended_tasks(&batch), batch["tasks"], progress_words(&batch));
        if !is_shown && !json && looks % LOOKS_PER_LINE == 0 && line != printed {
            errln!("{line}");
            printed = line;
        }
        looks = looks.wrapping_add(1);
        let Some(signal) = &mut stop else {
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => continue,
                _ = tokio::signal::ctrl_c() => bail!("left; gpubnb batch show {id} tells how the batch goes on"),
            }
        };
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = signal.received() => {
                let path = format!("/batches/{id}/cancel");
                let cancel = || api.request(Method::POST, &path).timeout(REQUEST_TIMEOUT).json(&json!({}));
                match api.send_repeatedly(cancel).await {
                    Ok(_) => errln!("Cancelling the rest. Ctrl-C again leaves at once."),
                    Err(e) => errln!("The rest was not cancelled: {e:#}. Try again: gpubnb batch cancel {id}"),
                }
                stop = None;
            }
        }
    }
}

fn exit_code(batch: &Value) -> u8 {
    if batch["counts"]["completed"] == batch["tasks"] {
        0
    } else if batch["closed"] == "cancelled" {
        CANCELLED
    } else {
        TASKS_FAILED
    }
}

/// Prints the first failed tasks with their reasons.
async fn print_failures(api: &Api, id: &str, batch: &Value) -> anyhow::Result<()> {
    let failed = batch["counts"]["failed"].as_u64().unwrap_or_default();
    if failed == 0 {
        return Ok(());
    }
    let seq = &batch["seq"];
    let page = api.get(&format!("/batches/{id}/tasks?state=Failed&limit={NAMED_FAILURES}&min_seq={seq}")).await?;
    for task in show::rows(&page) {
        let parameters: Vec<String> = task["parameters"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("{name}={}", make_plain(value.as_str().unwrap_or_default())))
            .collect();
        errln!(
            "  task {} {}: {}, gpubnb logs {}",
            task["index"],
            parameters.join(" "),
            text(&task["reason"]["name"]),
            text(&task["job"])
        );
    }
    if failed > NAMED_FAILURES as u64 {
        errln!("  and {} more: gpubnb batch tasks {id} --state Failed", failed - NAMED_FAILURES as u64);
    }
    let names = |field: &str| batch["spec"][field].as_array().cloned().unwrap_or_default();
    let has_own_values = names("env").iter().any(|name| !names("secrets").contains(name));
    if !batch["ended_at"].is_null() && !has_own_values {
        errln!("Try the failed tasks again: gpubnb batch retry {id}");
    }
    Ok(())
}

/// All tasks of a batch, page after page, as they are at this sequence of the log or later.
async fn all_tasks(api: &Api, id: &str, state: Option<&str>, seq: &Value) -> anyhow::Result<Vec<Value>> {
    let state = serde_urlencoded::to_string(state.map(|state| [("state", state)]).unwrap_or_default())?;
    let query = format!("?limit=200&min_seq={seq}&{state}");
    show::all_rows(api, &format!("/batches/{id}/tasks"), &query, usize::MAX).await
}

/// Downloads the files of all tasks that ran. A file that cannot be saved does not keep the others from being saved.
async fn fetch_all(api: &Api, id: &str, directory: &Path) -> anyhow::Result<()> {
    let seq = api.get(&format!("/batches/{id}")).await?["seq"].clone();
    let tasks = all_tasks(api, id, None, &seq).await?;
    let ran = tasks.iter().filter(|task| !task["started_at"].is_null() && !task["ended_at"].is_null());
    let fetch_task = |task: &Value| {
        let (job, directory, seq) = (text(&task["job"]), directory.join(task["index"].to_string()), seq.clone());
        async move {
            let row = api.get(&format!("/jobs/{job}?min_seq={seq}")).await?;
            download::save_files(api, &job, &row, &directory).await
        }
    };
    let mut downloads =
        futures_util::stream::iter(ran.map(fetch_task).collect::<Vec<_>>()).buffer_unordered(CONCURRENT_DOWNLOADS);
    let (mut saved, mut failed) = (0, 0);
    while let Some(files) = downloads.next().await {
        // The files of one task do not keep those of the others from being saved.
        let (of_task, failures) = files.unwrap_or_else(|e: anyhow::Error| {
            errln!("gpubnb: {e:#}");
            (0, 1)
        });
        saved += of_task;
        failed += failures;
    }
    if saved > 0 {
        errln!("{saved} files are in {}, in a directory for each task", directory.display());
    }
    ensure!(failed == 0, "{failed} files were not saved. Try again: gpubnb batch fetch {id}");
    Ok(())
}

/// The whole id of a batch that a person means: by its id, or by a part of the eight characters that lists show.
async fn find(api: &Api, batch: &str) -> anyhow::Result<String> {
    let batch = batch.trim().to_lowercase();
    if batch.parse::<BatchId>().is_ok() {
        return Ok(batch);
    }
    let is_part = batch.len() >= SHORTEST && batch.chars().all(|c| c.is_ascii_hexdigit());
    ensure!(is_part, "{batch} is not the id of a batch. `gpubnb batch list` lists your batches");
    let all = show::all_rows(api, "/batches", "?limit=50", MAX_PAGES * 50).await?;
    let ids = all.iter().filter_map(|row| text(&row["batch"]).parse::<BatchId>().ok());
    let found: Vec<String> = ids.filter(|id| id.short().ends_with(&batch)).map(|id| id.to_string()).collect();
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => bail!("you have no batch {batch}. `gpubnb batch list` lists your batches"),
        several => bail!("{} of your batches are meant by {batch}: {}", several.len(), several.join(", ")),
    }
}

/// `gpubnb batch`.
pub(crate) async fn command(api: &Api, command: BatchCommand, json: bool) -> anyhow::Result<u8> {
    match command {
        BatchCommand::List { limit } => list(api, limit, json).await,
        BatchCommand::Show { batch } => show_batch(api, &find(api, &batch).await?, json).await,
        BatchCommand::Tasks { batch, state } => tasks(api, &find(api, &batch).await?, state.as_deref(), json).await,
        BatchCommand::Results { batch } => {
            let id = find(api, &batch).await?;
            let table = api.send_repeatedly(|| api.request(Method::GET, &format!("/batches/{id}/results.csv"))).await?;
            let table = table.text().await?;
            // A machine chose the names of measurements, and a terminal obeys control characters.
            let is_terminal = std::io::stdout().is_terminal();
            for line in table.lines() {
                outln!("{}", if is_terminal { make_plain(line) } else { line.to_owned() });
            }
            Ok(0)
        }
        BatchCommand::Wait { batch } => {
            let id = find(api, &batch).await?;
            let ended = follow(api, &id, json, None).await?;
            if json {
                outln!("{ended}");
            } else {
                print_failures(api, &id, &ended).await?;
            }
            Ok(exit_code(&ended))
        }
        BatchCommand::Fetch { batch, directory } => {
            let id = find(api, &batch).await?;
            fetch_all(api, &id, &directory.unwrap_or_else(|| PathBuf::from(&id))).await?;
            Ok(0)
        }
        BatchCommand::Cancel { batch } => {
            let id = find(api, &batch).await?;
            let done = api.post(&format!("/batches/{id}/cancel"), &json!({})).await?;
            Ok(show::done(json, &done, "The tasks that have not ended are being cancelled."))
        }
        BatchCommand::Retry { batch } => {
            let id = find(api, &batch).await?;
            // The client makes the id, so that a request whose answer was lost does not make a second batch.
            let key = BatchId::generate().to_string();
            let path = format!("/batches/{id}/retry");
            let retry = || api.request(Method::POST, &path).timeout(REQUEST_TIMEOUT).header("idempotency-key", &key);
            let submitted: Value = api.send_repeatedly(retry).await?.json().await?;
            Ok(show::done(json, &submitted, &text(&submitted["batch"])))
        }
        BatchCommand::Open { batch } => {
            let id = find(api, &batch).await?;
            show::open_page(api, &format!("/batches/{id}"), json)
        }
    }
}

async fn list(api: &Api, limit: usize, json: bool) -> anyhow::Result<u8> {
    let rows = show::all_rows(api, "/batches", &format!("?limit={}", limit.min(50)), limit).await?;
    if json {
        outln!("{}", json!({ "rows": rows }));
        return Ok(0);
    }
    let row = |b: &Value| {
        let short = text(&b["batch"]).parse::<BatchId>().map(BatchId::short).unwrap_or_default();
        let ended = format!("{} of {}", ended_tasks(b), b["tasks"]);
        let (failed, submitted) = (b["counts"]["failed"].to_string(), show::time(&b["submitted_at"]));
        vec![short, text(&b["spec"]["name"]), text(&b["status"]), ended, failed, submitted, dollars(&b["cost"])]
    };
    let head = ["BATCH", "NAME", "STATE", "ENDED", "FAILED", "SUBMITTED", "COST"];
    show::print_table(&head, &rows.iter().map(row).collect::<Vec<_>>());
    Ok(0)
}

async fn show_batch(api: &Api, id: &str, json: bool) -> anyhow::Result<u8> {
    let batch = api.get(&format!("/batches/{id}")).await?;
    if json {
        outln!("{batch}");
        return Ok(0);
    }
    let line = |name: &str, value: String| outln!("{name:<14}{value}");
    line("name", text(&batch["spec"]["name"]));
    line("state", text(&batch["status"]));
    for state in ["completed", "failed", "running", "waiting", "cancelled"] {
        line(state, format!("{} of {}", batch["counts"][state], batch["tasks"]));
    }
    line("cost so far", dollars(&batch["cost"]));
    line("set aside", dollars(&batch["held"]));
    line("at most", dollars(&batch["hold"]));
    print_failures(api, id, &batch).await?;
    Ok(0)
}

async fn tasks(api: &Api, id: &str, state: Option<&str>, json: bool) -> anyhow::Result<u8> {
    let rows = all_tasks(api, id, state, &json!(0)).await?;
    if json {
        outln!("{}", json!({ "rows": rows }));
        return Ok(0);
    }
    let plain = |value: &Value| make_plain(value.as_str().unwrap_or_default());
    let row = |task: &Value| {
        let parameters = task["parameters"].as_object().into_iter().flatten();
        let parameters: Vec<String> = parameters.map(|(name, value)| format!("{name}={}", plain(value))).collect();
        let cost = if task["cost"].is_null() { String::new() } else { dollars(&task["cost"]) };
        let reason = text(&task["reason"]["name"]);
        vec![task["index"].to_string(), text(&task["state"]), reason, parameters.join(" "), cost, text(&task["job"])]
    };
    let head = ["INDEX", "STATE", "REASON", "PARAMETERS", "COST", "JOB"];
    show::print_table(&head, &rows.iter().map(row).collect::<Vec<_>>());
    Ok(0)
}
