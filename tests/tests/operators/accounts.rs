//! The actions of operators on the page of an account: deposits, payouts, suspensions and bans.

use gpubnb_tests::{
    api_client::ApiClient,
    system::{MarketSettings, System},
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use tokio::time::{Duration, Instant, sleep};

/// Sends a form of a page, and returns the status and the page that the browser shows afterwards.
async fn send(operator: &ApiClient, path: &str, fields: &[(&str, &str)]) -> (StatusCode, String) {
    let form: Vec<_> = fields.iter().copied().chain([("csrf", operator.csrf())]).collect();
    let answer = operator.build_request(Method::POST, path).form(&form).send().await.unwrap();
    let status = answer.status();
    let next = answer.headers().get("location").map(|location| location.to_str().unwrap().to_owned());
    match next {
        Some(next) => (status, page(operator, &next).await),
        None => (status, answer.text().await.unwrap()),
    }
}

async fn page(operator: &ApiClient, path: &str) -> String {
    String::from_utf8(operator.bytes(path).await.unwrap().1).unwrap()
}

#[tokio::test]
async fn an_operator_funds_pays_out_suspends_and_bans_on_the_page_of_an_account() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let operator = ApiClient::sign_up_operator(&system).await.unwrap();
    let path = format!("/console/accounts/{}", system.machine_owner.account);
    let deposit = "01a22a64-fe1d-7762-9b7b-4351e537eca1";

    // Money that arrived is added once, however often the form is sent.
    for _ in 0..2 {
        let fields = [("deposit", deposit), ("amount", "20")];
        let (status, shown) = send(&operator, &format!("{path}/deposits"), &fields).await;
        assert_eq!(status, StatusCode::SEE_OTHER);
        assert!(shown.contains("$20.00"), "{shown}");
    }
    let (status, refused) =
        send(&operator, &format!("{path}/deposits"), &[("deposit", deposit), ("amount", "x")]).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused.contains("role=\"alert\""), "{refused}");

    // Payouts wait on the page until the operator has paid them, or says why they failed.
    for (amount, fields, left) in [
        ("5", vec![("action", "paid")], "$15.00"),
        ("6", vec![("action", "failed"), ("reason", "no such bank")], "$15.00"),
    ] {
        let body = serde_json::json!({ "payout": gpubnb_events::CommandId::generate(), "amount_usd": amount });
        system.machine_owner.browser_session().post("/wallet/payouts", &body).await.unwrap();
        let asked = format!("/payouts/{}", body["payout"].as_str().unwrap());
        wait_until("the payout waits on the page", async || page(&operator, &path).await.contains(&asked)).await;
        let shown = page(&operator, &path).await;
        let action = format!("{path}/payouts/{}", body["payout"].as_str().unwrap());
        assert!(shown.contains(&action), "{shown}");
        let (_, without_reason) = send(&operator, &action, &[("action", "failed")]).await;
        assert!(without_reason.contains("Say why the payout failed"), "{without_reason}");
        let (status, shown) = send(&operator, &action, &fields).await;
        assert_eq!(status, StatusCode::SEE_OTHER);
        assert!(!shown.contains(&action) && shown.contains(left), "{shown}");
    }

    // A suspended account may not ask for payouts, until the operator ends the suspension.
    let suspension = format!("{path}/suspension");
    let (_, shown) = send(&operator, &suspension, &[("action", "suspend"), ("reason", "chargebacks")]).await;
    assert!(shown.contains("End the suspension"), "{shown}");
    let (_, shown) = send(&operator, &suspension, &[("action", "resume")]).await;
    assert!(!shown.contains("End the suspension"), "{shown}");

    // A banned machine is cut off.
    let machine = system.machine_id("attic").unwrap();
    let ban = format!("/console/machines/{machine}/ban");
    let (status, _) = send(&operator, &ban, &[("account", &system.machine_owner.account)]).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let deadline = Instant::now() + Duration::from_secs(60);
    while page(&operator, &path).await.contains("Online") {
        assert!(Instant::now() < deadline, "the market still hears the banned machine");
        sleep(Duration::from_millis(100)).await;
    }
}
