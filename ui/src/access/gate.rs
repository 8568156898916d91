//! The gate: the middleware before every endpoint. The gate identifies the sender of a request, applies the rate
//! limits, and refuses the request unless the sender has the access that the endpoint demands ([`Access`]).

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
    extract::is_api_path,
};

/// The form field that carries the session's CSRF token, which protects against cross-site request forgery.
pub(crate) const CSRF_FIELD: &str = "csrf";
/// The header in which the scripts of a page send the CSRF token.
const CSRF_HEADER: &str = "x-csrf-token";
/// The maximum size of a form, in bytes.
const MAX_FORM_BYTES: usize = 256 * 1024;

/// The sender of a request.
struct Identity {
    viewer: Viewer,
    /// The scopes of the sender's token. `None` for a browser: a signed-in user needs no scopes.
    scopes: Option<Vec<Scope>>,
}

/// Passes a request to its handler, or answers with the reason for the refusal.
///
/// The handler finds the [`Viewer`] in the extensions of the request. The error page finds the viewer in the extensions
/// of the response.
pub(super) async fn pass(State((app, access)): State<(App, Access)>, mut request: Request, next: Next) -> Response {
    let is_program = is_api_path(request.uri().path());
    let sign_in = (request.method() == Method::GET).then(|| sign_in_link(request.uri()));
    let admitted = admit(&app, access, &mut request).await;
    let viewer = request.extensions().get::<Viewer>().copied().unwrap_or_default();
    let result = match admitted {
        Ok(reader) => app.streams.limit(reader, next.run(request).await),
        Err(problem) => Err(problem),
    };
    let mut response = match result {
        Ok(response) => response,
        Err(problem) if is_program => ApiError(problem).into_response(),
        Err(problem) => match sign_in.filter(|_| problem.status == StatusCode::UNAUTHORIZED.as_u16()) {
            Some(sign_in) => Redirect::to(&sign_in).into_response(),
            None => PageError(problem).into_response(),
        },
    };
    response.extensions_mut().insert(viewer);
    response
}

/// The address of the sign-in page. After signing in, the browser returns to `uri`.
fn sign_in_link(uri: &Uri) -> String {
    let here = uri.path_and_query().map_or("/", axum::http::uri::PathAndQuery::as_str);
    format!("/sign-in?next={}", escape::url(here))
}

/// Identifies the sender and checks the rate limits, the access and the CSRF token. If the response is a stream of
/// events, the stream is counted for the returned reader.
async fn admit(app: &App, access: Access, request: &mut Request) -> Result<StreamReader, Problem> {
    let peer = PeerAddress::of(request, app.behind_proxy);
    app.rate_limits.check_request_from(peer.0)?;
    request.extensions_mut().insert(peer);
    let identity = identify(app, request.headers()).await?;
    request.extensions_mut().insert(identity.viewer);
    if let Some(account) = identity.viewer.account {
        app.rate_limits.check_request_of(account)?;
    }
    check_access(access, &identity)?;
    if identity.viewer.session.is_some() && !matches!(*request.method(), Method::GET | Method::HEAD) {
        check_csrf_token(&identity.viewer, request).await?;
    }
    Ok(StreamReader::of(identity.viewer.account, peer.0))
}

async fn identify(app: &App, headers: &HeaderMap) -> Result<Identity, Problem> {
    let now = app.now();
    let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    // Permits for files are sent in the same header. The handlers in `transfer` verify these permits.
    if let Some(token) = authorization.and_then(|a| a.strip_prefix("Bearer ")).filter(|t| t.starts_with("gpubnb_")) {
        let user = app.users.by_token(token, now).await?.ok_or_else(Problem::bad_token)?;
        let is_operator = user.is_operator && user.scopes.contains(&Scope::Ops);
        let viewer = Viewer { account: Some(user.account), is_operator, session: None, csrf: None };
        return Ok(Identity { viewer, scopes: Some(user.scopes) });
    }
    let session = match cookie(headers, SESSION_COOKIE) {
        Some(cookie) => app.sessions.by_cookie(cookie, now).await?,
        None => None,
    };
    let viewer = match session {
        None => Viewer::default(),
        Some(session) => Viewer {
            account: Some(session.account),
            is_operator: app.users.is_operator(session.account).await?,
            session: Some(session.id),
            csrf: Some(session.csrf),
        },
    };
    Ok(Identity { viewer, scopes: None })
}

