//! The Python package against a market: its own tests, and the examples of its guide. The package is built as a wheel
//! and installed, as a person has it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use gpubnb_tests::{
    programs::binary,
    shared::{Plan, SharedMarket},
    system::MarketSettings,
};

const RIGHTS: [&str; 4] = ["jobs:read", "jobs:write", "wallet:read", "secrets:write"];

/// The Python in which `deploy/python-package.sh` installs the package.
fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/sdk/bin/python")
}

/// The image with the same Python (`deploy/images.sh`).
fn image() -> String {
    let version = "import sys; print(*sys.version_info[:2], sep='.')";
    let printed = Command::new(python()).args(["-c", version]).output().unwrap().stdout;
    format!("gpubnb/python:{}", String::from_utf8(printed).unwrap().trim())
}

static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = vec!["--approve-image".to_owned(), image()];
    Plan::with_settings(MarketSettings { services, ..MarketSettings::default() })
        .with_worker("attic", &["--slots", "3"])
        .with_worker("cellar", &["--slots", "3"])
});

#[tokio::test]
async fn the_python_package_passes_its_tests() {
    let market = MARKET.open().await.unwrap();
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/python");
    let home = market.path().join("python");
    std::fs::create_dir_all(&home).unwrap();
    let mut pytest = Command::new(python());
    pytest.args(["-m", "pytest", "-m", "market", "-q", "-p", "no:cacheprovider"]).current_dir(package);
    pytest.env("GPUBNB_URL", market.url()).env("GPUBNB_TOKEN", market.consumer.new_token(&RIGHTS).await.unwrap());
    pytest.env("GPUBNB_TEST_IMAGE", image()).env("GPUBNB_TEST_CLIENT", binary("gpubnb").unwrap());
    pytest.env("XDG_CONFIG_HOME", &home).env("TMPDIR", &home);
    let output = tokio::task::spawn_blocking(move || pytest.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(" passed"), "{text}");
}
