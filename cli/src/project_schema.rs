//! `gpubnb schema`: the JSON schema of `gpubnb.toml`, with which editors complete and check the file. The schema is
//! made from the type of the request, so that the two cannot differ.

use gpubnb_events::job_request::JobRequest;
use serde_json::{Map, Value, json};
use utoipa::{PartialSchema as _, ToSchema as _};

/// The schema of the file.
pub(crate) fn schema() -> anyhow::Result<Value> {
    let mut others = Vec::new();
    JobRequest::schemas(&mut others);
    let others: Map<String, Value> = others
        .into_iter()
        .map(|(name, schema)| Ok((name, serde_json::to_value(schema)?)))
        .collect::<anyhow::Result<_>>()?;
    let mut schema = serde_json::to_value(JobRequest::schema())?;
    if let Some(fields) = schema["properties"].as_object_mut() {
        fields.remove("job");
        let texts =
            |description: &str| json!({ "type": "array", "items": { "type": "string" }, "description": description });
        fields.insert("env".to_owned(), texts("Names of variables that are passed on from your own environment."));
        fields.insert("inputs".to_owned(), texts("Input files: FILE, or FILE:path for another path below /input."));
    }
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("gpubnb.toml");
    schema["description"] = json!("A job for `gpubnb run`.");
    schema["$defs"] = Value::Object(others);
    let text = schema.to_string().replace("#/components/schemas/", "#/$defs/");
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names to which the schema refers.
    fn references(schema: &Value) -> Vec<String> {
        match schema {
            Value::Object(fields) => {
                let own = fields.get("$ref").and_then(Value::as_str).map(ToOwned::to_owned);
                own.into_iter().chain(fields.values().flat_map(references)).collect()
            }
            Value::Array(elements) => elements.iter().flat_map(references).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn the_schema_has_the_fields_of_a_request_and_all_that_it_refers_to() {
        let schema = schema().unwrap();
        let names = schema["properties"].as_object().unwrap();
        for field in ["image", "command", "memory_mib", "egress", "datasets", "secrets", "env", "budget_usd"] {
            assert!(names.contains_key(field), "{field}");
        }
        assert!(!names.contains_key("job") && schema["additionalProperties"] == false);
        assert_eq!(schema["properties"]["env"]["items"]["type"], "string");
        let references = references(&schema);
        assert!(references.iter().any(|name| name.ends_with("DatasetRequest")));
        for reference in references {
            let name = reference.strip_prefix("#/$defs/").unwrap();
            assert!(schema["$defs"][name].is_object(), "{name}");
        }
    }
}
