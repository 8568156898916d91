//! The code that every process needs to run: the connection to the broker, requests and answers, log lines, metrics,
//! traces, and permits for file transfers.
//!
//! Belongs here: code that several processes share and that does not depend on the market. Must not come here: access
//! to the stream MARKET (`gpubnb-log`), or code that only one process needs.

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
