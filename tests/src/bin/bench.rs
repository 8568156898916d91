//! `make bench`: measures the benchmarks' figures. With an argument, such as `fold_rate`, it measures that figure only.

/// The projector's allocator, because this program measures the projector's fold.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let only = std::env::args().nth(1);
    gpubnb_tests::bench::run(only.as_deref()).await
}
