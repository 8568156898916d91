//! The benchmarks. To come.
fn main() {}
