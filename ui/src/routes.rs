//! The table of all endpoints of this server. Each line states the access that the endpoint demands.

mod batches;

use axum::http::StatusCode;
use gpubnb_events::{
    command::{Challenge, Done, EnrollmentCode, MachineChange, RedeemEnrollment, StoredSecret, Submitted},
    dataset::DatasetManifest,
    dead_letter::{DeadLetter, Remedied, Remedy},
    event::Check,
    job_request::JobRequest,
    notification::DeliveryTry,
    spec::Artifact,
};
use gpubnb_query::view::{
    AttemptOutcome, Day, Figures, JobView, MarketDay, ModelHistory, ModelSummary, Reading, Receipt, TrailEvent,
    ops::{Accounts, Platform, StuckJob, TimeTravel},
};

use crate::{
    access::{
        Access::{Authenticated, Operator, ProofInRequest, Public, Scope, Session},
        Routes,
        Scope::{JobsRead, JobsWrite, MachinesWrite, SecretsWrite, WalletRead, WebhooksWrite},
        SignUp, TokenInfo,
    },
    api, assets,
    event_search::EventSearch,
    extract::{AfterAccount, MinSeq},
    market_filters::MarketFilters,
    page,
    state::StoredDataset,
    transfer, worker_download,
};

/// All endpoints.
pub(crate) fn all() -> Routes {
    files(operators(wallet(batches::routes(jobs(datasets(machines(secrets(webhooks(accounts(
        console_and_documents(pages(Routes::default())),
    ))))))))))
}

fn pages(routes: Routes) -> Routes {
    routes
        .get("/", Public, page::landing::page)
        .get("/live", Public, page::landing::live)
        .get("/market", Public, page::market::page)
        .get("/market/live", Public, page::market::live)
        .get("/market/prices", Public, page::prices::page)
        .get("/market/compare", Public, page::compare::machines)
        .get("/machines/{machine}", Public, page::machine::page)
        .get("/machines/{machine}/live", Public, page::machine::live)
        .post("/machines/{machine}/wish", Session, page::provider::change)
        .post("/machines/{machine}/revoke", Session, page::provider::revoke)
        .get("/jobs", Session, page::jobs::page)
        .post("/jobs", Session, page::new_job::submit)
        .get("/jobs/live", Session, page::jobs::live)
        .post("/jobs/cancel", Session, page::jobs::cancel)
        .get("/jobs/compare", Session, page::compare::jobs)
        .post("/jobs/compare", Session, page::compare::selected_jobs)
        .get("/jobs/new", Session, page::new_job::page)
        .post("/jobs/quote", Session, page::new_job::quote)
        .get("/jobs/{job}", Session, page::job::page)
        .get("/jobs/{job}/live", Scope(JobsRead), page::job::live)
        .post("/jobs/{job}/cancel", Session, page::job::cancel)
        .get("/jobs/{job}/log.txt", Session, api::jobs::log_text)
        .get("/jobs/{job}/log/part", Session, page::job::log_part)
        .get("/jobs/{job}/log/search", Session, page::job::log_search)
        .get("/jobs/{job}/metrics.json", Session, page::job::metrics)
        .get("/jobs/{job}/trail.jsonl", Session, page::job::trail_lines)
        .get("/jobs/{job}/artifacts.tar", Session, transfer::get_tar)
        .get("/jobs/{job}/artifacts/{*path}", Session, transfer::get)
        .get("/wallet", Session, page::wallet::page)
        .get("/wallet/balance", Session, page::wallet::balance)
        .get("/wallet/live", Session, page::wallet::live)
        .get("/events/{seq}", Session, page::event::page)
        .get("/events/{seq}/proof.json", Session, page::event::proof)
        .get("/wallet/statement.csv", Session, page::wallet::csv)
        .post("/wallet/deposits", Session, page::wallet::deposit)
        .post("/wallet/payouts", Session, page::wallet::payout)
        .get("/provider", Session, page::provider::page)
        .get("/provider/live", Session, page::provider::live)
        .get("/earn", Public, page::earn::page)
        .get("/provider/add", Session, page::add_machine::page)
        .get("/provider/add/live", Session, page::add_machine::live)
        .post("/provider/enrollments", Session, page::add_machine::enroll)
        .get("/sign-up", Public, page::sign_in::sign_up_page)
        .post("/sign-up", ProofInRequest, page::sign_in::sign_up)
        .get("/sign-in", Public, page::sign_in::sign_in_page)
        .post("/sign-in", ProofInRequest, page::sign_in::sign_in)
        .get("/sign-in/passkey", Public, page::passkeys::begin_sign_in)
        .post("/sign-in/passkey", ProofInRequest, page::passkeys::sign_in)
        .get("/forgot", Public, page::password_reset::forgot_page)
        .post("/forgot", ProofInRequest, page::password_reset::forgot)
        .get("/reset/{link}", Public, page::password_reset::reset_page)
        .post("/reset/{link}", ProofInRequest, page::password_reset::reset)
        .get("/confirm/{link}", Public, page::notifications::confirm_page)
        .post("/confirm/{link}", ProofInRequest, page::notifications::confirm)
        .post("/sign-out", Session, page::sign_in::sign_out)
}

