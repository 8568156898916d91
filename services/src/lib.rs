//! The decisions of `GPUbnb`: a pure domain, the process managers that drive it, and the command endpoints.
//!
//! Belongs here: who may do what, and what follows from it. Must not come here: a read model, a page, SQL or sled.

pub mod domain;
