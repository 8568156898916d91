//! The commands that print lists, receipts and short answers: tables for people, JSON for programs.

use std::{
    io::IsTerminal as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use gpubnb_events::{MicroUsd, text::make_plain};
use serde_json::{Value, json};

use crate::{api::Api, args::MachineFilters};

pub(crate) fn text(value: &Value) -> String {
    make_plain(value.as_str().unwrap_or_default())
}

pub(crate) fn dollars(value: &Value) -> String {
    MicroUsd(value.as_i64().unwrap_or(0)).to_string()
}

pub(crate) fn print_table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        outln!("{}", padded.join("  ").trim_end());
    };
    line(&head.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
    for row in rows {
        line(row);
    }
}

pub(crate) fn rows(page: &Value) -> Vec<Value> {
    page["rows"].as_array().cloned().unwrap_or_default()
}

/// The rows of a list of the API, page after page, up to `most`. `query` begins with `?`.
pub(crate) async fn all_rows(api: &Api, path: &str, query: &str, most: usize) -> anyhow::Result<Vec<Value>> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("{path}{query}{cursor}")).await?;
        all.extend(rows(&page));
        match page["next"].as_str() {
            Some(next) if all.len() < most => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    all.truncate(most);
    Ok(all)
}

/// Most machines that are listed.
const MAX_MACHINES: usize = 10_000;

pub(crate) async fn machines(api: &Api, filters: &MachineFilters, json: bool) -> anyhow::Result<u8> {
    let query = serde_urlencoded::to_string(filters)?;
    let mut machines = all_rows(api, "/machines", &format!("?{query}"), MAX_MACHINES).await?;
    machines.sort_by_key(|m| m["offer"]["price"].as_i64());
    if json {
        outln!("{}", json!({ "rows": machines }));
        return Ok(0);
    }
    let row = |m: &Value| {
        let hardware = &m["offer"]["hardware"];
        let gpus = hardware["gpus"].as_array().map_or(0, Vec::len);
        let model = text(&hardware["gpus"][0]["model"]);
        let simulated = if hardware["simulated"] == true { " (simulated)" } else { "" };
        let gpus = if gpus == 0 { "CPU only".to_owned() } else { format!("{gpus} × {model}{simulated}") };
        let price = format!("{}/h", dollars(&m["offer"]["price"]));
        let name = text(&m["offer"]["name"]);
        let slots = format!("{} of {}", m["free_slots"], m["offer"]["slots"]);
        vec![text(&m["machine"]), name, text(&m["state"]), slots, text(&m["offer"]["region"]), gpus, price]
    };
    print_table(
        &["MACHINE", "NAME", "STATE", "FREE", "REGION", "GPU", "PRICE"],
        &machines.iter().map(row).collect::<Vec<_>>(),
    );
    Ok(0)
}

/// Prints the list at a path of the API: as JSON, or as a table with one row for each element.
pub(crate) async fn list(
    api: &Api,
    path: &str,
    json: bool,
    head: &[&str],
    row: impl Fn(&Value) -> Vec<String>,
) -> anyhow::Result<u8> {
    let elements = api.get(path).await?;
    if json {
        outln!("{elements}");
    } else {
        print_table(head, &elements.as_array().into_iter().flatten().map(row).collect::<Vec<_>>());
    }
    Ok(0)
}

/// Says that something is done: as JSON, or as a sentence.
pub(crate) fn done(json: bool, value: &Value, sentence: &str) -> u8 {
    if json {
        outln!("{value}");
    } else {
        outln!("{sentence}");
    }
    0
}

pub(crate) async fn templates(api: &Api, json: bool) -> anyhow::Result<u8> {
    let row = |t: &Value| {
        let parameter = |field: &Value| format!("{}={}", text(&field["name"]), text(&field["default"]));
        let parameters: Vec<_> = t["fields"].as_array().into_iter().flatten().map(parameter).collect();
        let typical = t["typical"]["time"].as_u64().map_or_else(String::new, |millis| {
            format!("{}.{} s, {}", millis / 1_000, millis % 1_000 / 100, dollars(&t["typical"]["cost"]))
        });
        vec![text(&t["id"]), text(&t["title"]), typical, parameters.join(" ")]
    };
    list(api, "/templates", json, &["TEMPLATE", "TITLE", "USUALLY", "PARAMETERS"], row).await
}

pub(crate) async fn jobs(
    api: &Api,
    state: Option<&str>,
    containing: Option<&str>,
    limit: usize,
    json: bool,
) -> anyhow::Result<u8> {
    let filters: Vec<_> =
        [("state", state), ("text", containing)].into_iter().filter(|(_, value)| value.is_some()).collect();
    let query = format!("?limit={}&{}", limit.min(100), serde_urlencoded::to_string(filters)?);
    let rows = all_rows(api, "/jobs", &query, limit).await?;
    if json {
        outln!("{}", json!({ "rows": rows }));
        return Ok(0);
    }
    let row = |j: &Value| {
        let created = time(&j["submitted_at"]);
        let cost = if j["cost"].is_null() { format!("{} held", dollars(&j["hold"])) } else { dollars(&j["cost"]) };
        vec![text(&j["job"]), text(&j["spec"]["name"]), text(&j["state"]), created, cost]
    };
    print_table(&["JOB", "NAME", "STATE", "SUBMITTED", "COST"], &rows.iter().map(row).collect::<Vec<_>>());
    Ok(0)
}

