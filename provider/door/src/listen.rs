//! The sockets of a door, to which the relay connects.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, watch},
};

use crate::{Door, http, socks};

/// The name of each socket. The relay has the same names.
const HTTP: &str = "http";
const SOCKS: &str = "socks";
const READY: &str = "ready";
/// Pause after a failed accept, such as one without a free file descriptor.
const RETRY: Duration = Duration::from_millis(100);

/// Listens on the sockets of a door, until the door is closed. The returned value is true once the relay has connected.
pub(crate) fn listen(door: &Arc<Door>, directory: &Path, (uid, gid): (u32, u32)) -> io::Result<watch::Receiver<bool>> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let (http, socks, ready) = (bind(directory, HTTP)?, bind(directory, SOCKS)?, bind(directory, READY)?);
    // Only the user as which the relay runs may come in: another user of the machine would act in the job's name.
    for path in [HTTP, SOCKS, READY].map(|name| directory.join(name)).iter().chain([&directory.to_owned()]) {
        let owner = fs::metadata(path)?;
        if (owner.uid(), owner.gid()) != (uid, gid) {
            chown(path, Some(uid), Some(gid))?;
        }
    }
    let (set_ready, is_ready) = watch::channel(false);
    let closed = door.closed.clone();
    tokio::spawn(async move {
        while let Some(accepted) = closed.run_until_cancelled(ready.accept()).await {
            match accepted {
                Ok(_) => drop(set_ready.send_replace(true)),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    });
    tokio::spawn(accept(Arc::clone(door), http, Protocol::Http));
    tokio::spawn(accept(Arc::clone(door), socks, Protocol::Socks));
    Ok(is_ready)
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Http,
    Socks,
}

/// Binds a socket. A former run of the worker may have left the file of its socket.
fn bind(directory: &Path, name: &str) -> io::Result<UnixListener> {
    let path = directory.join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // The address of a socket has at most 108 bytes, and the path of the directory may have more.
    let opened = File::open(directory)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the connections to a socket. While the job has `MAX_CONNECTIONS` connections, the next connection waits until
/// one of them ends. The relay has a bound of its own, and closes connections beyond it.
async fn accept(door: Arc<Door>, listener: UnixListener, protocol: Protocol) {
    let accepting = async {
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&door.connections).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(Arc::clone(&door), stream, permit, protocol))),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    };
    door.closed.run_until_cancelled(accepting).await;
}

async fn serve(door: Arc<Door>, stream: UnixStream, permit: OwnedSemaphorePermit, protocol: Protocol) {
    let closed = door.closed.clone();
    match protocol {
        Protocol::Http => {
            closed.run_until_cancelled(http::serve(door, stream, Arc::new(permit))).await;
        }
        Protocol::Socks => {
            closed.run_until_cancelled(socks::serve(door, stream)).await;
            drop(permit);
        }
    }
}
