//! The installer of the worker, which a market offers to the owners of machines.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use gpubnb_tests::{
    api_client::ApiClient,
    programs::binary,
    system::{MarketSettings, System},
};

/// Runs the installer as a newcomer does, with the home and the root of the file system in `directory`.
fn install(script: &str, market: &str, directory: &Path) -> Output {
    let mut shell = Command::new("sh")
        .args(["-s", "--", market])
        .env("HOME", directory)
        .env("PREFIX", directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    shell.wait_with_output().unwrap()
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn the_installer_puts_the_workers_program_in_place_or_leaves_nothing() {
    let system = System::start(MarketSettings::default()).await.unwrap();
    let (status, script) = ApiClient::new(&system.url()).bytes("/install.sh").await.unwrap();
    assert_eq!(status, 200);
    let script = String::from_utf8(script).unwrap();

    let good = tempfile::tempdir().unwrap();
    let (text, url, path) = (script.clone(), system.url(), good.path().to_owned());
    let output = tokio::task::spawn_blocking(move || install(&text, &url, &path)).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let installed = files(good.path());
    assert_eq!(installed.len(), 1, "{installed:?}");
    assert!(fs::read(&installed[0]).unwrap() == fs::read(binary("gpubnb-provider").unwrap()).unwrap());

    // A download with another checksum is not installed.
    let bad = tempfile::tempdir().unwrap();
    let sum = script.split('"').find(|text| text.ends_with("  $new")).unwrap().split(' ').next().unwrap();
    let other = script.replace(sum, &"0".repeat(64));
    let (url, path) = (system.url(), bad.path().to_owned());
    let output = tokio::task::spawn_blocking(move || install(&other, &url, &path)).await.unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("the download is damaged"), "{output:?}");
    assert_eq!(files(bad.path()), Vec::<std::path::PathBuf>::new());
}
