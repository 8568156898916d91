//! The API as an OpenAPI document. It is made from the table of routes, so every endpoint that is served is documented.
//!
//! This module reads the routes, and the route `/openapi.json` serves this document, so the two modules depend on each
//! other. No other modules of this crate have a circular dependency.

use std::{fmt::Write as _, sync::LazyLock};

use anyhow::Context as _;
use axum::http::{Method, StatusCode};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, Content, ContentBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, PathItem,
        PathsBuilder, Ref, Required, ResponseBuilder,
        path::{OperationBuilder, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::{
    access::{Access, BodySchema, BodyShape, Endpoint, SESSION_COOKIE},
    error::Problem,
    routes,
};

/// The security scheme of programs: a token.
const TOKEN: &str = "token";
/// The security scheme of browsers: the cookie of a session. A request that changes something also needs a header.
const SESSION: &str = "session";
/// The media type of the files that jobs leave.
const FILE: &str = "application/octet-stream";

/// The endpoints of the API. Pages are not among them.
static ENDPOINTS: LazyLock<Vec<Endpoint>> =
    LazyLock::new(|| routes::all().table().into_iter().filter(|e| !e.about.is_empty()).collect());
static DOCUMENT: LazyLock<Result<String, serde_json::Error>> = LazyLock::new(|| document().to_pretty_json());

/// The OpenAPI document, as JSON.
pub fn openapi_document() -> anyhow::Result<&'static str> {
    let document: &'static Result<String, serde_json::Error> = &DOCUMENT;
    document.as_deref().context("writing the OpenAPI document")
}

/// A line for every endpoint: method, path, and the access that it demands.
pub fn routes_table() -> String {
    routes::all().table().into_iter().fold(String::new(), |mut table, e| {
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{} {} {}", e.method, e.path, e.access);
        table
    })
}

pub(crate) fn endpoints() -> &'static [Endpoint] {
    &ENDPOINTS
}

fn document() -> OpenApi {
    let mut paths = PathsBuilder::new();
    let mut components = ComponentsBuilder::new()
        .schema(Problem::name(), Problem::schema())
        .security_scheme(TOKEN, SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()))
        .security_scheme(SESSION, SecurityScheme::ApiKey(ApiKey::Cookie(session_cookie())));
    for endpoint in endpoints() {
        for body in [&endpoint.body, &endpoint.answer].into_iter().flatten() {
            components = components.schemas_from_iter(body.schemas.iter().cloned());
        }
        paths = paths.path(openapi_path(endpoint.path), path_item(endpoint));
    }
    let info = InfoBuilder::new()
        .title("GPUbnb")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Runs jobs on spare GPU machines. Amounts are whole micro-dollars (0.000001 $)."))
        .build();
    OpenApiBuilder::new().info(info).paths(paths.build()).components(Some(components.build())).build()
}

/// The cookie of a session.
fn session_cookie() -> ApiKeyValue {
    let about = "A signed-in browser. A request that changes something also needs the header `x-csrf-token`, with the \
        value of the field `csrf` in the market's forms.";
    ApiKeyValue::with_description(SESSION_COOKIE, about)
}

/// The path in the notation of OpenAPI, which has no wildcards: `{*path}` becomes `{path}`.
fn openapi_path(path: &str) -> String {
    path.replace("{*", "{")
}

fn reference(name: &str) -> Ref {
    Ref::from_schema_name(name.to_owned())
}

/// Describes a body: an object, a list, or a page of a list.
fn content(body: &BodySchema) -> Content {
    let list = || ArrayBuilder::new().items(reference(&body.name)).build();
    let content = ContentBuilder::new();
    match body.shape {
        BodyShape::Object => content.schema(Some(reference(&body.name))).build(),
        BodyShape::List => content.schema(Some(list())).build(),
        BodyShape::Page => {
            let next = ObjectBuilder::new()
                .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
                .description(Some("The cursor of the next page; null on the last page."));
            let page =
                ObjectBuilder::new().property("rows", list()).property("next", next).required("rows").required("next");
            content.schema(Some(page.build())).build()
        }
    }
}

