//! `knetsim apiserver`: the control plane of one cluster, started by the lab on its first etcd node.

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    api::{registry::Registry, server, validate::Ranges},
    cli::ApiServerArgs,
    controller,
};

/// Serves the API and runs the controllers until SIGTERM.
///
/// # Errors
///
/// When an etcd endpoint is no URL, etcd does not take the first objects, or the address cannot be listened on.
pub fn run(args: &ApiServerArgs) -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let endpoints: Vec<String> = args.etcd_endpoints.split(',').map(str::to_owned).collect();
        let registry = Registry::connect(&endpoints, Ranges { services: args.service_cidr }).await?;
        registry.bootstrap().await.context("write the cluster's first objects")?;
        let (ending, ended) = tokio::sync::watch::channel(false);
        let until = |mut ended: tokio::sync::watch::Receiver<bool>| async move {
            // An error says that the sender is gone, which means the same.
            let _ = ended.wait_for(|ending| *ending).await;
        };
        let controllers = tokio::spawn(controller::run(registry.clone(), until(ended.clone())));
        let serving = server::serve(args.listen, registry, until(ended));
        tokio::pin!(serving);
        tokio::select! {
            result = &mut serving => return result.map(|()| ExitCode::FAILURE),
            _ = term.recv() => {}
        }
        let _ = ending.send(true); // both ends are here
        serving.await?;
        controllers.await?;
        Ok(ExitCode::SUCCESS)
    })
}
