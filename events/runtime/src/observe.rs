//! The log lines of a process, and its shutdown by a signal. A log line never contains a secret or personal data.

use std::io::IsTerminal as _;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Starts logging to standard error. `RUST_LOG` chooses the level; with `GPUBNB_LOG=json`, each line is a JSON object.
pub fn start() {
    start_with_writer(std::io::stderr, std::io::stderr().is_terminal());
}

/// Like [`start`], for a command that answers a person: only warnings and errors are logged, unless `RUST_LOG` says
/// otherwise.
pub fn start_quietly() {
    start_with_filter("warn", std::io::stderr, std::io::stderr().is_terminal());
}

/// Like [`start`], but logs to `writer`.
pub fn start_with_writer<W>(writer: W, colours: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    start_with_filter("info,async_nats=warn", writer, colours);
}

fn start_with_filter<W>(default: &str, writer: W, colours: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours);
    if std::env::var("GPUBNB_LOG").is_ok_and(|v| v == "json") {
        builder.json().init();
    } else {
        builder.init();
    }
}

/// Cancels the token when the process receives SIGINT or SIGTERM. Must be called in a tokio runtime.
pub fn cancel_on_signal(shutdown: CancellationToken) {
    tokio::spawn(async move {
        let term = async {
            match signal(SignalKind::terminate()) {
                Ok(mut term) => term.recv().await.unwrap_or_default(),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            result = tokio::signal::ctrl_c() => if result.is_err() { std::future::pending::<()>().await },
            () = term => {}
        }
        shutdown.cancel();
    });
}
