//! Compares the answers of the API with its OpenAPI document. Every answer that a test gets through
//! [`ApiClient`](crate::api_client::ApiClient) is compared.

// A test must fail whatever it does with the answer, so this module panics.
#![allow(clippy::panic)]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jsonschema::Validator;
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

/// An answer of the API.
pub(crate) struct Answer<'a> {
    pub(crate) method: &'a Method,
    /// The path, which begins with `/api/v1`, with its query.
    pub(crate) path: &'a str,
    pub(crate) status: StatusCode,
    pub(crate) body: &'a str,
}

/// The OpenAPI document of the market, and the validators that were made from it.
struct Contract {
    document: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

/// All markets of a test binary run the same programs, so they have the same document.
static CONTRACT: OnceCell<Contract> = OnceCell::const_new();

/// Compares an answer with the document, which is read from the market at `url`.
///
/// # Panics
///
/// Panics if the answer is not as the document says, because the document or the API is wrong then.
pub(crate) async fn check(client: &reqwest::Client, url: &str, answer: &Answer<'_>) {
    let contract = CONTRACT.get_or_init(|| read_document(client, url)).await;
    if let Err(problem) = contract.compare(answer) {
        let Answer { method, path, status, body } = answer;
        panic!("{method} {path}: {status}: the OpenAPI document is not true of this answer: {problem}\n{body}");
    }
}

async fn read_document(client: &reqwest::Client, url: &str) -> Contract {
    let read = async { client.get(format!("{url}/openapi.json")).send().await?.json::<Value>().await };
    let mut document = read.await.unwrap_or_else(|e| panic!("the OpenAPI document cannot be read: {e}"));
    close_objects(&mut document, false);
    Contract { document, validators: Mutex::default() }
}

/// Lets a schema refuse the properties that it does not name. `is_use` is true for a schema that describes a whole
/// value, such as a property or the items of a list. The root of a component stays open, because other schemas may
/// include the component (`allOf`) and add properties.
fn close_objects(schema: &mut Value, is_use: bool) {
    let Value::Object(object) = schema else {
        if let Value::Array(all) = schema {
            for schema in all.iter_mut() {
                close_objects(schema, false);
            }
        }
        return;
    };
    for (key, value) in object.iter_mut() {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().for_each(|property| close_objects(property, true));
            }
            ("items" | "additionalProperties" | "schema", value) => close_objects(value, true),
            (_, value) => close_objects(value, false),
        }
    }
    let has_properties = ["$ref", "properties", "allOf", "oneOf"].iter().any(|key| object.contains_key(*key));
    if is_use && has_properties {
        object.insert("unevaluatedProperties".to_owned(), json!(false));
    }
}

impl Contract {
    fn compare(&self, answer: &Answer<'_>) -> Result<(), String> {
        let path = answer.path.split('?').next().unwrap_or_default();
        let Some((template, operation)) = self.operation(answer.method, path) else { return Ok(()) };
        let status = answer.status.as_str();
        let responses = &operation["responses"];
        let response = match responses.get(status) {
            Some(response) => response,
            None if answer.status.is_success() => return Err(format!("the status {status} is not in the document")),
            None => &responses["default"],
        };
        let Some(content) = response["content"].as_object().and_then(|content| content.values().next()) else {
            return if answer.body.is_empty() { Ok(()) } else { Err("the document promises no body".to_owned()) };
        };
        let Some(schema) = content.get("schema") else { return Ok(()) };
        let body: Value = serde_json::from_str(answer.body).map_err(|e| format!("the body is no JSON: {e}"))?;
        let validator = self.validator(&format!("{} {template} {status}", answer.method), schema)?;
        let errors: Vec<String> =
            validator.iter_errors(&body).take(5).map(|e| format!("{}: {e}", e.instance_path())).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// The template of the path of an endpoint, and its operation. `None` if the document has no such path, or the path
    /// has no such method.
    fn operation(&self, method: &Method, path: &str) -> Option<(&str, &Value)> {
        let paths = self.document["paths"].as_object()?;
        let method = method.as_str().to_lowercase();
        let fitting = paths.iter().filter(|(template, item)| fits(template, path) && item.get(&method).is_some());
        // `/jobs/stream` fits `/jobs/{job}` too. The template with the fewest parameters is meant.
        fitting
            .min_by_key(|(template, _)| template.matches('{').count())
            .map(|(template, item)| (template.as_str(), &item[&method]))
    }

    fn validator(&self, key: &str, schema: &Value) -> Result<Arc<Validator>, String> {
        let mut validators = self.validators.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = validators.get(key) {
            return Ok(known.clone());
        }
        let mut whole: Map<String, Value> = schema.as_object().cloned().unwrap_or_default();
        whole.insert("components".to_owned(), self.document["components"].clone());
        let made = jsonschema::draft202012::new(&Value::Object(whole)).map_err(|e| format!("the schema: {e}"))?;
        let made = Arc::new(made);
        validators.insert(key.to_owned(), made.clone());
        Ok(made)
    }
}

/// True if a path fits a template. The last parameter of `…/artifacts/{path}` may have several segments.
fn fits(template: &str, path: &str) -> bool {
    let (mut wanted, mut found) = (template.split('/').peekable(), path.split('/'));
    while let Some(part) = wanted.next() {
        if part == "{path}" && wanted.peek().is_none() {
            return found.next().is_some();
        }
        match found.next() {
            Some(segment) if part == segment || (part.starts_with('{') && !segment.is_empty()) => {}
            _ => return false,
        }
    }
    found.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract() -> Contract {
        let job = json!({
            "type": "object",
            "required": ["job"],
            "properties": { "job": { "type": "string" }, "limits": { "$ref": "#/components/schemas/Limits" } },
        });
        let limits = json!({ "type": "object", "properties": { "time": { "type": "integer" } } });
        let answer = json!({ "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Job" } } } });
        let mut document = json!({
            "paths": {
                "/api/v1/jobs/{job}": { "get": { "responses": { "200": answer } } },
                "/api/v1/jobs/{job}/files/{path}": { "delete": { "responses": { "204": {} } } },
            },
            "components": { "schemas": { "Job": job, "Limits": limits } },
        });
        close_objects(&mut document, false);
        Contract { document, validators: Mutex::default() }
    }

    fn compare(method: &Method, path: &str, status: u16, body: &str) -> Result<(), String> {
        contract().compare(&Answer { method, path, status: StatusCode::from_u16(status).unwrap(), body })
    }

    #[test]
    fn an_answer_that_the_document_does_not_describe_is_found() {
        let get = |body: &str| compare(&Method::GET, "/api/v1/jobs/1?min_seq=2", 200, body);
        get(r#"{ "job": "1", "limits": { "time": 3 } }"#).unwrap();
        for (body, problem) in [
            (r#"{ "limits": {} }"#, "required"),
            (r#"{ "job": 1 }"#, "type"),
            (r#"{ "job": "1", "new": 2 }"#, "new"),
            (r#"{ "job": "1", "limits": { "new": 2 } }"#, "new"),
            ("<html>", "no JSON"),
        ] {
            let found = get(body).unwrap_err();
            assert!(found.contains(problem), "{body}: {found}");
        }
        assert!(compare(&Method::GET, "/api/v1/jobs/1", 201, r#"{ "job": "1" }"#).unwrap_err().contains("status 201"));
        compare(&Method::DELETE, "/api/v1/jobs/1/files/a/b", 204, "").unwrap();
        assert!(compare(&Method::DELETE, "/api/v1/jobs/1/files/a/b", 204, "{}").unwrap_err().contains("no body"));
    }
}
