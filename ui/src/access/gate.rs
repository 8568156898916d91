//! The gate before every endpoint: who asks, how often, and whether they may. Denied by default.

use std::net::{IpAddr, SocketAddr};

use axum::{
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};

use super::{Access, SESSION_COOKIE, Scope, Viewer, cookie, streams::Reader, viewer::looking};
use crate::{
    app::App,
    error::{ApiError, PageError, Problem},
    extract::is_for_program,
};

/// Name of the form field that carries a session's token against cross-site requests.
pub(crate) const CSRF_FIELD: &str = "csrf";
/// The same for programs in the page.
const CSRF_HEADER: &str = "x-csrf-token";
/// Largest form.
const MAX_FORM: usize = 256 * 1024;

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerAddress(pub(super) IpAddr);

/// How somebody came in.
struct Entry {
    viewer: Viewer,
    /// What the token allows; `None` at a browser, where the person may do all.
    scopes: Option<Vec<Scope>>,
}

/// Lets a request in, or says why not.
pub(super) async fn pass(access: Access, mut request: Request, next: Next) -> Response {
    // Laid around all routes where the server is put together.
    let Some(app) = request.extensions().get::<App>().cloned() else {
        return ApiError(Problem::internal(&"the gate has nobody to ask")).into_response();
    };
    let program = is_for_program(request.uri().path());
    let back = (request.method() == Method::GET).then(|| sign_in_link(request.uri()));
    let entered = enter(&app, access, &mut request).await;
    let viewer = request.extensions().get::<Viewer>().copied().unwrap_or_default();
    looking(viewer, async {
        let answered = match entered {
            Ok(reader) => app.streams.bound(reader, next.run(request).await),
            Err(problem) => Err(problem),
        };
        match answered {
            Ok(response) => response,
            Err(problem) if program => ApiError(problem).into_response(),
            Err(problem) => match back.filter(|_| problem.status == StatusCode::UNAUTHORIZED.as_u16()) {
                Some(back) => Redirect::to(&back).into_response(),
                None => PageError(problem).into_response(),
            },
        }
    })
    .await
}

/// The sign-in page that comes back here.
fn sign_in_link(uri: &Uri) -> String {
    let here = uri.path_and_query().map_or("/", axum::http::uri::PathAndQuery::as_str);
    format!("/sign-in?next={}", crate::transfer::escape(here))
}

async fn enter(app: &App, access: Access, request: &mut Request) -> Result<Reader, Problem> {
    let address = address_of(app, request);
    app.paces.address(address)?;
    request.extensions_mut().insert(PeerAddress(address));
    let entry = identify(app, request.headers()).await?;
    request.extensions_mut().insert(entry.viewer);
    if let Some(account) = entry.viewer.account {
        app.paces.account(account)?;
    }
    allow(access, &entry)?;
    if entry.viewer.session.is_some() && !matches!(*request.method(), Method::GET | Method::HEAD) {
        same_session(&entry.viewer, request).await?;
    }
    Ok(Reader::of(entry.viewer.account, address))
}

/// The address a request comes from: behind a proxy of ours, the last that it names.
fn address_of(app: &App, request: &Request) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map_or([0; 4].into(), |info| info.0.ip());
    let forwarded = || {
        let header = request.headers().get_all("x-forwarded-for").iter().next_back()?;
        header.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
    };
    if app.behind_proxy { forwarded().unwrap_or(peer) } else { peer }
}

async fn identify(app: &App, headers: &HeaderMap) -> Result<Entry, Problem> {
    let now = app.now();
    let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    // Permits for files come the same way; they are looked at where they are used.
    if let Some(token) = authorization.and_then(|a| a.strip_prefix("Bearer ")).filter(|t| t.starts_with("gpubnb_")) {
        let known = app.people.by_token(token, now).await?.ok_or_else(Problem::bad_token)?;
        let operator = known.operator && known.scopes.as_ref().is_none_or(|s| s.contains(&Scope::Ops));
        let viewer = Viewer { account: Some(known.account), operator, session: None, csrf: None };
        return Ok(Entry { viewer, scopes: known.scopes });
    }
    let session = match cookie(headers, SESSION_COOKIE) {
        Some(cookie) => app.sessions.open(cookie, now).await?,
        None => None,
    };
    let viewer = match session {
        None => Viewer::default(),
        Some(open) => Viewer {
            account: Some(open.account),
            operator: app.people.is_operator(open.account).await?,
            session: Some(open.id),
            csrf: Some(open.csrf),
        },
    };
    Ok(Entry { viewer, scopes: None })
}