/// The console of the operators, the documents, and the files that every page needs.
fn console_and_documents(routes: Routes) -> Routes {
    routes
        .get("/account", Session, page::account::page)
        .post("/account/password", Session, page::account::change_password)
        .post("/account/tokens", Session, page::account::create_token)
        .post("/account/tokens/{token}/revoke", Session, page::account::revoke_token)
        .post("/account/sessions/{session}/end", Session, page::account::end_session)
        .post("/account/passkeys/begin", Session, page::passkeys::begin_adding)
        .post("/account/passkeys", Session, page::passkeys::add)
        .post("/account/passkeys/{passkey}/remove", Session, page::passkeys::remove)
        .get("/account/close", Session, page::close_account::page)
        .post("/account/close", Session, page::close_account::close)
        .get("/account/export.jsonl", Session, page::export::export)
        .get("/account/notifications", Session, page::notifications::page)
        .post("/account/notifications", Session, page::notifications::save)
        .post("/account/webhooks", Session, page::notifications::add_webhook)
        .post("/account/webhooks/{webhook}/remove", Session, page::notifications::remove_webhook)
        .post("/account/webhooks/{webhook}/test", Session, page::notifications::test_webhook)
        .get("/templates", Public, page::templates::page)
        .get("/datasets", Session, page::datasets::page)
        .post("/datasets/{dataset}/delete", Session, page::datasets::delete)
        .get("/account/secrets", Session, page::secrets::page)
        .post("/account/secrets", Session, page::secrets::set)
        .post("/account/secrets/{name}/delete", Session, page::secrets::delete)
        .post("/account/confirm", Session, page::notifications::send_link)
        .get("/operator/{secret}", Session, page::account::invite)
        .post("/operator/{secret}", Session, page::account::accept_invite)
        .get("/console", Operator, page::console::page)
        .get("/console/live", Operator, page::console::live)
        .get("/console/fleet", Operator, page::console_fleet::page)
        .get("/console/fleet/live", Operator, page::console_fleet::live)
        .get("/console/ledger", Operator, page::console_ledger::page)
        .get("/console/ledger/live", Operator, page::console_ledger::live)
        .get("/console/events", Operator, page::console::events)
        .get("/console/events/live", Operator, page::console::events_live)
        .get("/console/travel", Operator, page::travel::page)
        .post("/console/rebuild/{model}", Operator, page::console::rebuild)
        .post("/console/verify", Operator, page::console::verify)
        .post("/console/remedy", Operator, page::console::remedy)
        .get("/console/accounts/{account}", Operator, page::console_account::page)
        .post("/console/accounts/{account}/suspension", Operator, page::console_account::suspend)
        .post("/console/accounts/{account}/deposits", Operator, page::console_account::fund)
        .post("/console/accounts/{account}/operator", Operator, page::console_account::remove_operator)
        .post("/console/accounts/{account}/payouts/{payout}", Operator, page::console_account::close_payout)
        .post("/console/machines/{machine}/ban", Operator, page::console_account::ban)
        .get("/styleguide", Public, page::styleguide::page)
        .get("/find", Public, page::find::page)
        .get("/status", Public, page::status::page)
        .get("/terms", Public, page::terms::page)
        .get("/docs", Public, page::docs::page)
        .get("/docs/endpoints", Public, page::docs::endpoints_page)
        .get("/docs/{guide}", Public, page::docs::guide)
        .get("/openapi.json", Public, page::docs::document)
        .get("/install.sh", Public, worker_download::install_script)
        .get("/download/gpubnb-provider", Public, worker_download::program)
        .get("/assets/{version}/{name}", Public, assets::serve)
        .get("/.well-known/gpubnb.json", Public, api::published::page)
        .get("/healthz", Public, || async { "ok" })
}

