//! The commands that print lists, receipts and short answers: tables for people, JSON for programs.

use gpubnb_events::{MicroUsd, text::make_plain};
use serde_json::{Value, json};

use crate::api::Api;

fn text(value: &Value) -> String {
    make_plain(value.as_str().unwrap_or_default())
}

fn dollars(value: &Value) -> String {
    MicroUsd(value.as_i64().unwrap_or(0)).to_string()
}

fn print_table(head: &[&str], rows: &[Vec<String>]) {
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

fn rows(page: &Value) -> Vec<Value> {
    page["rows"].as_array().cloned().unwrap_or_default()
}

pub(crate) async fn machines(api: &Api, json: bool) -> anyhow::Result<u8> {
    let page = api.get("/machines").await?;
    if json {
        outln!("{page}");
        return Ok(0);
    }
    let mut machines = rows(&page);
    machines.sort_by_key(|m| m["offer"]["price"].as_i64());
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

pub(crate) async fn jobs(api: &Api, state: Option<&str>, limit: u32, json: bool) -> anyhow::Result<u8> {
    let state = state.map(|state| state.chars().filter(char::is_ascii_alphanumeric).collect::<String>());
    let state = state.map_or_else(String::new, |state| format!("&state={state}"));
    let page = api.get(&format!("/jobs?limit={limit}{state}")).await?;
    if json {
        outln!("{page}");
        return Ok(0);
    }
    let row = |j: &Value| {
        let created = text(&j["submitted_at"]);
        let cost = if j["cost"].is_null() { format!("{} held", dollars(&j["hold"])) } else { dollars(&j["cost"]) };
        vec![text(&j["job"]), text(&j["spec"]["name"]), text(&j["state"]), created, cost]
    };
    print_table(&["JOB", "NAME", "STATE", "SUBMITTED", "COST"], &rows(&page).iter().map(row).collect::<Vec<_>>());
    Ok(0)
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

pub(crate) async fn cancel(api: &Api, job: &str, json: bool) -> anyhow::Result<u8> {
    let done = api.post(&format!("/jobs/{job}/cancel"), &json!({})).await?;
    if json {
        outln!("{done}");
    } else {
        outln!("The job was asked to stop.");
    }
    Ok(0)
}
