//! The JSON API under `/api/v1`. It offers the same data as the pages.
//!
//! Belongs here: handlers that read and answer JSON. Must not come here: HTML, which belongs to `page`.

use std::str::FromStr;

use axum::http::HeaderMap;
use gpubnb_events::ids::BadId;

use crate::error::Problem;

pub(crate) mod account;
pub(crate) mod batches;
pub(crate) mod datasets;
pub(crate) mod jobs;
pub(crate) mod machines;
pub(crate) mod ops;
pub(crate) mod published;
pub(crate) mod secrets;
pub(crate) mod stream;
pub(crate) mod wallet;
pub(crate) mod webhooks;

/// The id that a request gives to a new job or batch: in the header `Idempotency-Key`, in the body, or in both.
fn idempotency_key<Id: FromStr<Err = BadId> + PartialEq>(
    headers: &HeaderMap,
    in_body: Option<Id>,
) -> Result<Option<Id>, Problem> {
    let in_header = headers.get("idempotency-key").map(|value| value.to_str().unwrap_or_default().parse());
    let in_header: Option<Id> =
        in_header.transpose().map_err(|e: BadId| Problem::invalid("idempotency-key", e.to_string()))?;
    if in_header.is_some() && in_body.is_some() && in_header != in_body {
        let detail = "The header and the body have different ids: send the id once.";
        return Err(Problem::invalid("idempotency-key", detail));
    }
    Ok(in_header.or(in_body))
}