fn accounts(routes: Routes) -> Routes {
    routes
        .post("/api/v1/accounts", ProofInRequest, api::account::sign_up)
        .status(StatusCode::ACCEPTED)
        .about("Signs up. The answer is the same whether the e-mail address was free or not.")
        .takes::<SignUp>()
        .answers::<api::account::Message>()
        .post("/api/v1/login", ProofInRequest, api::account::login)
        .status(StatusCode::CREATED)
        .about("Exchanges an e-mail address and a password for a token.")
        .takes::<api::account::Login>()
        .answers::<api::account::CreatedToken>()
        .get("/api/v1/account", Authenticated, api::account::current)
        .about("The caller's account.")
        .answers::<api::account::CurrentAccount>()
        .get("/api/v1/tokens", Session, api::account::list)
        .about("The caller's tokens.")
        .lists::<TokenInfo>()
        .post("/api/v1/tokens", Session, api::account::create)
        .status(StatusCode::CREATED)
        .about("Creates a token.")
        .takes::<api::account::TokenRequest>()
        .answers::<api::account::CreatedToken>()
        .delete("/api/v1/tokens/{token}", Session, api::account::revoke)
        .about("Revokes a token.")
}

fn secrets(routes: Routes) -> Routes {
    routes
        .get("/api/v1/secrets", Scope(SecretsWrite), api::secrets::list)
        .about("Your named secrets, without their values, which nobody can read again.")
        .lists::<StoredSecret>()
        .put("/api/v1/secrets/{name}", Scope(SecretsWrite), api::secrets::set)
        .about("Stores a secret. A job that names it gets the value as an environment variable.")
        .takes::<api::secrets::SecretValue>()
        .answers::<StoredSecret>()
        .delete("/api/v1/secrets/{name}", Scope(SecretsWrite), api::secrets::delete)
        .about("Deletes a secret. Jobs that have it keep it until they end.")
}

fn webhooks(routes: Routes) -> Routes {
    routes
        .get("/api/v1/webhooks", Scope(WebhooksWrite), api::webhooks::list)
        .about("Your webhooks: the addresses of programs that are told what happens.")
        .lists::<api::webhooks::WebhookInfo>()
        .post("/api/v1/webhooks", Scope(WebhooksWrite), api::webhooks::add)
        .status(StatusCode::CREATED)
        .about("Adds a webhook. The answer has the secret with which its requests are signed.")
        .takes::<api::webhooks::NewWebhook>()
        .answers::<api::webhooks::CreatedWebhook>()
        .delete("/api/v1/webhooks/{webhook}", Scope(WebhooksWrite), api::webhooks::remove)
        .about("Removes a webhook.")
        .post("/api/v1/webhooks/{webhook}/test", Scope(WebhooksWrite), api::webhooks::test)
        .status(StatusCode::ACCEPTED)
        .about("Sends a test to a webhook, at most one in ten seconds.")
        .get("/api/v1/deliveries", Scope(WebhooksWrite), api::webhooks::deliveries)
        .about("The newest tries to send you notifications, by webhook and by e-mail, with their failures.")
        .lists::<DeliveryTry>()
}

