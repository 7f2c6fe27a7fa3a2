//! Several nodes on one database: one is active, the others stand by, and answer that.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use axum_server::Handle;
use secrecy::SecretString;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::{door, error::StartError, machine};
use crate::{
    http,
    metrics::Metrics,
    store::postgres::{Database, Seat},
};

/// Waits until no other node is active. Meanwhile it answers that one is.
pub(super) async fn seat(url: &SecretString, listener: &TcpListener, metrics: &Metrics) -> Result<Seat, StartError> {
    let database = Arc::new(Database::open(url).await?);
    if let Some(seat) = Seat::take(&database).await? {
        return Ok(seat);
    }
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let address = listener.local_addr().unwrap_or(unknown);
    let listener = listener.try_clone().map_err(|source| StartError::Listen { address, source })?;
    let http = Handle::new();
    let server = door::server(listener, address, machine::max_connections(), metrics.clone(), &http)?;
    let server =
        AbortOnDropHandle::new(tokio::spawn(server.serve(http::standby::router(metrics.clone()).into_make_service())));
    metrics.store_available.set(1);
    info!(%address, "ceoagent stands by");
    let seat = Seat::wait(&database).await;
    http.shutdown();
    let _ = server.await;
    info!("no node is active: this one takes over");
    Ok(seat)
}
