//! `gpubnb-ui`: the web server.

use clap::Parser;
use gpubnb_ui::{Cli, Command, approve_templates, openapi_document, operator_link, routes_table, run};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // The files of jobs may be in a directory of this machine, where other users must not read them.
    gpubnb_runtime::make_files_private();
    gpubnb_runtime::observe::start();
    let Cli { nats, command } = Cli::parse();
    match command {
        Command::Run(args) => {
            let shutdown = CancellationToken::new();
            gpubnb_runtime::observe::cancel_on_signal(shutdown.clone());
            Box::pin(run(nats, args, shutdown)).await
        }
        Command::OperatorLink(args) => operator_link(nats, &args.url).await,
        Command::ApproveTemplate(args) => approve_templates(args).await,
        Command::Openapi => {
            println!("{}", openapi_document()?);
            Ok(())
        }
        Command::Routes => {
            print!("{}", routes_table());
            Ok(())
        }
    }
}
