//! Jobs that may reach one host of the internet, and try to reach everything else.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::Duration,
};

/// The proxies that a job finds on its loopback (docs/jobs.md).
const HTTP: ([u8; 4], u16) = ([127, 0, 0, 1], 3128);
const SOCKS: ([u8; 4], u16) = ([127, 0, 0, 1], 1080);
const TIMEOUT: Duration = Duration::from_secs(15);
/// The host that the job may reach.
const ALLOWED: &str = "files.example";
/// Addresses that the job must not reach: the machine and its networks, another host, another port of the allowed
/// host, and a host whose name only begins like the allowed host.
const FORBIDDEN: [&str; 12] = [
    "127.0.0.1:22",
    "127.0.0.1:4222",
    "localhost:80",
    "0.0.0.0:80",
    "169.254.169.254:80",
    "metadata.google.internal:80",
    "172.17.0.1:2375",
    "10.0.0.1:443",
    "192.168.1.1:80",
    "other.example:443",
    "files.example:22",
    "files.example.evil.example:443",
];

/// Sends bytes to a proxy, and returns what the proxy answers until the connection ends or the time is over.
fn ask(proxy: ([u8; 4], u16), sent: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(proxy), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(sent)?;
    let mut got = Vec::new();
    // The bytes that arrived before an error are the answer: a tunnel that the proxy opened never ends by itself.
    match stream.read_to_end(&mut got) {
        Err(e) if got.is_empty() => Err(e),
        _ => Ok(got),
    }
}

/// Gets a file of the allowed host by a plain request.
fn get_allowed() -> bool {
    let request = format!("GET http://{ALLOWED}/hello HTTP/1.1\r\nHost: {ALLOWED}\r\nConnection: close\r\n\r\n");
    let got = ask(HTTP, request.as_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&got);
    println!("allowed: {}", text.lines().next().unwrap_or("no answer"));
    text.starts_with("HTTP/1.1 200") && text.contains("hello from outside")
}

/// A SOCKS5 request for `target`, a host name with a port. The command 1 (CONNECT) asks for a connection.
fn socks_request(command: u8, target: &str) -> Vec<u8> {
    let (host, port) = target.rsplit_once(':').unwrap_or((target, "80"));
    let length = u8::try_from(host.len()).unwrap_or_default();
    let port = port.parse().unwrap_or(80_u16).to_be_bytes();
    [&[5, 1, 0, 5, command, 0, 3, length], host.as_bytes(), &port].concat()
}

/// Tries to reach each forbidden address through both proxies. An attempt counts as held if the proxy refuses it (403
/// of HTTP, reply 2 of SOCKS5), or if no complete answer comes.
fn reach_forbidden() -> bool {
    let mut all_held = true;
    for target in FORBIDDEN {
        let tunnel = format!("CONNECT {target} HTTP/1.1\r\nHost: {ALLOWED}\r\nConnection: close\r\n\r\n");
        let plain = format!("GET http://{target}/ HTTP/1.1\r\nHost: {ALLOWED}\r\nConnection: close\r\n\r\n");
        for request in [tunnel, plain] {
            let got = ask(HTTP, request.as_bytes()).unwrap_or_default();
            let is_held = got.starts_with(b"HTTP/1.1 403") || got.is_empty();
            println!("HTTP {target}: {}", if is_held { "held" } else { "GOT THROUGH" });
            all_held &= is_held;
        }
        let got = ask(SOCKS, &socks_request(1, target)).unwrap_or_default();
        let is_held = got.get(..4) == Some(&[5, 0, 5, 2]) || got.is_empty();
        println!("SOCKS {target}: {}", if is_held { "held" } else { "GOT THROUGH" });
        all_held &= is_held;
    }
    // The proxy supports neither BIND (2) nor UDP ASSOCIATE (3), even for the allowed host: it must send reply 7.
    for command in [2, 3] {
        let got = ask(SOCKS, &socks_request(command, &format!("{ALLOWED}:80"))).unwrap_or_default();
        let is_held = got.get(..4) == Some(&[5, 0, 5, 7]);
        println!("SOCKS command {command}: {}", if is_held { "held" } else { "GOT THROUGH" });
        all_held &= is_held;
    }
    all_held
}

/// Opens more connections than a job may have, sends half a request on each, and sees that the proxy still answers
/// after they are closed.
fn flood() -> bool {
    let mut open = Vec::new();
    for _ in 0..400 {
        if let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::from(HTTP), TIMEOUT) {
            drop(stream.write_all(b"GET http://files.example/ HTTP/1.1\r\nX: "));
            open.push(stream);
        }
    }
    println!("{} half-open requests", open.len());
    drop(open);
    (0..60).any(|_| {
        sleep(Duration::from_millis(500));
        get_allowed()
    })
}

/// Asks for an endless file on many connections and reads none of them, so that all buffers on the way fill up. The
/// proxy must go on to answer.
fn leave_unread() -> bool {
    let mut open = Vec::new();
    for _ in 0..100 {
        if let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::from(HTTP), TIMEOUT) {
            drop(stream.write_all(b"GET http://files.example/endless HTTP/1.1\r\nHost: files.example\r\n\r\n"));
            open.push(stream);
        }
    }
    sleep(Duration::from_secs(3));
    let is_answered = get_allowed();
    println!("with {} unread files: {}", open.len(), if is_answered { "held" } else { "GOT THROUGH" });
    is_answered
}

/// Tries all ways out. `direct` tries the network without the proxies.
pub(crate) fn try_all(direct: impl FnOnce() -> bool) -> bool {
    let (direct, allowed) = (direct(), get_allowed());
    let (forbidden, unread, flooded) = (reach_forbidden(), leave_unread(), flood());
    println!(
        "direct held: {direct}, allowed reached: {allowed}, forbidden held: {forbidden}, after a flood: {flooded}"
    );
    direct && allowed && forbidden && unread && flooded
}

/// Keeps a tunnel open and reads from it. Fails when the tunnel breaks.
pub(crate) fn hold_tunnel() -> bool {
    let hold = || -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(HTTP), TIMEOUT)?;
        stream.write_all(format!("CONNECT {ALLOWED}:443 HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n").as_bytes())?;
        println!("the tunnel is open");
        let mut bytes = [0; 64];
        while stream.read(&mut bytes)? > 0 {}
        Ok(())
    };
    println!("the tunnel has ended: {:?}", hold());
    false
}