/// Describes an endpoint.
fn path_item(endpoint: &Endpoint) -> PathItem {
    let mut answer = ResponseBuilder::new().description("Success");
    if let Some(body) = &endpoint.answer {
        answer = answer.content("application/json", content(body));
    }
    if let Some(media_type) = endpoint.media_type {
        answer = answer.content(media_type, Content::default());
    }
    let answer = answer.build();
    let problem = ResponseBuilder::new()
        .description("A problem with a name (RFC 9457)")
        .content("application/problem+json", ContentBuilder::new().schema(Some(reference(&Problem::name()))).build());
    let mut operation = OperationBuilder::new()
        .summary(Some(endpoint.about))
        .description(Some(demand(endpoint.access)))
        .tag(endpoint.path.split('/').nth(3).unwrap_or_default())
        .response("default", problem.build());
    for status in statuses(endpoint) {
        operation = operation.response(status.as_str(), answer.clone());
    }
    for parameter in &endpoint.query {
        operation = operation.parameter(parameter.clone());
    }
    for name in parameter_names(endpoint.path) {
        let text = ObjectBuilder::new().schema_type(Type::String).build();
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(text));
        operation = operation.parameter(parameter.build());
    }
    if let Some(body) = &endpoint.body {
        let body = RequestBodyBuilder::new().content("application/json", content(body));
        operation = operation.request_body(Some(body.required(Some(Required::True)).build()));
    }
    for scheme in schemes(endpoint.access) {
        operation = operation.security(SecurityRequirement::new(*scheme, Vec::<String>::new()));
    }
    let method = match endpoint.method {
        Method::POST => HttpMethod::Post,
        Method::PUT => HttpMethod::Put,
        Method::DELETE => HttpMethod::Delete,
        _ => HttpMethod::Get,
    };
    PathItem::new(method, operation.build())
}

/// The statuses of a success.
fn statuses(endpoint: &Endpoint) -> Vec<StatusCode> {
    let has_content = endpoint.answer.is_some() || endpoint.media_type.is_some();
    match endpoint.status {
        // A repeated request for a thing that exists already is answered with 200.
        Some(StatusCode::CREATED) => vec![StatusCode::CREATED, StatusCode::OK],
        Some(status) => vec![status],
        None if endpoint.media_type == Some(FILE) => vec![StatusCode::OK, StatusCode::PARTIAL_CONTENT],
        None if has_content => vec![StatusCode::OK],
        None => vec![StatusCode::NO_CONTENT],
    }
}

/// The security schemes, each of which gives access to an endpoint.
fn schemes(access: Access) -> &'static [&'static str] {
    match access {
        Access::Public | Access::ProofInRequest => &[],
        Access::Session => &[SESSION],
        Access::Authenticated | Access::Scope(_) | Access::Operator => &[TOKEN, SESSION],
    }
}

/// The access that an endpoint demands, as a sentence.
pub(crate) fn demand(access: Access) -> String {
    match access {
        Access::Public => "Open to all.".to_owned(),
        Access::ProofInRequest => "No token needed: the request itself carries the proof.".to_owned(),
        Access::Authenticated => "Needs a token.".to_owned(),
        Access::Session => "Needs a signed-in browser.".to_owned(),
        Access::Scope(scope) => format!("Needs a token with the scope `{scope}`."),
        Access::Operator => "Needs an operator's token with the scope `ops`.".to_owned(),
    }
}

/// The names of the parameters in a path.
fn parameter_names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| name.trim_start_matches('*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_in_the_document_has_a_schema() {
        let document: serde_json::Value = serde_json::from_str(openapi_document().unwrap()).unwrap();
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
        assert!(document["paths"].as_object().unwrap().len() > 30);
    }

    #[test]
    fn no_two_types_have_the_same_name() {
        let (mut schemas, mut doubles) = (std::collections::BTreeMap::new(), std::collections::BTreeSet::new());
        for endpoint in endpoints() {
            for (name, schema) in [&endpoint.body, &endpoint.answer].into_iter().flatten().flat_map(|b| &b.schemas) {
                let schema = serde_json::to_value(schema).unwrap();
                if *schemas.entry(name).or_insert_with(|| schema.clone()) != schema {
                    doubles.insert(name);
                }
            }
        }
        assert!(doubles.is_empty(), "{doubles:?}");
    }

    #[test]
    fn every_endpoint_of_the_api_is_documented() {
        for endpoint in routes::all().table() {
            let api = endpoint.path.starts_with("/api/");
            assert_eq!(api, !endpoint.about.is_empty(), "{} {}", endpoint.method, endpoint.path);
        }
    }
}
