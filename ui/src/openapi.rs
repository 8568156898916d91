//! The API as an OpenAPI document. It is made from the table of routes, so every endpoint that is served is documented.
//!
//! The page that shows the document is itself a route, so this module and `routes.rs` name each other. It is the one circle
//! of the crate, and it stays: handing the table in as state would only hide it.

use std::{fmt::Write as _, sync::LazyLock};

use anyhow::Context as _;
use axum::http::Method;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, Content, ContentBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, PathItem,
        PathsBuilder, Ref, Required, ResponseBuilder,
        path::{OperationBuilder, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        schema::{ArrayBuilder, ObjectBuilder, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::{
    access::{Access, Endpoint, Many, Shape},
    error::Problem,
    routes,
};

const TOKEN: &str = "token";

/// The endpoints of the API. Pages are not among them.
static ENDPOINTS: LazyLock<Vec<Endpoint>> =
    LazyLock::new(|| routes::all().table().into_iter().filter(|e| !e.about.is_empty()).collect());
static DOCUMENT: LazyLock<Result<String, serde_json::Error>> = LazyLock::new(|| document().to_pretty_json());

/// The document, as JSON.
pub fn openapi_document() -> anyhow::Result<&'static str> {
    let document: &'static Result<String, serde_json::Error> = &DOCUMENT;
    document.as_deref().context("writing the OpenAPI document")
}

/// A line for every endpoint: method, path, and the access that it demands.
pub fn routes_table() -> String {
    routes::all().table().into_iter().fold(String::new(), |mut table, e| {
        // Writing to a string does not fail.
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
        .security_scheme(TOKEN, SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()));
    for endpoint in endpoints() {
        for shape in [&endpoint.body, &endpoint.answer].into_iter().flatten() {
            components = components.schemas_from_iter(shape.schemas.iter().cloned());
        }
        paths = paths.path(template(endpoint.path), item(endpoint));
    }
    let info = InfoBuilder::new()
        .title("GPUbnb")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Runs jobs on spare GPU machines. Amounts are whole micro-dollars (0.000001 $)."))
        .build();
    OpenApiBuilder::new().info(info).paths(paths.build()).components(Some(components.build())).build()
}

/// OpenAPI has no notation for "the rest of the path", such as `{*path}`.
fn template(path: &str) -> String {
    path.replace("{*", "{")
}

fn reference(name: &str) -> Ref {
    Ref::from_schema_name(name.to_owned())
}

/// A body: one object, a list, or a page of a list.
fn content(shape: &Shape) -> Content {
    let list = || ArrayBuilder::new().items(reference(&shape.name)).build();
    let content = ContentBuilder::new();
    match shape.many {
        Many::One => content.schema(Some(reference(&shape.name))).build(),
        Many::List => content.schema(Some(list())).build(),
        Many::Page => {
            let next = ObjectBuilder::new().schema_type(Type::String).description(Some("Pass it on as `cursor`."));
            let page = ObjectBuilder::new().property("rows", list()).property("next", next).required("rows");
            content.schema(Some(page.build())).build()
        }
    }
}

fn item(endpoint: &Endpoint) -> PathItem {
    let mut answer = ResponseBuilder::new().description("Success");
    if let Some(shape) = &endpoint.answer {
        answer = answer.content("application/json", content(shape));
    }
    let problem = ResponseBuilder::new()
        .description("A problem with a name (RFC 9457)")
        .content("application/problem+json", ContentBuilder::new().schema(Some(reference(&Problem::name()))).build());
    let mut operation = OperationBuilder::new()
        .summary(Some(endpoint.about))
        .description(Some(demand(endpoint.access)))
        .tag(endpoint.path.split('/').nth(3).unwrap_or_default())
        .response(if endpoint.answer.is_some() { "200" } else { "204" }, answer.build())
        .response("default", problem.build());
    for name in names(endpoint.path) {
        let text = ObjectBuilder::new().schema_type(Type::String).build();
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(text));
        operation = operation.parameter(parameter.build());
    }
    if let Some(shape) = &endpoint.body {
        let body = RequestBodyBuilder::new().content("application/json", content(shape));
        operation = operation.request_body(Some(body.required(Some(Required::True)).build()));
    }
    if !matches!(endpoint.access, Access::Public | Access::Proof) {
        operation = operation.security(SecurityRequirement::new(TOKEN, Vec::<String>::new()));
    }
    let method = match endpoint.method {
        Method::POST => HttpMethod::Post,
        Method::PUT => HttpMethod::Put,
        Method::DELETE => HttpMethod::Delete,
        _ => HttpMethod::Get,
    };
    PathItem::new(method, operation.build())
}

/// The demand of an endpoint, as a sentence.
pub(crate) fn demand(access: Access) -> String {
    match access {
        Access::Public => "Open to all.".to_owned(),
        Access::Proof => "No token needed: the request itself carries the proof.".to_owned(),
        Access::Known => "Needs a token.".to_owned(),
        Access::Person => "Needs a signed-in browser.".to_owned(),
        Access::Scope(scope) => format!("Needs a token with the scope `{scope}`."),
        Access::Operator => "Needs an operator's token with the scope `ops`.".to_owned(),
    }
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| name.trim_start_matches('*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        let document: serde_json::Value = serde_json::from_str(openapi_document().unwrap()).unwrap();
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
        assert!(document["paths"].as_object().unwrap().len() > 30);
    }

    #[test]
    fn every_endpoint_of_the_api_is_documented() {
        for endpoint in routes::all().table() {
            let api = endpoint.path.starts_with("/api/");
            assert_eq!(api, !endpoint.about.is_empty(), "{} {}", endpoint.method, endpoint.path);
        }
    }
}
