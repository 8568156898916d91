//! Tests of a door over real sockets. A mirror stands for the internet.

use std::{net::SocketAddr, os::unix::fs::MetadataExt as _, path::PathBuf};

use gpubnb_dialer::Mirror;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixStream},
};

use super::*;

/// A door, and a host of the internet that answers each connection with a prefix and the bytes that it got.
struct DoorAndHost {
    directory: TempDir,
    open: OpenDoor,
    notes: mpsc::Receiver<String>,
}

/// The user of this test.
fn me() -> (u32, u32) {
    let own = std::fs::metadata("/proc/self").unwrap();
    (own.uid(), own.gid())
}

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nkeep-alive: 7\r\n\r\nhello";

/// A host that waits for the first bytes of each connection, and answers them with a prefix and the same bytes.
async fn echo(prefix: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut got = vec![0; 4_096];
                let count = stream.read(&mut got).await.unwrap_or(0);
                drop(stream.write_all(prefix.as_bytes()).await);
                drop(stream.write_all(&got[..count]).await);
            });
        }
    });
    address
}

impl DoorAndHost {
    async fn open(hosts: &str, prefix: &'static str, max_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mirror = |host: &str, address| Mirror { host: host.to_owned(), address };
        let address = echo(prefix).await;
        let dialer =
            Dialer::default().with_mirrors(&[mirror("files.example", address), mirror("other.example", address)]);
        let rules = Rules { hosts: hosts.parse().unwrap(), owner: Egress::any(), ports: vec![80, 443], max_bytes };
        let (sender, notes) = mpsc::channel(100);
        let rate = Arc::new(Rate::megabits(0));
        let open =
            OpenDoor::open(&directory.path().join("door"), me(), rules, dialer, rate, Traffic::default(), sender);
        Self { open: open.unwrap(), directory, notes }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join("door").join(name)
    }

    /// Sends bytes to a socket of the door, and returns all that comes back.
    async fn exchange(&self, socket: &str, sent: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.socket(socket)).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut got = Vec::new();
        drop(stream.read_to_end(&mut got).await);
        got
    }

    async fn http(&self, sent: &str) -> String {
        String::from_utf8(self.exchange("http", sent.as_bytes()).await).unwrap()
    }
}

#[tokio::test]
async fn a_tunnel_reaches_an_allowed_host_and_its_bytes_are_counted() {
    let street = DoorAndHost::open("*.example", "+", 1 << 30).await;
    let got = street.http("CONNECT files.example:443 HTTP/1.1\r\nHost: x\r\n\r\nhello").await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\n+hello"), "{got}");
    let mut request = b"\x05\x01\x00\x05\x01\x00\x03\x0dfiles.example\x01\xbb".to_vec();
    request.extend_from_slice(b"hello");
    let got = street.exchange("socks", &request).await;
    assert_eq!(got, b"\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00+hello");
    let traffic = street.open.traffic();
    assert_eq!((traffic.hosts.len(), traffic.refused), (1, 0));
    assert_eq!((&*traffic.hosts[0].host, traffic.hosts[0].received, traffic.hosts[0].sent), ("files.example", 12, 10));
}

#[tokio::test]
async fn a_plain_request_is_sent_on_without_the_headers_of_the_connection() {
    let street = DoorAndHost::open("files.example", ANSWER, 1 << 30).await;
    let got = street
        .http(
            "GET http://files.example/a?b HTTP/1.1\r\nHost: evil\r\nProxy-Authorization: x\r\n\
            Connection: close, X-Own\r\nX-Own: 1\r\n\r\n",
        )
        .await;
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK") && !head.contains("keep-alive") && body == "hello", "{got}");
    // The host sends the request back after the announced five bytes, where the proxy ignores it. The count of sent
    // bytes shows which request the host got.
    let sent = street.open.traffic().hosts[0].sent;
    assert_eq!(sent, "GET /a?b HTTP/1.1\r\nHost: files.example\r\n\r\n".len() as u64);
}

