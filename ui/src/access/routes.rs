//! Builds the router and the table of all endpoints. Each endpoint states the access that it demands, for example
//! `.get("/jobs", Access::Session, page::jobs::page)`.
//!
//! The documentation of the API is made from the table. A test compares the table with `tests/tests/api/access.table`.

use axum::{
    Router,
    handler::Handler,
    http::{Method, StatusCode},
    middleware,
    routing::{MethodFilter, MethodRouter, any, on},
};
use utoipa::{
    IntoParams, ToSchema,
    openapi::{
        RefOr,
        path::{Parameter, ParameterIn},
        schema::Schema,
    },
};

use super::{Access, gate};
use crate::app::App;

/// One endpoint.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    /// One sentence for the documentation of the API; empty for a page.
    pub(crate) about: &'static str,
    /// The body of the request.
    pub(crate) body: Option<BodySchema>,
    /// The body of the answer.
    pub(crate) answer: Option<BodySchema>,
    /// The media type of the answer, if the answer is no JSON.
    pub(crate) media_type: Option<&'static str>,
    /// The status of a success. `None`: 200 if the answer has a body, otherwise 204.
    pub(crate) status: Option<StatusCode>,
    /// The parameters in the query string of the URL.
    pub(crate) query: Vec<Parameter>,
}

/// The schema of a body.
#[derive(Clone)]
pub(crate) struct BodySchema {
    pub(crate) name: String,
    /// The schema called `name`, and all schemas to which it refers, by their names.
    pub(crate) schemas: Vec<(String, RefOr<Schema>)>,
    pub(crate) shape: BodyShape,
}

/// The shape of a body: one object, a list, or a page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyShape {
    /// One object.
    Object,
    /// An array of all objects.
    List,
    /// `rows`, an array of some of the objects, and `next`, the cursor of the next page.
    Page,
}

impl BodySchema {
    fn of<T: ToSchema>() -> Self {
        let name = T::name().into_owned();
        let mut schemas = vec![(name.clone(), T::schema())];
        T::schemas(&mut schemas);
        Self { name, schemas, shape: BodyShape::Object }
    }
}

/// A builder of the router.
#[derive(Default)]
pub(crate) struct Routes {
    handlers: Vec<MethodRouter<App>>,
    /// One endpoint for each handler, in the same order.
    table: Vec<Endpoint>,
}

impl Routes {
    fn add<H, T>(mut self, method: Method, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        let filter = match method {
            Method::POST => MethodFilter::POST,
            Method::PUT => MethodFilter::PUT,
            Method::DELETE => MethodFilter::DELETE,
            _ => MethodFilter::GET,
        };
        self.handlers.push(on(filter, handler));
        self.table.push(Endpoint {
            method,
            path,
            access,
            about: "",
            body: None,
            answer: None,
            media_type: None,
            status: None,
            query: Vec::new(),
        });
        self
    }

    pub(crate) fn get<H: Handler<T, App>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add(Method::GET, path, access, handler)
    }

    pub(crate) fn post<H: Handler<T, App>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add(Method::POST, path, access, handler)
    }

    pub(crate) fn put<H: Handler<T, App>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add(Method::PUT, path, access, handler)
    }

    pub(crate) fn delete<H: Handler<T, App>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add(Method::DELETE, path, access, handler)
    }

    /// Sets the description of the endpoint that was added last.
    pub(crate) fn about(mut self, about: &'static str) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.about = about;
        }
        self
    }

    /// States the body that the endpoint takes.
    pub(crate) fn takes<B: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.body = Some(BodySchema::of::<B>());
        }
        self
    }

    /// States the body with which the endpoint answers.
    pub(crate) fn answers<A: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.answer = Some(BodySchema::of::<A>());
        }
        self
    }

    /// States that the endpoint answers with a list.
    pub(crate) fn lists<A: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.answer = Some(BodySchema { shape: BodyShape::List, ..BodySchema::of::<A>() });
        }
        self
    }

    /// States that the endpoint answers with a page of a list.
    pub(crate) fn pages<A: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.answer = Some(BodySchema { shape: BodyShape::Page, ..BodySchema::of::<A>() });
        }
        self
    }

    /// States that the endpoint answers with a stream of this media type, and not with JSON.
    pub(crate) fn streams(mut self, media_type: &'static str) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.media_type = Some(media_type);
        }
        self
    }

    /// States the status of a success. An endpoint that states none answers 200 with a body, or 204 without a body.
    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.status = Some(status);
        }
        self
    }

    /// States the parameters in the query string of the URL.
    pub(crate) fn query<Q: IntoParams>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.query.extend(Q::into_params(|| Some(ParameterIn::Query)));
        }
        self
    }

    /// All endpoints.
    pub(crate) fn table(self) -> Vec<Endpoint> {
        self.table
    }

    /// Builds the router, with the gate before every handler. `fallback` answers requests for unknown paths.
    pub(crate) fn router<H: Handler<T, App>, T: 'static>(self, app: &App, fallback: H) -> Router<App> {
        let gate = |access| middleware::from_fn_with_state((app.clone(), access), gate::pass);
        let mut router = Router::new();
        for (endpoint, handler) in self.table.into_iter().zip(self.handlers) {
            router = router.route(endpoint.path, handler.layer(gate(endpoint.access)));
        }
        router.fallback_service(any(fallback).layer(gate(Access::Public)).with_state(app.clone()))
    }
}
