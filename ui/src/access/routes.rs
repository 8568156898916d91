//! The routes, each with what it demands. There is no way to add one without saying so, and the table of them all is
//! what documentation and tests are made from.

use axum::{
    Router,
    handler::Handler,
    http::Method,
    middleware,
    routing::{MethodFilter, on},
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
    /// What it is, for the documentation of the API; pages have none.
    pub(crate) about: &'static str,
    pub(crate) body: Option<Shape>,
    pub(crate) answer: Option<Shape>,
}

/// The schema of a body, and all that it refers to.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) schemas: Vec<(String, RefOr<Schema>)>,
    pub(crate) many: Many,
}

/// How many of a thing there are in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Many {
    /// One.
    One,
    /// All of them, as a list.
    List,
    /// A page of them, and where the next begins.
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
pub(crate) struct Routes {
    router: Router<App>,
    table: Vec<Endpoint>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self { router: Router::new(), table: Vec::new() }
    }

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
        let gate = middleware::from_fn(move |request, next| gate::pass(access, request, next));
        self.router = self.router.route(path, on(filter, handler).layer(gate));
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

    /// What the endpoint that was added last is.
    pub(crate) fn about(mut self, about: &'static str) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.about = about;
        }
        self
    }

    /// What it takes.
    pub(crate) fn takes<B: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.body = Some(Shape::of::<B>());
        }
        self
    }

    /// What it answers.
    pub(crate) fn answers<A: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.answer = Some(Shape::of::<A>());
        }
        self
    }

    /// It answers a list of these.
    pub(crate) fn lists<A: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.answer = Some(Shape { many: Many::List, ..Shape::of::<A>() });
        }
        self
    }

    /// It answers a page of these.
    pub(crate) fn pages<A: ToSchema>(mut self) -> Self {
        if let Some(last) = self.table.last_mut() {
            last.answer = Some(Shape { many: Many::Page, ..Shape::of::<A>() });
        }
        self
    }

    /// What answers where there is no endpoint: it knows who asks, as every endpoint does.
    pub(crate) fn fallback<H: Handler<T, App>, T: 'static>(mut self, handler: H) -> Self {
        let gate = middleware::from_fn(|request, next| gate::pass(Access::Public, request, next));
        self.router = self.router.fallback(handler.layer(gate));
        self
    }

    /// The router, and the table of all that is in it.
    pub(crate) fn finish(self) -> (Router<App>, Vec<Endpoint>) {
        (self.router, self.table)
    }
}
