//! The listener, and how connections come in: without delay for small answers, and no more of them than there are open
//! files for. One too many is closed at once, which costs nothing and is clear to its client; waiting would cost memory
//! without bound.

use std::{
    future::{Ready, ready},
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_server::{Handle, Server, accept::Accept};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower_service::Service;
#[cfg(target_os = "linux")]
use tracing::warn;

use super::StartError;

/// A client must have sent its request's head within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest head of a request: room for many cookies and a long token. What is larger gets `431`.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A client that reads nothing of its answer for so long is cut off: with its connection goes all that is held for it.
#[cfg(target_os = "linux")]
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Listens on the address. Returns also which that is, as the port may be any.
pub(super) fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    drop_stalled_readers(&listener);
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// The HTTP server, which accepts nothing yet.
pub(super) fn server(
    listener: TcpListener,
    address: SocketAddr,
    max_connections: usize,
    handle: &Handle<SocketAddr>,
) -> Result<Server<SocketAddr, Door>, StartError> {
    let mut server = axum_server::from_tcp(listener)
        .map_err(|source| StartError::Listen { address, source })?
        .acceptor(Door::new(max_connections))
        .handle(handle.clone())
        .http1_only();
    server.http_builder().http1().header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    Ok(server)
}

/// Has the kernel end connections whose clients read nothing, which no time-out of the server sees: its answer has been
/// made and waits to be written. A connection has its listener's setting, see tcp(7).
#[cfg(target_os = "linux")]
fn drop_stalled_readers(listener: &TcpListener) {
    let millis = u32::try_from(STALL_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(listener, millis) {
        warn!(%error, "can't set the time limit for clients that do not read their response");
    }
}

/// Other systems have no such setting.
#[cfg(not(target_os = "linux"))]
fn drop_stalled_readers(_: &TcpListener) {}

/// Lets connections in.
#[derive(Clone, Debug)]
pub(super) struct Door(Arc<Semaphore>);

impl Door {
    /// For at most so many connections at one time.
    pub(super) fn new(max_connections: usize) -> Door {
        Door(Arc::new(Semaphore::new(max_connections)))
    }
}

impl<S> Accept<TcpStream, S> for Door {
    type Stream = TcpStream;
    type Service = Admitted<S>;
    type Future = Ready<io::Result<(TcpStream, Admitted<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let place = Arc::clone(&self.0).try_acquire_owned();
        let place = place.map_err(|_| io::Error::other("the limit of connections is reached"));
        ready(place.and_then(|place| {
            stream.set_nodelay(true)?;
            Ok((stream, Admitted { service, _place: Arc::new(place) }))
        }))
    }
}

/// The service of a connection, which holds its place as long as it lasts.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    service: S,
    _place: Arc<OwnedSemaphorePermit>,
}

impl<R, S: Service<R>> Service<R> for Admitted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.service.call(request)
    }
}