fn machines(routes: Routes) -> Routes {
    routes
        .get("/api/v1/market", Public, api::machines::figures)
        .about("Figures of the market.")
        .answers::<Figures>()
        .get("/api/v1/market/models", Public, api::machines::models)
        .about("The models of GPU of which machines took jobs within a month, with their machines now.")
        .lists::<ModelSummary>()
        .get("/api/v1/market/history", Public, api::machines::history)
        .query::<api::machines::HistoryPeriod>()
        .about("The prices and the free machines of one model, by the hour.")
        .answers::<ModelHistory>()
        .get("/api/v1/market/days", Public, api::machines::market_days)
        .about(
            "What became of jobs and machines on the last 31 days, newest first. A day without an event is left out.",
        )
        .lists::<MarketDay>()
        .get("/api/v1/templates", Public, api::machines::templates)
        .about("The approved templates of jobs, with the usual time and cost of their jobs.")
        .lists::<api::machines::ListedTemplate>()
        .get("/api/v1/machines", Public, api::machines::list)
        .query::<api::machines::MachinePage>()
        .query::<MarketFilters>()
        .about("The machines on the market. A filter that cannot be read is not applied.")
        .pages::<api::machines::MachineRow>()
        .get("/api/v1/machines/{machine}", Public, api::machines::get)
        .query::<MinSeq>()
        .about("One machine.")
        .answers::<api::machines::MachineRow>()
        .get("/api/v1/machines/{machine}/events", Public, api::machines::events)
        .query::<api::jobs::TrailPage>()
        .about("A machine's events. Its owner sees more of them than others.")
        .pages::<TrailEvent>()
        .get("/api/v1/machines/{machine}/readings", Public, api::machines::readings)
        .query::<api::machines::Period>()
        .about("A machine's measurements, one for each minute of the last `hours`: from 1 to 24, by default 1.")
        .lists::<Reading>()
        .get("/api/v1/machines/{machine}/outcomes", Public, api::machines::outcomes)
        .about("The outcomes of the newest attempts on a machine. Its track record is counted from them.")
        .lists::<AttemptOutcome>()
        .get("/api/v1/machines/{machine}/days", Scope(MachinesWrite), api::machines::days)
        .about("The earnings of your own machine on each of the last 31 days.")
        .lists::<Day>()
        .post("/api/v1/machines/{machine}/wish", Scope(MachinesWrite), api::machines::change)
        .about("Pauses, resumes, drains, delists, reprices or configures your own machine, or announces maintenance.")
        .takes::<MachineChange>()
        .answers::<Done>()
        .post("/api/v1/speed", Public, api::machines::speed)
        .about("Reads and discards a body of up to 256 KiB. A machine measures its upload speed with such requests.")
        .post("/api/v1/enrollments", Scope(MachinesWrite), api::machines::create_code)
        .status(StatusCode::CREATED)
        .about("Creates a one-time code to enroll a machine.")
        .answers::<EnrollmentCode>()
        .post("/api/v1/enroll", ProofInRequest, api::machines::redeem)
        .about("A machine exchanges a code for its credential.")
        .takes::<RedeemEnrollment>()
        .answers::<api::machines::Enrolled>()
        .post("/api/v1/machines/{machine}/challenge", ProofInRequest, api::machines::challenge)
        .about("A challenge that a machine signs to renew its credential.")
        .answers::<Challenge>()
        .post("/api/v1/machines/{machine}/credential", ProofInRequest, api::machines::renew)
        .about("A machine renews its credential.")
        .takes::<api::machines::SignedChallenge>()
        .answers::<api::machines::Enrolled>()
        .delete("/api/v1/machines/{machine}/credential", Scope(MachinesWrite), api::machines::revoke)
        .about("Revokes the credential of your own machine. This takes effect at once.")
}

