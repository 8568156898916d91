//! `gpubnb-test-market`: holds a market that many tests of one binary share.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    gpubnb_tests::shared::host().await
}
