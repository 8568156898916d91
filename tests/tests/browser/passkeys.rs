//! Signing in with a passkey, with the virtual authenticator of Chromium's developer tools.

use fantoccini::Locator;
use gpubnb_tests::{
    browser::Browser,
    shared::{Plan, SharedMarket},
};
use serde_json::json;

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

/// Keeps the next answer that the page sends.
const KEEP: &str = "const send = window.fetch;
    window.fetch = (path, init) => {
        if (init?.body) sessionStorage.setItem('answer', init.body);
        return send(path, init);
    };";
/// Sends the kept answer once more, and returns the status of the market's answer.
const REPLAY: &str = "const done = arguments[0];
    const body = sessionStorage.getItem('answer');
    fetch('/sign-in/passkey', { method: 'POST', headers: { 'content-type': 'application/json' }, body })
        .then((answer) => done(answer.status));";

#[tokio::test]
async fn a_passkey_signs_in_until_it_is_removed() {
    let market = MARKET.open().await.unwrap();
    // Browsers have no passkeys for an address without a name.
    let url = market.url().replace("127.0.0.1", "localhost");
    let browser = Browser::open(&market).await;
    browser.devtools("WebAuthn.enable", json!({})).await;
    let options = json!({ "protocol": "ctap2", "transport": "internal", "hasResidentKey": true,
        "hasUserVerification": true, "isUserVerified": true, "automaticPresenceSimulation": true });
    browser.devtools("WebAuthn.addVirtualAuthenticator", json!({ "options": options })).await;
    let sign_in = async || {
        browser.client.goto(&format!("{url}/sign-in?next=/wallet")).await.unwrap();
        browser.fill("[name=email]", &market.consumer.email).await;
        browser.fill("[name=password]", &market.consumer.password).await;
        browser.click(".entry form button.primary").await;
        browser.wait_for_text("h1", "Wallet").await;
    };
    sign_in().await;
    browser.client.goto(&format!("{url}/account")).await.unwrap();
    // The password is asked for once more.
    browser.fill(".add-passkey [name=password]", "not the password").await;
    browser.click(".add-passkey button").await;
    browser.wait_for_text("#passkeys .error", "current password").await;
    browser.assert_console_has_only_status("a wrong password", "422").await;
    browser.fill(".add-passkey [name=label]", "my <laptop>").await;
    browser.fill(".add-passkey [name=password]", &market.consumer.password).await;
    browser.click(".add-passkey button:not(:disabled)").await;
    browser.wait_for_text("main [role=status]", "The passkey is added").await;
    assert!(browser.text("main").await.contains("my <laptop>"));

    let with_passkey = async |next: &str| {
        browser.client.delete_all_cookies().await.unwrap();
        browser.client.goto(&format!("{url}/sign-in?next={next}")).await.unwrap();
        browser.click("#passkeys button.sign-in").await;
    };
    with_passkey("/wallet").await;
    browser.wait_for_text("h1", "Wallet").await;
    browser.client.goto(&format!("{url}/account")).await.unwrap();
    browser.click("details summary:not(.current)").await;
    browser.wait_for_text("main details", "passkey").await;
    browser.assert_sound("an account with a passkey").await;

    // An answer works once, and the market took this one already.
    browser.client.delete_all_cookies().await.unwrap();
    browser.client.goto(&format!("{url}/sign-in?next=/wallet")).await.unwrap();
    browser.client.execute(KEEP, vec![]).await.unwrap();
    browser.click("#passkeys button.sign-in").await;
    browser.wait_for_text("h1", "Wallet").await;
    browser.client.delete_all_cookies().await.unwrap();
    assert_eq!(browser.client.execute_async(REPLAY, vec![]).await.unwrap(), json!(422));

    // A removed passkey is of no use, though the device still has it.
    with_passkey("/wallet").await;
    browser.wait_for_text("h1", "Wallet").await;
    browser.client.goto(&format!("{url}/account")).await.unwrap();
    browser.client.execute("window.confirm = () => true", vec![]).await.unwrap();
    let form = browser.client.find(Locator::Css("form[action$='/remove'] button")).await.unwrap();
    form.click().await.unwrap();
    browser.wait_for_text("main [role=status]", "The passkey is removed").await;
    with_passkey("/wallet").await;
    browser.wait_for_text("#passkeys .error", "not accepted").await;
    browser.close().await;
}
