//! Every address of this server, and what each demands. Nothing else is served.

use gpubnb_events::{
    command::{Challenge, Done, EnrollmentCode, MachineWish, Quote, RedeemEnrollment, Submitted},
    dispatch::{DeadLetter, Remedied, Remedy},
    spec::Artifact,
    template::Template,
};
use gpubnb_projector::view::{Figures, JobRow, MachineView, Receipt, TrailEvent};

use crate::{
    access::{
        Access::{Known, Operator, Person, Proof, Public, Scope},
        Routes,
        Scope::{JobsRead, JobsWrite, MachinesWrite, WalletRead},
        SignUp, TokenInfo,
    },
    api, assets, input, live, page, transfer,
};

/// All of them.
pub(crate) fn all() -> Routes {
    files(operators(wallet(jobs(machines(people(pages(Routes::new())))))))
}

fn pages(routes: Routes) -> Routes {
    routes
        .get("/", Public, page::landing::page)
        .get("/live", Public, page::landing::live)
        .get("/market", Public, page::market::page)
        .get("/market/live", Public, page::market::live)
        .get("/machines/{machine}", Public, page::machine::page)
        .get("/machines/{machine}/live", Public, page::machine::live)
        .post("/machines/{machine}/wish", Person, page::provider::change)
        .post("/machines/{machine}/revoke", Person, page::provider::revoke)
        .get("/jobs", Person, page::jobs::page)
        .post("/jobs", Person, page::new_job::submit)
        .get("/jobs/live", Person, page::jobs::live)
        .post("/jobs/cancel", Person, page::jobs::cancel)
        .get("/jobs/new", Person, page::new_job::page)
        .post("/jobs/quote", Person, page::new_job::quote)
        .get("/jobs/{job}", Person, page::job::page)
        .get("/jobs/{job}/live", Scope(JobsRead), live::job::live)
        .post("/jobs/{job}/cancel", Person, page::job::cancel)
        .get("/jobs/{job}/log.txt", Person, api::jobs::log_text)
        .get("/jobs/{job}/log/part", Person, page::job::log_part)
        .get("/jobs/{job}/log/search", Person, page::job::log_search)
        .get("/jobs/{job}/metrics.json", Person, page::job::metrics)
        .get("/jobs/{job}/trail.jsonl", Person, page::job::trail_lines)
        .get("/jobs/{job}/artifacts.tar", Person, transfer::all::get)
        .get("/jobs/{job}/artifacts/{*path}", Person, transfer::get)
        .get("/wallet", Person, page::wallet::page)
        .get("/wallet/live", Person, page::wallet::live)
        .get("/events/{seq}", Person, page::event::page)
        .get("/events/{seq}/proof.json", Person, page::event::proof)
        .get("/wallet/statement.csv", Person, page::wallet::csv)
        .post("/wallet/deposits", Person, page::wallet::deposit)
        .post("/wallet/payouts", Person, page::wallet::payout)
        .get("/provider", Person, page::provider::page)
        .get("/provider/live", Person, page::provider::live)
        .post("/provider/enrollments", Person, page::provider::enroll)
        .get("/sign-up", Public, page::entry::sign_up_page)
        .post("/sign-up", Proof, page::entry::sign_up)
        .get("/sign-in", Public, page::entry::sign_in_page)
        .post("/sign-in", Proof, page::entry::sign_in)
        .post("/sign-out", Person, page::entry::sign_out)
        .get("/account", Person, page::account::page)
        .post("/account/password", Person, page::account::change_password)
        .post("/account/tokens", Person, page::account::create_token)
        .post("/account/tokens/{token}/revoke", Person, page::account::revoke_token)
        .post("/account/sessions/{session}/end", Person, page::account::end_session)
        .get("/operator/{secret}", Person, page::account::invite)
        .post("/operator/{secret}", Person, page::account::accept_invite)
        .get("/console", Operator, page::console::page)
        .get("/console/live", Operator, page::console::live)
        .get("/console/events", Operator, page::console::events)
        .get("/console/events/live", Operator, page::console::events_live)
        .get("/console/travel", Operator, page::travel::page)
        .post("/console/rebuild/{model}", Operator, page::console::rebuild)
        .post("/console/verify", Operator, page::console::verify)
        .post("/console/remedy", Operator, page::console::remedy)
        .get("/styleguide", Public, page::styleguide::page)
        .get("/docs", Public, page::docs::page)
        .get("/openapi.json", Public, page::docs::document)
        .get("/assets/{version}/{name}", Public, assets::serve)
        .get("/healthz", Public, || async { "ok" })
}