fn jobs(routes: Routes) -> Routes {
    routes
        .post("/api/v1/quote", Scope(JobsRead), api::jobs::quote)
        .about("The price of a job, and the machine that would run it. Nothing is submitted.")
        .takes::<JobRequest>()
        .answers::<api::jobs::QuotedJob>()
        .get("/api/v1/jobs", Scope(JobsRead), api::jobs::list)
        .query::<api::jobs::JobFilters>()
        .about("Your jobs, newest first.")
        .pages::<JobView>()
        .post("/api/v1/jobs", Scope(JobsWrite), api::jobs::submit)
        .status(StatusCode::CREATED)
        .about("Submits a job. Repeating the request with the same id (or `Idempotency-Key`) is safe.")
        .takes::<JobRequest>()
        .answers::<Submitted>()
        .get("/api/v1/jobs/{job}", Scope(JobsRead), api::jobs::get)
        .query::<MinSeq>()
        .about("One job, with its progress, or with the reason why it waits.")
        .answers::<api::jobs::JobDetails>()
        .post("/api/v1/jobs/{job}/cancel", Scope(JobsWrite), api::jobs::cancel)
        .about("Asks a job to stop.")
        .answers::<Done>()
        .get("/api/v1/jobs/{job}/events", Scope(JobsRead), api::jobs::events)
        .query::<api::jobs::TrailPage>()
        .about("A job's events.")
        .pages::<TrailEvent>()
        .get("/api/v1/jobs/{job}/events/stream", Scope(JobsRead), api::stream::events)
        .streams("text/event-stream")
        .about("A job's events as they happen: server-sent events, resumed by `Last-Event-ID`.")
        .get("/api/v1/jobs/{job}/logs", Scope(JobsRead), api::jobs::logs)
        .query::<api::jobs::LogPage>()
        .about("A job's log.")
        .pages::<api::jobs::JobLogLine>()
        .get("/api/v1/jobs/{job}/logs/stream", Scope(JobsRead), api::stream::logs)
        .streams("text/event-stream")
        .about(
            "A job's log, progress and metrics as the job writes them: server-sent events, resumed by `Last-Event-ID`.",
        )
        .get("/api/v1/jobs/{job}/receipt", Scope(JobsRead), api::jobs::receipt)
        .about("The receipt, with the events that it was computed from.")
        .answers::<Receipt>()
        .get("/api/v1/jobs/{job}/artifacts", Scope(JobsRead), api::jobs::artifacts)
        .about("The output files of a job.")
        .lists::<Artifact>()
        .get("/api/v1/jobs/{job}/manifest", Scope(JobsRead), api::jobs::manifest)
        .about("The list of a job's output files, signed with the key of the machine.")
        .answers::<api::jobs::Manifest>()
        .get("/api/v1/jobs/{job}/artifacts/{*path}", Scope(JobsRead), transfer::get)
        .streams("application/octet-stream")
        .about("One output file of a job. Supports ranges and `If-None-Match`.")
        .post("/api/v1/jobs/{job}/links", Scope(JobsRead), transfer::link)
        .about("Creates a link to one output file. Anybody who has the link can download the file for an hour.")
        .takes::<transfer::LinkRequest>()
        .answers::<transfer::Link>()
        .put("/api/v1/inputs/{input}", Scope(JobsWrite), transfer::put_input)
        .status(StatusCode::CREATED)
        .about("Uploads an input: a file that jobs can read. The body is the file.")
        .answers::<transfer::StoredInput>()
}

fn datasets(routes: Routes) -> Routes {
    routes
        .get("/api/v1/datasets", Scope(JobsRead), api::datasets::list)
        .about("Your datasets, newest first. A dataset is a directory of files that jobs can read.")
        .lists::<StoredDataset>()
        .get("/api/v1/datasets/{dataset}", Scope(JobsRead), api::datasets::manifest)
        .about("The manifest of a dataset: all its files.")
        .answers::<DatasetManifest>()
        .put("/api/v1/datasets/{dataset}", Scope(JobsWrite), api::datasets::put)
        .about(
            "Stores a manifest, and tells which contents are missing. When none is, the dataset is complete. The id is \
             the SHA-256 of the manifest in canonical form.",
        )
        .query::<api::datasets::NewDataset>()
        .takes::<DatasetManifest>()
        .answers::<api::datasets::DatasetUpload>()
        .put("/api/v1/datasets/{dataset}/contents", Scope(JobsWrite), api::datasets::put_contents)
        .status(StatusCode::NO_CONTENT)
        .query::<transfer::ContentRange>()
        .about("Uploads missing contents of a dataset: the body has their bytes, one after the other.")
        .delete("/api/v1/datasets/{dataset}", Scope(JobsWrite), api::datasets::delete)
        .status(StatusCode::NO_CONTENT)
        .about("Removes a dataset that no open job needs.")
}