/// The time after which `gpubnb top` looks again.
const TOP_PERIOD: Duration = Duration::from_secs(2);
/// Number of jobs in the table of `gpubnb top`.
const TOP_JOBS: usize = 20;

/// `gpubnb top`: the newest jobs and the money of the account, again and again until Ctrl-C. A file or a pipe gets them
/// once, and so does a program that asks for JSON.
pub(crate) async fn top(api: &Api, json: bool) -> anyhow::Result<u8> {
    if json {
        let (wallet, jobs) = (api.get("/wallet").await?, api.get(&format!("/jobs?limit={TOP_JOBS}")).await?);
        outln!("{}", json!({ "balance": wallet["balance"], "jobs": jobs["rows"] }));
        return Ok(0);
    }
    let is_terminal = std::io::stdout().is_terminal();
    loop {
        let wallet = api.get("/wallet").await?;
        if is_terminal {
            // Clears the screen, and begins at its top.
            outln!("\x1b[2J\x1b[H");
        }
        let [available, held] = ["available", "held"].map(|name| dollars(&wallet["balance"][name]));
        outln!("{available} available, {held} set aside for jobs\n");
        jobs(api, None, None, TOP_JOBS, false).await?;
        if !is_terminal {
            return Ok(0);
        }
        tokio::time::sleep(TOP_PERIOD).await;
    }
}

pub(crate) async fn receipt(api: &Api, job: &str, json: bool) -> anyhow::Result<u8> {
    let receipt = api.get(&format!("/jobs/{job}/receipt")).await?;
    if json {
        outln!("{receipt}");
        return Ok(0);
    }
    let metering = &receipt["metering"];
    if metering.is_null() {
        outln!("The job's program never ran, or nobody pays for its run.");
        outln!("{:<28}{}", "cost", dollars(&receipt["cost"]));
        return Ok(0);
    }
    outln!("{:<28}{} ms", "metered", metering["billed"]);
    outln!("{:<28}{}/h", "price", dollars(&receipt["terms"]["price"]));
    outln!("{:<28}{}", "cost", dollars(&receipt["cost"]));
    outln!("{:<28}{}", "  to the provider", dollars(&receipt["earned"]));
    outln!("{:<28}{}", "  fee", dollars(&receipt["fee"]));
    outln!(
        "computed from events {} to {}, settled by event {}",
        metering["started"],
        metering["ended"],
        receipt["seq"]
    );
    Ok(0)
}

/// Why machines do not take a job, such as `2 TooSmall, 1 Busy`.
pub(crate) fn rejections(placement: &Value) -> String {
    let count_and_reason = |r: &Value| format!("{} {}", r["machines"], text(&r["reason"]));
    let rejected: Vec<_> = placement["rejected"].as_array().into_iter().flatten().map(count_and_reason).collect();
    if rejected.is_empty() { "there are no machines".to_owned() } else { rejected.join(", ") }
}

/// A time of the market, to the minute.
pub(crate) fn time(value: &Value) -> String {
    let shown = text(value);
    shown.get(..16).map_or_else(String::new, |minute| format!("{} UTC", minute.replace('T', " ")))
}

/// Prints a quote.
pub(crate) fn quote(quote: &Value) {
    let line = |name: &str, value: String| outln!("{name:<14}{value}");
    line("image", text(&quote["image"]));
    if quote["machine"].is_null() {
        line("machine", format!("none now: {}", rejections(&quote["placement"])));
    } else {
        line("machine", format!("{} at {}/h", text(&quote["machine_name"]), dollars(&quote["price"])));
        line("full time", dollars(&quote["expected"]));
    }
    line("held", format!("{} (never more than this)", dollars(&quote["hold"])));
    line("you have", dollars(&quote["available"]));
}

/// Opens a page of the market in the browser, and prints its address.
pub(crate) fn open_page(api: &Api, path: &str, json: bool) -> anyhow::Result<u8> {
    let address = format!("{}{path}", api.url);
    done(json, &json!({ "address": address }), &address);
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let opened = Command::new(program).arg(&address).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    opened.map(|_| 0).with_context(|| format!("no browser was opened, because `{program}` cannot be started"))
}

pub(crate) async fn cancel(api: &Api, job: &str, json: bool) -> anyhow::Result<u8> {
    let cancelled = api.post(&format!("/jobs/{job}/cancel"), &json!({})).await?;
    Ok(done(json, &cancelled, "The job was asked to stop."))
}
