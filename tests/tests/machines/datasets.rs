//! Datasets: directories of files that the client uploads, and that jobs read from the machine's cache or change in a
//! copy of their own.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use gpubnb_events::dataset::{DatasetFile, DatasetManifest};
use gpubnb_tests::{
    jobs::wait_until_running,
    shared::{Plan, SharedMarket},
    system::MarketSettings,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{ordinary::succeeds_as_stranger, person::Person};

static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    Plan::with_settings(MarketSettings { services, ..MarketSettings::default() })
        .with_worker("attic", &["--slots", "4"])
});

const IMAGE: &str = "gpubnb/hostile:1";

#[tokio::test]
async fn two_uploads_of_one_person_wait_for_each_other() {
    let market = MARKET.open().await.unwrap();
    let person = Person::new(&market, "two-uploads").await;
    for (directory, own) in [("a", "only in a"), ("b", "only in b")] {
        for n in 0..700 {
            person.write(&format!("{directory}/{n}.txt"), format!("both have {n}"));
        }
        person.write(&format!("{directory}/own.txt"), own);
    }
    let uploads =
        [("a", "two-a"), ("b", "two-b")].map(|(dir, name)| person.start(&["data", "push", dir, "--name", name]));
    // And one of them twice.
    let again = person.start(&["data", "push", "a", "--name", "two-a"]);
    for mut upload in uploads.into_iter().chain([again]) {
        assert!(upload.wait().unwrap().success());
    }
    let arguments = ["--image", IMAGE, "--data", "two-a", "--data", "two-b", "--time", "60", "--", "succeed"];
    person.run_successfully(&[&["run"], &arguments[..]].concat());
}

/// All files of the machine's cache of datasets.
fn cached_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            files.extend(cached_files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[tokio::test]
async fn one_command_runs_a_directory_with_a_dataset_beside_it() {
    let market = MARKET.open().await.unwrap();
    let person = Person::new(&market, "one-command").await;
    person.write("words/deep/a.txt", "shared");
    person.write("words/deep/same.txt", "shared");
    let stored = person.json(&["data", "push", "words", "--name", "words"]);
    assert_eq!((&stored["files"], &stored["bytes"]), (&json!(2), &json!(12)), "{stored}");

    person.write("project/input.txt", "first");
    person.write("project/bin/run.sh", "#!/bin/sh\n");
    let program = person.home.join("project/bin/run.sh");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    symlink("input.txt", person.home.join("project/latest")).unwrap();
    person.write("project/.gitignore", "secret*\n");
    person.write("project/secret.key", "do not upload");
    let file =
        format!("image = '{IMAGE}'\ncommand = ['use-directory']\ntime_seconds = 60\n[[datasets]]\ndataset = 'words'\n");
    person.write("project/gpubnb.toml", file);
    person.run_successfully(&["run", "project", "-o", "out"]);
    assert_eq!(fs::read_to_string(person.home.join("out/sum.txt")).unwrap(), "firstshared");
    assert_eq!(fs::read_to_string(person.home.join("project/input.txt")).unwrap(), "first", "the job had a copy");

    // The same job once more: the machine has the data, and sees the changed code.
    person.write("project/input.txt", "second");
    person.run_successfully(&["run", "project", "-o", "again"]);
    assert_eq!(fs::read_to_string(person.home.join("again/sum.txt")).unwrap(), "secondshared");
    let cache = market.path().join("attic/datasets");
    let words: Vec<_> = cached_files(&cache).into_iter().filter(|path| fs::read(path).unwrap() == b"shared").collect();
    let inodes: std::collections::HashSet<_> = words.iter().map(|path| fs::metadata(path).unwrap().ino()).collect();
    assert_eq!((words.len(), inodes.len()), (3, 1), "equal files are one file: {words:?}");
    fs::set_permissions(market.path(), fs::Permissions::from_mode(0o711)).unwrap();
    for file in words {
        assert!(!succeeds_as_stranger("cat", &[&file]), "{}", file.display());
    }

    // The ignored file is not in the dataset, and the event of the job has no names of files.
    let list = person.json(&["data", "list"]);
    let code = list[0]["dataset"].as_str().unwrap();
    let listed = person.run_successfully(&["data", "info", &code[..8]]);
    assert!(listed.contains("input.txt") && !listed.contains("secret"), "{listed}");
    let jobs = person.json(&["jobs"]);
    let mounts = &jobs["rows"][0]["spec"]["datasets"];
    assert_eq!(mounts[0]["directory"], "words");
    assert_eq!((&mounts[1]["directory"], &mounts[1]["writable"]), (&json!("code"), &json!(true)));
}

#[tokio::test]
async fn thousands_of_files_are_sent_in_packs_once_and_only_changes_later() {
    let market = MARKET.open().await.unwrap();
    let person = Person::new(&market, "thousands").await;
    for n in 0..2_100 {
        person.write(&format!("many/{}/{n}.txt", n % 7), format!("file {n}"));
    }
    person.write("many/large.bin", vec![7; 20 << 20]);
    let first = person.json(&["data", "push", "many", "--name", "many"]);
    assert_eq!(first["files"], 2_101);
    // The manifest of a changed directory: the market misses the one new content.
    person.write("many/3/new.txt", "new");
    let read = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        let path = path.strip_prefix(person.home.join("many")).unwrap().to_str().unwrap().to_owned();
        let (sha256, exec) = (gpubnb_events::hex(Sha256::digest(&bytes)), false);
        DatasetFile { path, bytes: bytes.len() as u64, sha256, exec }
    };
    let files = cached_files(&person.home.join("many")).iter().map(|path| read(path)).collect();
    let manifest = DatasetManifest::new(files, Vec::new());
    let put = |manifest: DatasetManifest| {
        let path = format!("/api/v1/datasets/{}", manifest.id().unwrap());
        let request = market.consumer.build_request(Method::PUT, &path);
        async move { request.json(&manifest).send().await.unwrap() }
    };
    let upload: Value = put(manifest.clone()).await.json().await.unwrap();
    let missing = upload["missing"].as_array().unwrap();
    assert_eq!((missing.len(), &missing[0]["count"]), (1, &json!(1)), "{upload}");
    // Bytes that are not those of the file are refused, and the dataset does not exist.
    let address = format!("/api/v1/datasets/{}/contents?first={}&count=1", manifest.id().unwrap(), missing[0]["first"]);
    let wrong = market.consumer.build_request(Method::PUT, &address).body("bad").send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let second = person.json(&["data", "push", "many", "--name", "many"]);
    assert_ne!(second["dataset"], first["dataset"]);
    // Another account does not see the files.
    let stranger = market.new_consumer().await.unwrap();
    let path = format!("/api/v1/datasets/{}", manifest.id().unwrap());
    let foreign = stranger.build_request(Method::GET, &path).send().await.unwrap();
    assert_eq!(foreign.status(), StatusCode::NOT_FOUND);
    let request = stranger.build_request(Method::PUT, &path).json(&manifest).send().await.unwrap();
    let upload: Value = request.json().await.unwrap();
    assert_eq!(upload["stored"], Value::Null, "what another account has stored is missing here: {upload}");

    // A job gets all of it, and the dataset cannot be removed under the job.
    let arguments = ["run", "--image", IMAGE, "--data", "many", "--time", "60", "--detach", "--", "write-slowly"];
    let job = person.run_successfully(&arguments);
    let id = second["dataset"].as_str().unwrap();
    assert!(person.refusal(&["data", "delete", id]).contains("has not ended"));
    wait_until_running(&market.consumer, job.trim()).await;
    let files = cached_files(&market.path().join("attic/datasets"));
    assert!(files.iter().filter(|path| path.to_string_lossy().contains(&format!("trees/{id}/"))).count() == 2_102);
    person.run_successfully(&["cancel", job.trim()]);
    assert_eq!(person.run(&["wait", job.trim()]).status.code(), Some(130));
    person.run_successfully(&["data", "delete", id]);
    // The other dataset still has the files that both had.
    let (first, name) = (first["dataset"].as_str().unwrap(), "many");
    assert!(person.run_successfully(&["data", "info", name]).starts_with(first));
    person.run_successfully(&["run", "--image", IMAGE, "--data", name, "--time", "60", "--", "succeed"]);
}

