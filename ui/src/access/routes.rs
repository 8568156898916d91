//! The routes, each with the access that it demands. A route cannot be added without stating its demand. The
//! documentation of the API and the tests of access are made from the table of all routes.

use axum::{
    Router,
    handler::Handler,
    http::Method,
    middleware,
    routing::{MethodFilter, MethodRouter, any, on},
};
use utoipa::{ToSchema, openapi::RefOr, openapi::schema::Schema};

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
    pub(crate) body: Option<Shape>,
    pub(crate) answer: Option<Shape>,
}

/// The schema of a body, and the schemas to which it refers.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) schemas: Vec<(String, RefOr<Schema>)>,
    pub(crate) many: Many,
}

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Many {
    /// One object.
    One,
    /// A list of all objects.
    List,
    /// A page of objects, with the cursor of the next page.
    Page,
}

impl Shape {
    fn of<T: ToSchema>() -> Self {
        let name = T::name().into_owned();
        let mut schemas = vec![(name.clone(), T::schema())];
        T::schemas(&mut schemas);
        Self { name, schemas, many: Many::One }
    }
}

/// Routes under construction.
#[derive(Default)]
pub(crate) struct Routes {
    handlers: Vec<MethodRouter<App>>,
    /// One line for each of the handlers.
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
        self.table.push(Endpoint { method, path, access, about: "", body: None, answer: None });
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

    /// Describes the endpoint that was added last.
    pub(crate) fn about(mut self, about: &'static str) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.about = about;
        }
        self
    }

    /// The body that the endpoint takes.
    pub(crate) fn takes<B: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.body = Some(Shape::of::<B>());
        }
        self
    }

    /// The body that the endpoint answers with.
    pub(crate) fn answers<A: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.answer = Some(Shape::of::<A>());
        }
        self
    }

    /// The endpoint answers with a list.
    pub(crate) fn lists<A: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.answer = Some(Shape { many: Many::List, ..Shape::of::<A>() });
        }
        self
    }

    /// The endpoint answers with a page of a list.
    pub(crate) fn pages<A: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.answer = Some(Shape { many: Many::Page, ..Shape::of::<A>() });
        }
        self
    }

    /// The table of all endpoints.
    pub(crate) fn table(self) -> Vec<Endpoint> {
        self.table
    }

    /// The router, with the gate before every handler. `fallback` answers where there is no endpoint.
    pub(crate) fn router<H: Handler<T, App>, T: 'static>(self, app: &App, fallback: H) -> Router<App> {
        let gate = |access| middleware::from_fn_with_state((app.clone(), access), gate::pass);
        let mut router = Router::new();
        for (endpoint, handler) in self.table.into_iter().zip(self.handlers) {
            router = router.route(endpoint.path, handler.layer(gate(endpoint.access)));
        }
        router.fallback_service(any(fallback).layer(gate(Access::Public)).with_state(app.clone()))
    }
}