/// Whether somebody who came in like this may go on.
fn allow(access: Access, entry: &Entry) -> Result<(), Problem> {
    let at_browser = entry.viewer.session.is_some();
    let known = entry.viewer.account.is_some();
    match access {
        Access::Public | Access::Proof => Ok(()),
        _ if !known => Err(Problem::sign_in_needed()),
        Access::Known => Ok(()),
        Access::Person if at_browser => Ok(()),
        Access::Person => Err(Problem::forbidden("This is for a person at a browser; no token can do it.")),
        Access::Scope(scope) => match &entry.scopes {
            None => Ok(()),
            Some(scopes) if scopes.contains(&scope) => Ok(()),
            Some(_) => Err(Problem::forbidden(format!("This token has not the scope `{scope}`: make one that has."))),
        },
        Access::Operator if entry.viewer.operator => Ok(()),
        // That there is such a page is not for others to know.
        Access::Operator => Err(Problem::not_found("page")),
    }
}

/// Whether a request that changes something comes from a page of this very session. Another site can make a browser
/// send its cookie, but it does not know what our forms carry.
async fn same_session(viewer: &Viewer, request: &mut Request) -> Result<(), Problem> {
    let expected = viewer.csrf();
    let foreign = || Problem::forbidden("The form is of another session: open the page again, and send it anew.");
    if let Some(sent) = request.headers().get(CSRF_HEADER) {
        return if same(sent.as_bytes(), expected.as_bytes()) { Ok(()) } else { Err(foreign()) };
    }
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return Err(foreign());
    }
    let body = std::mem::replace(request.body_mut(), Body::empty());
    let bytes = to_bytes(body, MAX_FORM).await.map_err(|_| Problem::too_large())?;
    let fields: Vec<(String, String)> = serde_urlencoded::from_bytes(&bytes).map_err(|_| foreign())?;
    *request.body_mut() = Body::from(bytes);
    let sent = fields.iter().find(|(name, _)| name == CSRF_FIELD).map(|(_, value)| value.as_bytes());
    if sent.is_some_and(|sent| same(sent, expected.as_bytes())) { Ok(()) } else { Err(foreign()) }
}

/// Compares in the same time whatever differs.
fn same(a: &[u8], b: &[u8]) -> bool {
    !b.is_empty() && a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{AccountId, CommandId};

    fn entry(session: bool, operator: bool, scopes: Option<Vec<Scope>>) -> Entry {
        let session = session.then(CommandId::generate);
        let viewer = Viewer { account: Some(AccountId::generate()), operator, session, csrf: None };
        Entry { viewer, scopes }
    }

    #[test]
    fn each_kind_of_access_lets_in_who_it_says_and_nobody_else() {
        let stranger = Entry { viewer: Viewer::default(), scopes: None };
        let person = entry(true, false, None);
        let operator = entry(true, true, None);
        let reader = entry(false, false, Some(vec![Scope::JobsRead]));
        let status = |access, entry: &Entry| allow(access, entry).err().map_or(200, |p| p.status);
        for (access, expected) in [
            (Access::Public, [200, 200, 200, 200]),
            (Access::Proof, [200, 200, 200, 200]),
            (Access::Known, [401, 200, 200, 200]),
            (Access::Person, [401, 200, 200, 403]),
            (Access::Scope(Scope::JobsRead), [401, 200, 200, 200]),
            (Access::Scope(Scope::JobsWrite), [401, 200, 200, 403]),
            (Access::Operator, [401, 404, 200, 404]),
        ] {
            let got = [&stranger, &person, &operator, &reader].map(|e| status(access, e));
            assert_eq!(got, expected, "{access}");
        }
    }

    #[test]
    fn nothing_is_the_same_as_an_empty_token() {
        assert!(!same(b"", b"") && same(b"ab", b"ab") && !same(b"ab", b"ac") && !same(b"ab", b"abc"));
    }
}
