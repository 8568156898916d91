//! Signing up, checking a password, and the roles of a user. Pages and API both use these functions.

use gpubnb_events::{
    AccountId, Actor, CommandId, Millis, Seq,
    command::{Done, OpenAccount},
    notification::LetterAbout,
};
use gpubnb_runtime::permit::{Permit, Purpose};
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use crate::{
    access::{Client, KNOWN_COOKIE, LinkKind, SignInProof, SignUp, SignedIn, Source, login_of, network_of},
    app::App,
    error::Problem,
    state::notifications::DAY,
};

/// Creates a user and opens an account. If the e-mail address is taken, nothing happens, and the result is the same.
pub(crate) async fn sign_up(app: &App, new: &SignUp) -> Result<(), Problem> {
    let opened = app.users.sign_up(new, app.now()).await?;
    if let Some(account) = opened {
        open_account(app, account).await?;
    }
    // In the background, so that the answer takes as long for a new address as for a known one.
    let (app, email) = (app.clone(), new.email.trim().to_owned());
    tokio::spawn(async move {
        let sent = match opened {
            Some(account) => send_confirmation(&app, account).await.map(|_| ()),
            None => tell_owner(&app, email).await,
        };
        if let Err(problem) = sent {
            warn!(problem = problem.detail, "an e-mail about a new account is not sent");
        }
    });
    Ok(())
}

/// Sends a link that confirms the e-mail address of an account. False if the address got several e-mails already, or if
/// this market sends none.
pub(crate) async fn send_confirmation(app: &App, account: AccountId) -> Result<bool, Problem> {
    let (now, to) = (app.now(), app.users.email(account).await?);
    if app.notifications.mail_service(now).await?.is_none() {
        return Ok(false);
    }
    let Some(secret) = app.links.make(LinkKind::Confirm, account, &to, now).await? else { return Ok(false) };
    let about = LetterAbout::ConfirmAddress { secret };
    app.notifications.send_letter(to, about, now, LinkKind::Confirm.life()).await?;
    Ok(true)
}

/// Tells the owner of an address that somebody signed up with it once more. Only an address that was confirmed gets
/// this e-mail: others may be foreign.
async fn tell_owner(app: &App, email: String) -> Result<(), Problem> {
    let now = app.now();
    let Some(account) = app.users.account_of(&email).await? else { return Ok(()) };
    let Some(address) = app.notifications.settings(account).await?.address else { return Ok(()) };
    if app.links.may_mail(&address, now).await? {
        app.notifications.send_letter(address, LetterAbout::AddressHasAccount, now, DAY).await?;
    }
    Ok(())
}

/// Opens the account of a user. Opening it again changes nothing.
async fn open_account(app: &App, account: AccountId) -> Result<(), Problem> {
    app.command::<Done>("account", "open", Actor::Account(account), &OpenAccount {}).await?;
    Ok(())
}

/// The time for which a browser is known after a person has signed in there.
const KNOWN_FOR: Millis = Millis(180 * 24 * 3_600_000);

/// The source of a guess of this person's password.
fn source_of(app: &App, client: &Client, login: &str) -> Source {
    let purpose = client.known.as_deref().and_then(|permit| app.permit_key.verify(permit, app.now()).ok());
    match purpose {
        Some(Purpose::KnownBrowser { login: known, browser }) if known == login => Source::KnownBrowser(browser),
        _ => Source::Network(network_of(client.address)),
    }
}

/// The cookie by which this browser is known when the person signs in again.
pub(crate) fn known_browser_cookie(app: &App, email: &str) -> Option<String> {
    let browser = CommandId::generate().to_string();
    let purpose = Purpose::KnownBrowser { login: login_of(email), browser };
    let permit = app.permit_key.sign(&Permit { purpose, expires: app.now().plus(KNOWN_FOR) })?;
    let seconds = KNOWN_FOR.0 / 1_000;
    Some(format!("{KNOWN_COOKIE}={permit}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={seconds}"))
}

/// The account with this e-mail address and password. Limits of wrong attempts, by client and by person, slow down
/// guessing.
pub(crate) async fn check_password(
    app: &App,
    client: &Client,
    email: &str,
    password: &str,
) -> Result<AccountId, Problem> {
    let login = login_of(email);
    let source = source_of(app, client, &login);
    // A known browser has its own allowances, because strangers may share its network.
    let is_known = matches!(source, Source::KnownBrowser(_));
    app.rate_limits.check_attempt(&login, &source)?;
    if !is_known {
        app.rate_limits.count_guess(client.address)?;
    }
    let take_back_guess = || {
        if !is_known {
            app.rate_limits.take_back_guess(client.address);
        }
    };
    // An attempt that is refused here tests no password, so the guess of the network is taken back.
    let guess = app.rate_limits.count_password(&login, &source).inspect_err(|_| take_back_guess())?;
    let signed_in = app.users.sign_in(email, password).await;
    let is_wrong = signed_in.as_ref().is_err_and(|problem| problem.status == 401);
    if !is_wrong {
        app.rate_limits.take_back_password(&guess);
        take_back_guess();
    }
    let account = signed_in?;
    // Signing up has two steps. The process may have stopped between them, so the second step is repeated here.
    open_account(app, account).await?;
    app.sign_ins.record(account, client, SignInProof::Password, app.now()).await;
    Ok(account)
}

/// Does work for which a signed-in person enters the current password. The work fails with a problem of the field `old`
/// if the password is wrong. Only such a failure counts as a guess of the person's password.
pub(crate) async fn count_own_password<T>(
    app: &App,
    account: AccountId,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let guess = app.rate_limits.count_password(&account.to_string(), &Source::Session)?;
    let done = work.await;
    if !done.as_ref().is_err_and(|problem| problem.field.as_deref() == Some("old")) {
        app.rate_limits.take_back_password(&guess);
    }
    done
}

/// The role of a user on the market.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// May submit jobs. Every user has this role.
    Consumer,
    /// Owns a machine on the market.
    Provider,
    /// Runs the platform.
    Operator,
}

impl Role {
    /// The role as one word.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Provider => "provider",
            Self::Operator => "operator",
        }
    }
}

/// The roles of a user.
pub(crate) async fn roles(app: &App, signed_in: SignedIn) -> Result<Vec<Role>, Problem> {
    let machines = app.queries.machines(signed_in.actor(), Seq::ZERO).await?;
    let is_provider = machines.iter().any(|m| m.listed.owner == signed_in.account);
    let further = [(is_provider, Role::Provider), (signed_in.viewer.is_operator, Role::Operator)];
    let roles = further.into_iter().filter(|(has_role, _)| *has_role).map(|(_, role)| role);
    Ok(std::iter::once(Role::Consumer).chain(roles).collect())
}