#[tokio::test]
async fn a_directory_or_a_dataset_that_cannot_be_used_is_refused_before_money_is_held() {
    let market = MARKET.open().await.unwrap();
    let person = Person::new(&market, "refused").await;
    let refused = |arguments: &[&str], message: &str| {
        let refusal = person.refusal(arguments);
        assert!(refusal.contains(message), "{arguments:?}: {refusal}");
    };
    refused(&["run", "missing", "--image", IMAGE], "is not a directory");
    person.write("project/a.txt", "a");
    refused(&["run", "project"], "the job has no program");
    refused(&["run", "project", "--template", "noop"], "leave the directory out");
    refused(&["run", "--image", IMAGE, "--data", "nothing", "--", "succeed"], "You have no dataset nothing");
    person.write("project/gpubnb.toml", "imgae = 'a'");
    refused(&["run", "project"], "imgae");
    person.write("odd/a\u{202e}b.txt", "a");
    refused(&["data", "push", "odd"], "not a plain relative path");
    person.write("out/a.txt", "a");
    symlink("/etc/passwd", person.home.join("out/link")).unwrap();
    refused(&["data", "push", "out"], "leads out of the dataset");
    fs::create_dir_all(person.home.join("empty")).unwrap();
    refused(&["data", "push", "empty"], "has no files");
    fs::create_dir_all(person.home.join("huge")).unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        fs::File::create(person.home.join("huge").join(name)).unwrap().set_len(1 << 30).unwrap();
    }
    refused(&["data", "push", "huge"], "5120 MiB in 5 files");
    fs::remove_dir_all(person.home.join("huge")).unwrap();
    let wallet = || market.consumer.get("/wallet");
    let held = wallet().await.unwrap()["balance"]["held"].clone();
    // A copy needs room on the job's disk.
    person.write("copy/a.bin", vec![1; 3 << 20]);
    person.run_successfully(&["data", "push", "copy", "--name", "copy"]);
    let small =
        ["run", "--image", IMAGE, "--output-mib", "1", "--disk-mib", "2", "--data", "copy:c:rw", "--", "succeed"];
    refused(&small, "ask for a larger disk");
    assert_eq!(
        person.json(&["data", "list"]).as_array().unwrap().iter().filter(|row| row["name"] == "copy").count(),
        1
    );

    assert_eq!(wallet().await.unwrap()["balance"]["held"], held, "no money was held");

    // A manifest that does not match its id, or that is dangerous.
    let put = async |id: &str, body: &Value| {
        let path = format!("/api/v1/datasets/{id}");
        market.consumer.build_request(Method::PUT, &path).json(body).send().await.unwrap().status()
    };
    let sha256 = "0".repeat(64);
    let file = |path: &str| json!({ "path": path, "bytes": 1, "sha256": sha256, "exec": false });
    let manifest = json!({ "files": [file("a")], "links": [] });
    assert_eq!(put(&sha256, &manifest).await, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(put("short", &manifest).await, StatusCode::NOT_FOUND);
    let dangerous = json!({ "files": [file("../../etc/cron.d/x")], "links": [] });
    assert_eq!(put(&sha256, &dangerous).await, StatusCode::UNPROCESSABLE_ENTITY);
}