/// Refuses a sender who does not have the access that the endpoint demands.
fn check_access(access: Access, identity: &Identity) -> Result<(), Problem> {
    let has_session = identity.viewer.session.is_some();
    let has_account = identity.viewer.account.is_some();
    match access {
        Access::Public | Access::ProofInRequest => Ok(()),
        _ if !has_account => Err(Problem::sign_in_needed()),
        Access::Authenticated => Ok(()),
        Access::Session if has_session => Ok(()),
        Access::Session => Err(Problem::forbidden("This needs a signed-in browser: no token can do it.")),
        Access::Scope(scope) => match &identity.scopes {
            None => Ok(()),
            Some(scopes) if scopes.contains(&scope) => Ok(()),
            Some(_) => Err(Problem::forbidden(format!(
                "This token does not have the scope `{scope}`: create a token that has it, or run `gpubnb login` again."
            ))),
        },
        Access::Operator if identity.viewer.is_operator => Ok(()),
        // Only operators may learn that the page exists.
        Access::Operator => Err(Problem::not_found("page")),
    }
}

/// Checks the CSRF token of a request. Another site can make a browser send the session cookie, but does not know the
/// token that our forms carry.
async fn check_csrf_token(viewer: &Viewer, request: &mut Request) -> Result<(), Problem> {
    let expected = viewer.csrf();
    let refusal = || {
        Problem::forbidden("The form belongs to another session: open the page again, and send the form from there.")
    };
    if let Some(sent) = request.headers().get(CSRF_HEADER) {
        return if equal_tokens(sent.as_bytes(), expected.as_bytes()) { Ok(()) } else { Err(refusal()) };
    }
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return Err(refusal());
    }
    let body = std::mem::replace(request.body_mut(), Body::empty());
    let bytes = to_bytes(body, MAX_FORM_BYTES).await.map_err(|_| Problem::too_large())?;
    let fields: Vec<(String, String)> = serde_urlencoded::from_bytes(&bytes).map_err(|_| refusal())?;
    *request.body_mut() = Body::from(bytes);
    let sent = fields.iter().find(|(name, _)| name == CSRF_FIELD).map(|(_, value)| value.as_bytes());
    if sent.is_some_and(|sent| equal_tokens(sent, expected.as_bytes())) { Ok(()) } else { Err(refusal()) }
}

/// Compares a token with the expected one in constant time. An empty token equals nothing.
fn equal_tokens(sent: &[u8], expected: &[u8]) -> bool {
    !expected.is_empty() && bool::from(sent.ct_eq(expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{AccountId, CommandId};

    fn identity(has_session: bool, is_operator: bool, scopes: Option<Vec<Scope>>) -> Identity {
        let session = has_session.then(CommandId::generate);
        let viewer = Viewer { account: Some(AccountId::generate()), is_operator, session, csrf: None };
        Identity { viewer, scopes }
    }

    #[test]
    fn each_kind_of_access_admits_exactly_the_senders_that_it_names() {
        let stranger = Identity { viewer: Viewer::default(), scopes: None };
        let person = identity(true, false, None);
        let operator = identity(true, true, None);
        let token = identity(false, false, Some(vec![Scope::JobsRead]));
        let status = |access, identity: &Identity| check_access(access, identity).err().map_or(200, |p| p.status);
        for (access, expected) in [
            (Access::Public, [200, 200, 200, 200]),
            (Access::ProofInRequest, [200, 200, 200, 200]),
            (Access::Authenticated, [401, 200, 200, 200]),
            (Access::Session, [401, 200, 200, 403]),
            (Access::Scope(Scope::JobsRead), [401, 200, 200, 200]),
            (Access::Scope(Scope::JobsWrite), [401, 200, 200, 403]),
            (Access::Operator, [401, 404, 200, 404]),
        ] {
            let got = [&stranger, &person, &operator, &token].map(|sender| status(access, sender));
            assert_eq!(got, expected, "{access}");
        }
    }

    #[test]
    fn an_empty_token_equals_no_token() {
        assert!(
            !equal_tokens(b"", b"")
                && equal_tokens(b"ab", b"ab")
                && !equal_tokens(b"ab", b"ac")
                && !equal_tokens(b"ab", b"abc")
        );
    }
}
