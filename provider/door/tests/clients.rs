//! Tries programs that jobs use, such as `curl` and `git`, through a door. The programs get only the environment
//! variables that a job gets. A file server stands for the internet. The programs run on this machine and not in a
//! container, but they cannot go around the door: only the door's mirror knows the host `files.example`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::{
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
};

use gpubnb_dialer::{Dialer, Mirror};
use gpubnb_door::{OpenDoor, Rate, Rules, proxy_variables};
use gpubnb_events::spec::{Egress, Traffic};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    process::Command,
    sync::mpsc,
};

/// Serves the files of a directory by HTTP.
async fn serve_files(root: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, root.clone()));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, root: PathBuf) {
    let (mut request, mut bytes) = (Vec::new(), [0; 4_096]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut bytes).await {
            Ok(count) if count > 0 => request.extend_from_slice(&bytes[..count]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let path = text.split(' ').nth(1).unwrap().split('?').next().unwrap().trim_start_matches('/').to_owned();
    let file = if path.ends_with('/') { root.join(path).join("index.html") } else { root.join(path) };
    let (status, body) = std::fs::read(file).map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let kind = if text.contains("/simple/") { "text/html" } else { "application/octet-stream" };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
    drop(stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await);
    drop(stream.write_all(&body).await);
}

/// Does the work of the relay: carries the connections to a port of loopback to a socket of the door.
async fn relay(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut door = UnixStream::connect(&socket).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut door).await });
        }
    });
    port
}

struct Job {
    directory: TempDir,
    open: OpenDoor,
    http: u16,
    socks: u16,
}

impl Job {
    /// A job whose one host, `files.example`, has the files of the directory `www`.
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let www = directory.path().join("www");
        std::fs::create_dir(&www).unwrap();
        std::fs::write(www.join("hello"), "hello from outside").unwrap();
        let mirror = Mirror { host: "files.example".to_owned(), address: serve_files(www).await };
        let rules = Rules {
            hosts: "files.example".parse().unwrap(),
            owner: Egress::any(),
            ports: vec![80, 443],
            max_bytes: 1 << 30,
        };
        let (owner, (notes, _)) = (std::fs::metadata("/proc/self").unwrap(), mpsc::channel(1));
        let (place, rate) = (directory.path().join("door"), Arc::new(Rate::megabits(0)));
        let dialer = Dialer::default().with_mirrors(&[mirror]);
        let open =
            OpenDoor::open(&place, (owner.uid(), owner.gid()), rules, dialer, rate, Traffic::default(), notes).unwrap();
        let (http, socks) = (relay(place.join("http")).await, relay(place.join("socks")).await);
        Self { directory, open, http, socks }
    }

    fn www(&self) -> PathBuf {
        self.directory.path().join("www")
    }

    /// Runs a shell command with the variables of a job, in an empty directory.
    async fn run(&self, script: &str) -> Output {
        let work = self.directory.path().join("work");
        std::fs::create_dir_all(&work).unwrap();
        let mut command = Command::new("sh");
        command.args(["-euc", script]).current_dir(&work).env_clear().env("HOME", &work);
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("WWW", self.www());
        for (name, value) in proxy_variables() {
            let value =
                value.replace(":3128", &format!(":{}", self.http)).replace(":1080", &format!(":{}", self.socks));
            command.env(name, value);
        }
        command.output().await.unwrap()
    }

    async fn succeeds(&self, script: &str) -> String {
        let output = self.run(script).await;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "{script}: {text}");
        text
    }
}

fn is_installed(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| Path::new(&dir).join(program).is_file())
}

#[tokio::test]
async fn curl_reaches_the_host_by_each_proxy_and_is_told_of_a_refused_host() {
    let job = Job::start().await;
    let tunnel = "curl -sS --proxytunnel http://files.example/hello";
    let socks = "curl -sS --proxy $GPUBNB_SOCKS_PROXY http://files.example/hello";
    for script in ["curl -sS http://files.example/hello", tunnel, socks, "curl -sS http://FILES.example:80/hello"] {
        assert_eq!(job.succeeds(script).await, "hello from outside", "{script}");
    }
    let refused = job.succeeds("curl -sS http://other.example/").await;
    assert!(refused.contains("other.example: not allowed; add it"), "{refused}");
    let refused = job.run("curl -sS https://other.example/").await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("403"), "{refused:?}");
    // The job's own servers are not asked for by the proxy.
    let own = job.run("curl -sS http://localhost:9/").await;
    assert!(!String::from_utf8_lossy(&own.stdout).contains("not allowed"), "{own:?}");
    let traffic = job.open.traffic();
    assert_eq!((traffic.hosts.len(), traffic.refused), (1, 2));
}

#[tokio::test]
async fn git_clones_a_repository() {
    let job = Job::start().await;
    let make = "export GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@a GIT_COMMITTER_NAME=a \
        GIT_COMMITTER_EMAIL=a@a; git init -q source; cd source; echo text > file; git add file; git commit -qm first; \
        git clone -q --bare . $WWW/repo.git; cd $WWW/repo.git; git update-server-info";
    job.succeeds(make).await;
    assert_eq!(job.succeeds("git clone -q http://files.example/repo.git clone; cat clone/file").await, "text\n");
}

#[tokio::test]
async fn pip_downloads_a_package() {
    let job = Job::start().await;
    let make = r#"mkdir -p $WWW/simple/parcel; python3 - <<END
import os, zipfile
name = os.environ["WWW"] + "/parcel-1.0-py3-none-any.whl"
with zipfile.ZipFile(name, "w") as wheel:
    wheel.writestr("parcel.py", "")
    wheel.writestr("parcel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n")
    wheel.writestr("parcel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("parcel-1.0.dist-info/RECORD", "")
END
echo '<a href="/parcel-1.0-py3-none-any.whl">parcel-1.0-py3-none-any.whl</a>' > $WWW/simple/parcel/index.html"#;
    job.succeeds(make).await;
    let download = "PIP_CONFIG_FILE=/dev/null python3 -m pip download -q --disable-pip-version-check --no-cache-dir \
        --index-url http://files.example/simple/ --trusted-host files.example parcel; ls";
    assert!(job.succeeds(download).await.contains("parcel-1.0-py3-none-any.whl"));
}

#[tokio::test]
async fn programs_of_python_and_apt_find_the_proxy() {
    let job = Job::start().await;
    let urllib = "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://files.example/hello\").read())'";
    assert_eq!(job.succeeds(urllib).await, "b'hello from outside'\n");
    if !is_installed("apt-get") {
        return eprintln!("apt-get is not installed: it is not tried");
    }
    let update = "mkdir -p apt/lists/partial apt/cache/archives/partial $WWW/apt; touch apt/status; \
        printf 'Package: parcel\\nVersion: 1\\nArchitecture: all\\nFilename: a.deb\\nSize: 1\\n' > $WWW/apt/Packages; \
        echo 'deb [trusted=yes] http://files.example/apt ./' > apt/list; \
        apt-get -q -o APT::Sandbox::User=root -o Dir::Etc::SourceList=$PWD/apt/list -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Parts=/dev/null -o Dir::Etc::Main=/dev/null -o Dir::State=$PWD/apt \
        -o Dir::State::Status=$PWD/apt/status \
        -o Dir::Cache=$PWD/apt/cache update 2>&1";
    let updated = job.succeeds(update).await;
    assert!(updated.contains("Get:"), "{updated}");
    assert!(job.open.traffic().hosts[0].received > 0);
}
