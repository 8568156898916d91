//! The runtime of every process: the connection to the broker, requests and answers, logs, metrics, traces, permits.
//!
//! Belongs here: what each process does alike, whatever it decides or answers. Must not come here: MARKET
//! (`gpubnb-log`), or anything that only one process does.

#[cfg(feature = "monitor")]
mod collector;
pub mod metric;
#[cfg(feature = "monitor")]
pub mod monitor;
pub mod nats;
pub mod observe;
pub mod permit;
pub mod rpc;
pub mod trace;
