//! A job's own form, filled in anew: to run it again, or with something changed. Its secrets are not known any more.

use gpubnb_events::{HourlyRate, spec::Placement, template};
use gpubnb_query::view::JobView;

/// The form's fields, as they would have been typed.
pub(super) fn fields(job: &JobView) -> Vec<(String, String)> {
    let (spec, resources, limits) = (&job.spec, &job.spec.resources, &job.limits);
    let mut fields = Vec::new();
    let mut set = |name: &str, value: String| fields.push((name.to_owned(), value));
    set("name", spec.name.clone());
    if let Some(template) = spec.template.as_deref().and_then(template::find) {
        set("template", template.id.to_owned());
        // After the template's own words come `--name value`, one pair for each of its fields.
        for pair in spec.command.get(template.command.len()..).unwrap_or_default().chunks_exact(2) {
            if let Some(name) = pair[0].strip_prefix("--") {
                set(&format!("parameter.{name}"), pair[1].clone());
            }
        }
    } else {
        set("image", spec.image.clone());
        set("command", spec.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
    }
    set("cpu", resources.cpu_millis.div_ceil(1_000).to_string());
    set("memory", resources.memory.0.to_string());
    set("output", resources.output.0.to_string());
    set("gpus", resources.gpus.to_string());
    set("vram", resources.vram.0.to_string());
    set("max_attempts", limits.max_attempts.to_string());
    set("time", limits.time.0.div_ceil(60).to_string());
    set("budget", plain(limits.budget.to_string()));
    if spec.egress {
        set("egress", "on".to_owned());
    }
    if let Some(HourlyRate(price)) = job.placement.price_cap() {
        set("price_cap_usd", plain(price.to_string()));
    }
    match &job.placement {
        Placement::Machine { machine, .. } => set("machine", machine.to_string()),
        Placement::Cheapest { .. } => {}
        Placement::Fastest { .. } => set("strategy", "fastest".to_owned()),
        Placement::MostReliable { .. } => set("strategy", "most_reliable".to_owned()),
    }
    if let Some(requirements) = job.placement.requirements() {
        requirements.gpu_model.iter().for_each(|model| set("gpu_model", model.clone()));
        requirements.region.iter().for_each(|region| set("region", region.clone()));
        requirements.reliability.iter().for_each(|percent| set("min_reliability", percent.to_string()));
        if requirements.allow_simulated {
            set("allow_simulated", "on".to_owned());
        }
        if requirements.verified {
            set("verified", "on".to_owned());
        }
    }
    for input in &spec.inputs {
        set("input", format!("{} {}", input.input, input.path));
    }
    fields
}

/// An amount as it is typed.
fn plain(amount: String) -> String {
    amount.replace('$', "")
}

/// A word of a command line, held together where it must be.
fn quoted(word: &str) -> String {
    let needs = word.is_empty() || word.contains(|c: char| c.is_whitespace() || c == '"' || c == '\'');
    match (needs, word.contains('\'')) {
        (false, _) => word.to_owned(),
        (true, false) => format!("'{word}'"),
        // Both kinds of quotes: each single one stands between double ones.
        (true, true) => word.split('\'').map(|part| format!("'{part}'")).collect::<Vec<_>>().join("\"'\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::words;

    #[test]
    fn a_command_line_is_read_as_the_words_it_was_made_of() {
        let command = ["python", "-c", "print('a b', \"c\")", "", "it's", "--x=1"];
        let line = command.map(quoted).join(" ");
        assert_eq!(words(&line).unwrap(), command);
    }
}