fn people(routes: Routes) -> Routes {
    routes
        .post("/api/v1/accounts", Proof, api::people::sign_up)
        .about("Signs up. The answer is the same whether the e-mail address was free or not.")
        .takes::<SignUp>()
        .answers::<api::people::Said>()
        .post("/api/v1/login", Proof, api::people::login)
        .about("Makes a token, for who has the password.")
        .takes::<api::people::Login>()
        .answers::<api::people::Made>()
        .get("/api/v1/account", Known, api::people::me)
        .about("Who asks.")
        .answers::<api::people::Me>()
        .get("/api/v1/tokens", Person, api::people::list)
        .about("One's own tokens.")
        .lists::<TokenInfo>()
        .post("/api/v1/tokens", Person, api::people::create)
        .about("Makes a token.")
        .takes::<api::people::AskToken>()
        .answers::<api::people::Made>()
        .delete("/api/v1/tokens/{token}", Person, api::people::revoke)
        .about("Revokes a token.")
}

fn machines(routes: Routes) -> Routes {
    routes
        .get("/api/v1/market", Public, api::machines::figures)
        .about("Figures of the market.")
        .answers::<Figures>()
        .get("/api/v1/templates", Public, api::machines::templates)
        .about("The approved templates of jobs.")
        .lists::<Template>()
        .get("/api/v1/machines", Public, api::machines::list)
        .about("The machines on the market.")
        .pages::<MachineView>()
        .get("/api/v1/machines/{machine}", Public, api::machines::get)
        .about("One machine.")
        .answers::<MachineView>()
        .get("/api/v1/machines/{machine}/events", Public, api::machines::events)
        .about("A machine's trail. Its owner sees more of it than others.")
        .pages::<TrailEvent>()
        .post("/api/v1/machines/{machine}/wish", Scope(MachinesWrite), api::machines::wish)
        .about("Pauses, resumes, drains, delists or reprices one's own machine.")
        .takes::<MachineWish>()
        .answers::<Done>()
        .post("/api/v1/speed", Public, api::machines::speed)
        .about("Takes what is sent, 256 KiB at the most, and forgets it: a machine measures its way to the market.")
        .post("/api/v1/enrollments", Scope(MachinesWrite), api::machines::create_code)
        .about("A one-time code for one more machine.")
        .answers::<EnrollmentCode>()
        .post("/api/v1/enroll", Proof, api::machines::redeem)
        .about("A machine trades a code for its credential.")
        .takes::<RedeemEnrollment>()
        .answers::<api::machines::Enrolled>()
        .post("/api/v1/machines/{machine}/challenge", Proof, api::machines::challenge)
        .about("Something for a machine to sign, to renew its credential.")
        .answers::<Challenge>()
        .post("/api/v1/machines/{machine}/credential", Proof, api::machines::renew)
        .about("A machine renews its credential.")
        .takes::<api::machines::Signed>()
        .answers::<api::machines::Enrolled>()
        .delete("/api/v1/machines/{machine}/credential", Scope(MachinesWrite), api::machines::revoke)
        .about("Takes one's own machine its right to speak, at once.")
}

