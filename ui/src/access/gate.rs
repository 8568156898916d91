//! The gate before every endpoint. It finds out who sends a request, applies the rate limits, and denies access unless
//! the endpoint's demand is met.

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};

use subtle::ConstantTimeEq as _;

use super::{Access, SESSION_COOKIE, Scope, Viewer, cookie, peer::PeerAddress, streams::StreamReader};
use crate::{
    app::App,
    error::{ApiError, PageError, Problem},
    escape,
    extract::is_for_program,
};

/// The form field that carries a session's token against cross-site requests.
pub(crate) const CSRF_FIELD: &str = "csrf";
/// The header by which scripts of a page send the same token.
const CSRF_HEADER: &str = "x-csrf-token";
/// Largest form.
const MAX_FORM: usize = 256 * 1024;

/// The result of identifying the sender of a request.
struct Identity {
    viewer: Viewer,
    /// The scopes of the token. `None` for a browser, where the user may do everything.
    scopes: Option<Vec<Scope>>,
}

/// Passes a request on to its handler, or answers with the reason for the refusal.
///
/// The viewer is put into the extensions of the request, for the handler, and of the response, for the page that shows
/// an error.
pub(super) async fn pass(State((app, access)): State<(App, Access)>, mut request: Request, next: Next) -> Response {
    let program = is_for_program(request.uri().path());
    let back = (request.method() == Method::GET).then(|| sign_in_link(request.uri()));
    let entered = enter(&app, access, &mut request).await;
    let viewer = request.extensions().get::<Viewer>().copied().unwrap_or_default();
    let answered = match entered {
        Ok(reader) => app.streams.limit(reader, next.run(request).await),
        Err(problem) => Err(problem),
    };
    let mut response = match answered {
        Ok(response) => response,
        Err(problem) if program => ApiError(problem).into_response(),
        Err(problem) => match back.filter(|_| problem.status == StatusCode::UNAUTHORIZED.as_u16()) {
            Some(back) => Redirect::to(&back).into_response(),
            None => PageError(problem).into_response(),
        },
    };
    response.extensions_mut().insert(viewer);
    response
}

/// The address of the sign-in page that leads back to `uri`.
fn sign_in_link(uri: &Uri) -> String {
    let here = uri.path_and_query().map_or("/", axum::http::uri::PathAndQuery::as_str);
    format!("/sign-in?next={}", escape::url(here))
}

async fn enter(app: &App, access: Access, request: &mut Request) -> Result<StreamReader, Problem> {
    let peer = PeerAddress::of(request, app.behind_proxy);
    app.rate_limits.address(peer.0)?;
    request.extensions_mut().insert(peer);
    let identity = identify(app, request.headers()).await?;
    request.extensions_mut().insert(identity.viewer);
    if let Some(account) = identity.viewer.account {
        app.rate_limits.account(account)?;
    }
    allow(access, &identity)?;
    if identity.viewer.session.is_some() && !matches!(*request.method(), Method::GET | Method::HEAD) {
        same_session(&identity.viewer, request).await?;
    }
    Ok(StreamReader::of(identity.viewer.account, peer.0))
}

async fn identify(app: &App, headers: &HeaderMap) -> Result<Identity, Problem> {
    let now = app.now();
    let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    // Permits for files come in the same header. The handlers of transfers verify them.
    if let Some(token) = authorization.and_then(|a| a.strip_prefix("Bearer ")).filter(|t| t.starts_with("gpubnb_")) {
        let known = app.users.by_token(token, now).await?.ok_or_else(Problem::bad_token)?;
        let operator = known.operator && known.scopes.contains(&Scope::Ops);
        let viewer = Viewer { account: Some(known.account), operator, session: None, csrf: None };
        return Ok(Identity { viewer, scopes: Some(known.scopes) });
    }
    let session = match cookie(headers, SESSION_COOKIE) {
        Some(cookie) => app.sessions.open(cookie, now).await?,
        None => None,
    };
    let viewer = match session {
        None => Viewer::default(),
        Some(open) => Viewer {
            account: Some(open.account),
            operator: app.users.is_operator(open.account).await?,
            session: Some(open.id),
            csrf: Some(open.csrf),
        },
    };
    Ok(Identity { viewer, scopes: None })
}

/// Refuses a sender who does not meet the endpoint's demand.
fn allow(access: Access, identity: &Identity) -> Result<(), Problem> {
    let at_browser = identity.viewer.session.is_some();
    let known = identity.viewer.account.is_some();
    match access {
        Access::Public | Access::Proof => Ok(()),
        _ if !known => Err(Problem::sign_in_needed()),
        Access::Known => Ok(()),
        Access::Person if at_browser => Ok(()),
        Access::Person => Err(Problem::forbidden("This is for a person at a browser; no token can do it.")),
        Access::Scope(scope) => match &identity.scopes {
            None => Ok(()),
            Some(scopes) if scopes.contains(&scope) => Ok(()),
            Some(_) => Err(Problem::forbidden(format!("This token has not the scope `{scope}`: make one that has."))),
        },
        Access::Operator if identity.viewer.operator => Ok(()),
        // Nobody else is to learn that there is such a page.
        Access::Operator => Err(Problem::not_found("page")),
    }
}

/// Refuses a request that changes something unless it carries its session's token. Another site can make a browser send
/// its cookie, but does not know the token that our forms carry.
async fn same_session(viewer: &Viewer, request: &mut Request) -> Result<(), Problem> {
    let expected = viewer.csrf();
    let foreign = || {
        Problem::forbidden("The form belongs to another session: open the page again, and send the form from there.")
    };
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

/// Compares a token with the expected one in constant time. An empty token equals nothing.
fn same(sent: &[u8], expected: &[u8]) -> bool {
    !expected.is_empty() && bool::from(sent.ct_eq(expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{AccountId, CommandId};

    fn identity(session: bool, operator: bool, scopes: Option<Vec<Scope>>) -> Identity {
        let session = session.then(CommandId::generate);
        let viewer = Viewer { account: Some(AccountId::generate()), operator, session, csrf: None };
        Identity { viewer, scopes }
    }

    #[test]
    fn each_kind_of_access_lets_in_who_it_says_and_nobody_else() {
        let stranger = Identity { viewer: Viewer::default(), scopes: None };
        let person = identity(true, false, None);
        let operator = identity(true, true, None);
        let reader = identity(false, false, Some(vec![Scope::JobsRead]));
        let status = |access, identity: &Identity| allow(access, identity).err().map_or(200, |p| p.status);
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
