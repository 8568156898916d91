//! The relay runs in a small container of its own beside a job. The job shares the relay's network, which has nothing
//! but loopback. The relay listens there, and carries each connection to a socket of the worker (`provider/door`). It
//! decides nothing, and it understands no protocol.
//!
//! Belongs here: copying bytes. Must not come here: a rule, or a dependency, because the worker contains this program.

use std::{
    env,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

/// The ports on loopback, and the worker's socket for each.
const PORTS: [(u16, &str); 2] = [(3128, "http"), (1080, "socks")];
/// The worker's socket to which the relay connects once, as soon as the relay listens on its ports.
const READY: &str = "ready";
/// The argument with which this program tries to reach another relay, as a job does.
const PROBE: &str = "probe";
/// Longest time until a relay answers a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections at once. Further ones are closed.
const MAX_CONNECTIONS: usize = 128;
/// The stack of a thread that copies, bytes.
const STACK: usize = 128 * 1024;
/// Pause after a failed accept, such as one without a free file descriptor.
const RETRY: Duration = Duration::from_millis(100);

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    let argument = env::args_os().nth(1).unwrap_or_default();
    let ended = if argument == PROBE { probe() } else { run(&PathBuf::from(argument)) };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            drop(writeln!(io::stderr(), "relay: {e}"));
            ExitCode::FAILURE
        }
    }
}

fn run(directory: &Path) -> io::Result<()> {
    let mut threads = Vec::new();
    for (port, socket) in PORTS {
        let (listener, socket) = (TcpListener::bind((Ipv4Addr::LOCALHOST, port))?, directory.join(socket));
        threads.push(thread::spawn(move || accept(&listener, &socket)));
    }
    drop(UnixStream::connect(directory.join(READY))?);
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a thread ended"))?;
    }
    Ok(())
}

/// Fails if no proxy answers on loopback.
fn probe() -> io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORTS[0].0))?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    if answer == *b"HTTP/" { Ok(()) } else { Err(io::Error::other("the answer is not HTTP")) }
}

fn accept(listener: &TcpListener, socket: &Path) {
    for accepted in listener.incoming() {
        let Ok(job) = accepted else {
            thread::sleep(RETRY);
            continue;
        };
        if CONNECTIONS.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let socket = socket.to_owned();
        let carrying = thread::Builder::new().stack_size(STACK).spawn(move || {
            drop(carry(job, &socket));
            CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        });
        if carrying.is_err() {
            CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Carries a connection until both directions are closed. If the worker does not run, the connection is closed at once.
fn carry(mut job: TcpStream, socket: &Path) -> io::Result<()> {
    let mut worker = UnixStream::connect(socket)?;
    job.set_nodelay(true)?;
    let (mut from_job, mut to_worker) = (job.try_clone()?, worker.try_clone()?);
    let sending = thread::Builder::new().stack_size(STACK).spawn(move || {
        drop(io::copy(&mut from_job, &mut to_worker));
        drop(to_worker.shutdown(Shutdown::Write));
    })?;
    let copied = io::copy(&mut worker, &mut job);
    // If the worker is gone, nobody takes what the job still writes, so both directions are closed.
    let how = if copied.is_ok() { Shutdown::Write } else { Shutdown::Both };
    drop(job.shutdown(how));
    sending.join().map_err(|_| io::Error::other("a thread ended"))
}
