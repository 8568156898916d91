//! The endpoints of batches.

use axum::http::StatusCode;
use gpubnb_events::{
    batch_request::BatchRequest,
    command::{Done, SubmittedBatch},
};
use gpubnb_query::view::{TaskView, TrailEvent};

use crate::{
    access::{
        Access::{Scope, Session},
        Routes,
        Scope::{JobsRead, JobsWrite},
    },
    api,
    extract::MinSeq,
    page, transfer,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/batches", Session, page::batches::list)
        .get("/batches/{batch}", Session, page::batches::page)
        .get("/batches/{batch}/live", Session, page::batches::live)
        .post("/batches/{batch}/cancel", Session, page::batches::cancel)
        .post("/batches/{batch}/retry", Session, page::batches::retry)
        .post("/api/v1/batches/quote", Scope(JobsRead), api::batches::quote)
        .about("The price of a batch. Nothing is submitted.")
        .takes::<BatchRequest>()
        .answers::<api::batches::QuotedBatch>()
        .get("/api/v1/batches", Scope(JobsRead), api::batches::list)
        .query::<api::batches::BatchPage>()
        .about("Your batches, newest first.")
        .pages::<api::batches::BatchDetails>()
        .post("/api/v1/batches", Scope(JobsWrite), api::batches::submit)
        .status(StatusCode::CREATED)
        .about("Submits a batch. Repeating the request with the same id (or `Idempotency-Key`) is safe.")
        .takes::<BatchRequest>()
        .answers::<SubmittedBatch>()
        .get("/api/v1/batches/{batch}", Scope(JobsRead), api::batches::get)
        .query::<MinSeq>()
        .about("One batch, with the number of tasks in each state and the cost so far.")
        .answers::<api::batches::BatchDetails>()
        .get("/api/v1/batches/{batch}/tasks", Scope(JobsRead), api::batches::tasks)
        .query::<api::batches::TaskPage>()
        .about("The tasks of a batch.")
        .pages::<TaskView>()
        .post("/api/v1/batches/{batch}/cancel", Scope(JobsWrite), api::batches::cancel)
        .about("Cancels the tasks of a batch that have not ended.")
        .answers::<Done>()
        .post("/api/v1/batches/{batch}/retry", Scope(JobsWrite), api::batches::retry)
        .status(StatusCode::CREATED)
        .about("Submits a new batch of the tasks that failed or were cancelled. `Idempotency-Key` has its id.")
        .answers::<SubmittedBatch>()
        .get("/api/v1/batches/{batch}/results.csv", Scope(JobsRead), api::batches::results)
        .streams("text/csv")
        .about("A table with one line for each task: its parameters, its result and its last measurements.")
        .get("/api/v1/batches/{batch}/artifacts.tar", Scope(JobsRead), transfer::get_tar_of_batch)
        .streams("application/x-tar")
        .about("All output files of all tasks, in a directory for each index.")
        .get("/api/v1/batches/{batch}/events", Scope(JobsRead), api::batches::events)
        .query::<api::jobs::TrailPage>()
        .about("A batch's own events. The events of its tasks are those of jobs.")
        .pages::<TrailEvent>()
}