fn wallet(routes: Routes) -> Routes {
    routes
        .get("/api/v1/wallet", Scope(WalletRead), api::wallet::wallet)
        .query::<api::wallet::StatementPage>()
        .about("Balance and statement.")
        .answers::<api::wallet::Wallet>()
        .get("/api/v1/wallet/days", Scope(WalletRead), api::wallet::days)
        .about("Spending and earnings on each of the last 31 days, without the days that have none.")
        .lists::<Day>()
        .post("/api/v1/wallet/deposits", Session, api::wallet::deposit)
        .about("Adds play money, where the market allows it.")
        .takes::<api::wallet::NewDeposit>()
        .answers::<Done>()
        .post("/api/v1/wallet/payouts", Session, api::wallet::payout)
        .about("Requests a payout.")
        .takes::<api::wallet::NewPayout>()
        .answers::<Done>()
}

fn operators(routes: Routes) -> Routes {
    routes
        .post("/api/v1/ops/accounts/{account}/suspension", Operator, api::ops::suspend)
        .about("Suspends or reinstates an account.")
        .takes::<api::ops::Suspension>()
        .answers::<Done>()
        .post("/api/v1/ops/accounts/{account}/deposits", Operator, api::ops::fund)
        .about("Records that money has arrived for an account.")
        .takes::<api::ops::ReceivedDeposit>()
        .answers::<Done>()
        .post("/api/v1/ops/accounts/{account}/payouts/{payout}", Operator, api::ops::close_payout)
        .about("Records that a payout was paid, or that it failed.")
        .takes::<api::ops::PayoutResult>()
        .answers::<Done>()
        .get("/api/v1/ops/platform", Operator, api::ops::platform)
        .about("Streams, read models, rebuilds, and the last verification.")
        .answers::<Platform>()
        .get("/api/v1/ops/doctor", Operator, api::ops::doctor)
        .about("Checks of the deployment.")
        .lists::<Check>()
        .get("/api/v1/ops/files", Operator, api::ops::files)
        .about("How full the stores of files are, and which accounts take most.")
        .lists::<transfer::StoreUse>()
        .get("/api/v1/ops/stuck", Operator, api::ops::stuck)
        .about("Jobs that have been in one state for too long.")
        .lists::<StuckJob>()
        .get("/api/v1/ops/events", Operator, api::ops::events)
        .query::<EventSearch>()
        .about("All events, newest first, filtered by `kind`, `id`, `event` and `before`.")
        .pages::<TrailEvent>()
        .get("/api/v1/ops/ledger", Operator, api::ops::ledger)
        .query::<AfterAccount>()
        .about("The totals of the ledger, and the accounts after `after`.")
        .answers::<Accounts>()
        .get("/api/v1/ops/travel", Operator, api::ops::travel)
        .query::<api::ops::PointInLog>()
        .about("The state of the market at `at`, a sequence or a time; or the progress of computing this state.")
        .answers::<TimeTravel>()
        .post("/api/v1/ops/models/{model}/rebuild", Operator, api::ops::rebuild)
        .status(StatusCode::ACCEPTED)
        .about("Begins to rebuild a read model. The old model answers queries until the new model is ready.")
        .post("/api/v1/ops/verification", Operator, api::ops::verify)
        .status(StatusCode::ACCEPTED)
        .about("Begins to verify the log and every row.")
        .get("/api/v1/ops/dead-letters", Operator, api::ops::dead_letters)
        .about("The dead letters: messages about jobs that no machine could process.")
        .answers::<Vec<DeadLetter>>()
        .post("/api/v1/ops/dead-letters", Operator, api::ops::remedy)
        .about("Repairs one dead letter, as far as possible.")
        .takes::<Remedy>()
        .answers::<Remedied>()
        .delete("/api/v1/ops/machines/{machine}/credential", Operator, api::ops::ban)
        .about("Bans a machine. This takes effect at once.")
}

/// Transfers of files. `serve.rs` allows these requests more time than others.
fn files(routes: Routes) -> Routes {
    routes
        .put("/transfer/{job}/{lease}/{*path}", ProofInRequest, transfer::put)
        .get("/transfer/{job}/{lease}/{*path}", ProofInRequest, transfer::upload_status)
        .get("/transfer/permit/{permit}", ProofInRequest, transfer::by_permit)
}