#[tokio::test]
async fn what_the_rules_forbid_is_refused_by_every_way_and_named_once() {
    let mut street = DoorAndHost::open("files.example,127.0.0.1,169.254.169.254,*.internal", "+", 1 << 30).await;
    for (target, why) in [
        ("other.example:443", "other.example: not allowed; add it"),
        ("files.example:22", "files.example:22: not allowed; a job on this machine may use the ports 80, 443"),
        ("127.0.0.1:80", "127.0.0.1 has no public address"),
        ("169.254.169.254:80", "169.254.169.254 has no public address"),
        ("metadata.internal:80", "metadata.internal has no public address"),
        ("[::1]:80", "::1: not allowed"),
    ] {
        for sent in [
            format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            format!("GET http://{target}/ HTTP/1.1\r\nHost: files.example\r\nConnection: close\r\n\r\n"),
        ] {
            let got = street.http(&sent).await;
            assert!(got.starts_with("HTTP/1.1 403") && got.contains(why), "{target}: {got}");
        }
        assert!(street.notes.try_recv().unwrap().contains(why), "{target}");
        assert!(street.notes.try_recv().is_err(), "{target}: a line is written once");
    }
    for request in [
        &b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"[..],
        b"\x05\x01\x00\x05\x01\x00\x03\x0dother.example\x00\x50",
    ] {
        assert_eq!(street.exchange("socks", request).await[..4], *b"\x05\x00\x05\x02", "{request:?}");
    }
    for command in [b'\x02', b'\x03'] {
        let request = [&b"\x05\x01\x00\x05"[..], &[command], b"\x00\x01\x09\x09\x09\x09\x00\x50"].concat();
        assert_eq!(
            street.exchange("socks", &request).await[..4],
            *b"\x05\x00\x05\x07",
            "no other connections than TCP"
        );
    }
    let traffic = street.open.traffic();
    assert_eq!((traffic.hosts.len(), traffic.refused), (0, 14));
}

#[tokio::test]
async fn what_is_no_proxy_request_is_answered_and_reaches_nothing() {
    let street = DoorAndHost::open("any", "+", 1 << 30).await;
    for sent in [
        "GET / HTTP/1.1\r\nHost: files.example\r\nConnection: close\r\n\r\n",
        "GET https://files.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET ftp://files.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "CONNECT files.example HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "\u{1}nonsense\r\n\r\n",
    ] {
        assert!(street.http(sent).await.starts_with("HTTP/1.1 400"), "{sent}");
    }
    assert_eq!(street.exchange("socks", b"GET / HTTP/1.1\r\n\r\n").await, b"");
    assert!(street.open.traffic().hosts.is_empty());
}

#[tokio::test]
async fn an_attempt_that_has_used_its_bytes_up_exchanges_no_more() {
    let mut street = DoorAndHost::open("any", "0123456789", 12).await;
    let got = street.http("CONNECT files.example:443 HTTP/1.1\r\nHost: x\r\n\r\nhello").await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    assert!(street.notes.recv().await.unwrap().contains("used up"));
    let got = street.http("CONNECT files.example:443 HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 403") && got.contains("used up"), "{got}");
}

#[tokio::test]
async fn a_closed_door_closes_its_connections_and_opens_again_at_the_same_place() {
    let street = DoorAndHost::open("any", "+", 1 << 30).await;
    let mut stream = UnixStream::connect(street.socket("http")).await.unwrap();
    stream.write_all(b"CONNECT files.example:443 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 19];
    stream.read_exact(&mut head).await.unwrap();
    let DoorAndHost { directory, open, .. } = street;
    drop(open);
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest).await);
    let rules = Rules { hosts: Egress::any(), owner: Egress::any(), ports: vec![443], max_bytes: 1 };
    let (sender, _notes) = mpsc::channel(1);
    let (place, rate) = (directory.path().join("door"), Arc::new(Rate::megabits(0)));
    let open = OpenDoor::open(&place, me(), rules, Dialer::default(), rate, Traffic::default(), sender).unwrap();
    drop(UnixStream::connect(place.join("ready")).await.unwrap());
    open.wait_until_ready().await;
}
