//! The page of the worker for its owner. `gpubnb-provider open` asks for the page through the control socket, and the
//! worker then serves it on a free port of the loopback interface, to browsers of the asking user only, until nobody
//! has looked at it for a while. No port is open otherwise.
//!
//! Belongs here: the page and who may see it. Must not come here: an order that `control` does not know.

mod access;
mod peer;
mod routes;
mod view;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    sync::Mutex,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::{access::Access, peer::OwnersListener, view::Earnings};
use crate::control::WorkerControl;

/// The page closes when nobody has used it for this long. Browsers let a hidden tab ask once a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Time between two checks of whether the page is used.
const IDLE_CHECK: Duration = Duration::from_secs(5);
/// The earnings are asked of the market at most this often.
const EARNINGS_INTERVAL: Duration = Duration::from_secs(60);
/// The page is shown without the earnings if the market takes longer than this.
const EARNINGS_TIMEOUT: Duration = Duration::from_secs(2);

/// Opens and closes the page.
pub(crate) struct OwnerPage {
    control: Arc<WorkerControl>,
    served: Mutex<Option<ServedPage>>,
}

/// The page while it is served.
struct ServedPage {
    access: Arc<Access>,
    closed: CancellationToken,
}

/// The parts that the handlers of requests share.
#[derive(Clone)]
struct PageContext {
    control: Arc<WorkerControl>,
    access: Arc<Access>,
    earnings: Arc<Mutex<Option<(Instant, Earnings)>>>,
}

impl OwnerPage {
    pub(crate) fn new(control: Arc<WorkerControl>) -> Self {
        Self { control, served: Mutex::default() }
    }

    /// Serves the page if it is not served yet, and returns a link that works once, for browsers of the user `uid`. The
    /// link that was given out before, and the page that it opened, stop working.
    pub(crate) async fn open(&self, uid: u32) -> anyhow::Result<String> {
        let mut served = self.served.lock().await;
        if let Some(page) = served.take_if(|page| page.closed.is_cancelled() || page.access.uid != uid) {
            page.closed.cancel();
        }
        if let Some(page) = served.as_ref() {
            return Ok(page.access.new_link());
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free for the page")?;
        let access = Arc::new(Access::new(listener.local_addr()?, uid));
        let closed = self.control.shutdown.child_token();
        let context =
            PageContext { control: Arc::clone(&self.control), access: Arc::clone(&access), earnings: Arc::default() };
        tokio::spawn(serve(listener, context, closed.clone()));
        let link = access.new_link();
        *served = Some(ServedPage { access, closed });
        Ok(link)
    }
}

/// Serves the page until it is closed, or until nobody has used it for [`IDLE_TIMEOUT`].
async fn serve(listener: TcpListener, context: PageContext, closed: CancellationToken) {
    let (access, address) = (Arc::clone(&context.access), context.access.address);
    info!(%address, "the page of the worker is open");
    let owners = OwnersListener { listener, uid: access.uid, has_warned: false };
    let server = axum::serve(owners, routes::router(context)).with_graceful_shutdown(closed.clone().cancelled_owned());
    let used = async {
        while !closed.is_cancelled() && access.idle_for() < IDLE_TIMEOUT {
            tokio::select! {
                () = closed.cancelled() => {}
                () = tokio::time::sleep(IDLE_CHECK) => {}
            }
        }
        closed.cancel();
    };
    let (result, ()) = tokio::join!(server.into_future(), used);
    match result {
        Ok(()) => info!("the page of the worker is closed"),
        Err(e) => warn!(error = %e, "the page of the worker failed"),
    }
}

impl PageContext {
    /// The earnings, asked of the market if they are older than [`EARNINGS_INTERVAL`].
    async fn earnings(&self) -> Earnings {
        let mut cached = self.earnings.lock().await;
        if let Some((at, earnings)) = cached.as_ref()
            && at.elapsed() < EARNINGS_INTERVAL
        {
            return earnings.clone();
        }
        let earnings = match timeout(EARNINGS_TIMEOUT, self.control.earnings()).await {
            Ok(Ok(days)) => Earnings::Known(days),
            Ok(Err(e)) => {
                debug!(error = %e, "the market does not say what this machine has earned");
                Earnings::Unknown
            }
            Err(_) => Earnings::Unknown,
        };
        *cached = Some((Instant::now(), earnings.clone()));
        earnings
    }
}

/// The address of a page, with a path.
fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}