fn jobs(routes: Routes) -> Routes {
    routes
        .post("/api/v1/quote", Scope(JobsRead), api::jobs::quote)
        .about("What a job would cost, and where it would run. Nothing is submitted.")
        .takes::<input::NewJob>()
        .answers::<Quote>()
        .get("/api/v1/jobs", Scope(JobsRead), api::jobs::list)
        .about("One's own jobs, newest first.")
        .pages::<JobRow>()
        .post("/api/v1/jobs", Scope(JobsWrite), api::jobs::submit)
        .about("Submits a job. The same id (or `Idempotency-Key`) again is the same job.")
        .takes::<input::NewJob>()
        .answers::<Submitted>()
        .get("/api/v1/jobs/{job}", Scope(JobsRead), api::jobs::get)
        .about("One job, with its progress, and why it waits.")
        .answers::<api::jobs::JobView>()
        .post("/api/v1/jobs/{job}/cancel", Scope(JobsWrite), api::jobs::cancel)
        .about("Asks a job to stop.")
        .answers::<Done>()
        .get("/api/v1/jobs/{job}/events", Scope(JobsRead), api::jobs::events)
        .about("A job's trail.")
        .pages::<TrailEvent>()
        .get("/api/v1/jobs/{job}/events/stream", Scope(JobsRead), api::stream::events)
        .about("The trail as it happens: server-sent events, resumed by `Last-Event-ID`.")
        .get("/api/v1/jobs/{job}/logs", Scope(JobsRead), api::jobs::logs)
        .about("A job's log.")
        .pages::<api::jobs::Line>()
        .get("/api/v1/jobs/{job}/logs/stream", Scope(JobsRead), api::stream::logs)
        .about("Log, progress and metrics as they come: server-sent events, resumed by `Last-Event-ID`.")
        .get("/api/v1/jobs/{job}/receipt", Scope(JobsRead), api::jobs::receipt)
        .about("The bill, with what it was computed from.")
        .answers::<Receipt>()
        .get("/api/v1/jobs/{job}/artifacts", Scope(JobsRead), api::jobs::artifacts)
        .about("The files a job left.")
        .lists::<Artifact>()
        .get("/api/v1/jobs/{job}/manifest", Scope(JobsRead), api::jobs::manifest)
        .about("What a job left, signed by its machine's key.")
        .answers::<api::jobs::Manifest>()
        .get("/api/v1/jobs/{job}/artifacts/{*path}", Scope(JobsRead), transfer::get)
        .about("One file. Ranges and `If-None-Match` are honoured.")
        .post("/api/v1/jobs/{job}/links", Scope(JobsRead), transfer::link)
        .about("A link to one file, good for an hour, for whoever has it.")
        .takes::<transfer::AskLink>()
        .answers::<transfer::Link>()
        .put("/api/v1/inputs/{input}", Scope(JobsWrite), transfer::put_input)
        .about("Puts a file that jobs can be given. The body is the file.")
        .answers::<transfer::Uploaded>()
}

fn wallet(routes: Routes) -> Routes {
    routes
        .get("/api/v1/wallet", Scope(WalletRead), api::account::wallet)
        .about("Balance and statement.")
        .answers::<api::account::Wallet>()
        .post("/api/v1/wallet/deposits", Person, api::account::deposit)
        .about("Adds play money, where the market allows it.")
        .takes::<api::account::NewDeposit>()
        .answers::<Done>()
        .post("/api/v1/wallet/payouts", Person, api::account::payout)
        .about("Asks for earnings.")
        .takes::<api::account::NewPayout>()
        .answers::<Done>()
}

fn operators(routes: Routes) -> Routes {
    routes
        .post("/api/v1/ops/accounts/{account}/suspension", Operator, api::ops::suspend)
        .about("Suspends or reinstates an account.")
        .takes::<api::ops::Suspension>()
        .answers::<Done>()
        .post("/api/v1/ops/accounts/{account}/deposits", Operator, api::ops::fund)
        .about("Says that money has come in for an account.")
        .takes::<api::ops::Funds>()
        .answers::<Done>()
        .post("/api/v1/ops/accounts/{account}/payouts/{payout}", Operator, api::ops::close_payout)
        .about("Says how a payout ended.")
        .takes::<api::ops::Closing>()
        .answers::<Done>()
        .get("/api/v1/ops/dead-letters", Operator, api::ops::letters)
        .about("Job messages that nobody works on.")
        .answers::<Vec<DeadLetter>>()
        .post("/api/v1/ops/dead-letters", Operator, api::ops::remedy)
        .about("Does what can be done about one of them.")
        .takes::<Remedy>()
        .answers::<Remedied>()
        .delete("/api/v1/ops/machines/{machine}/credential", Operator, api::ops::ban)
        .about("Bans a machine, at once.")
}

/// Files move at their own pace and size.
fn files(routes: Routes) -> Routes {
    routes
        .put("/transfer/{job}/{lease}/{*path}", Proof, transfer::put)
        .get("/transfer/{job}/{lease}/{*path}", Proof, transfer::received)
        .get("/transfer/permit/{permit}", Proof, transfer::by_permit)
}
