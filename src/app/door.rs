//! The listener and its limit of connections, of which one address may have three quarters. A few more connections are
//! accepted for health and metrics only. All others are closed at once: waiting ones would cost unbounded memory.

use std::{
    future::{Ready, ready},
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::http::Request;
use axum_server::{Handle, Server, accept::Accept};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tower_service::Service;
#[cfg(target_os = "linux")]
use tracing::warn;

use super::error::StartError;
use crate::{
    http::memory::{MonitoringOnly, Shares},
    metrics::Metrics,
};

/// A client must have sent its request's head within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest head of a request: room for many cookies and a long token. What is larger gets `431`.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Connections beyond the limit that may ask for health and metrics.
const MONITORING_PLACES: usize = 32;

const MONITORING_PLACES_PER_ADDRESS: usize = 8;

/// A client that reads nothing of its response for so long is disconnected, which frees the memory of the response.
#[cfg(target_os = "linux")]
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    drop_stalled_readers(&listener);
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

pub(super) fn server(
    listener: TcpListener,
    address: SocketAddr,
    max_connections: usize,
    metrics: Metrics,
    handle: &Handle<SocketAddr>,
) -> Result<Server<SocketAddr, Door>, StartError> {
    let mut server = axum_server::from_tcp(listener)
        .map_err(|source| StartError::Listen { address, source })?
        .acceptor(Door::new(max_connections, metrics))
        .handle(handle.clone())
        .http1_only();
    server.http_builder().http1().header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    Ok(server)
}

/// Lets the kernel end connections whose clients read nothing: the server's time-outs end with the response. Connections
/// inherit the setting from the listener, see tcp(7).
#[cfg(target_os = "linux")]
fn drop_stalled_readers(listener: &TcpListener) {
    let millis = u32::try_from(STALL_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(listener, millis) {
        warn!(%error, "can't set the time limit for clients that do not read their response");
    }
}

#[cfg(not(target_os = "linux"))]
fn drop_stalled_readers(_: &TcpListener) {}

#[derive(Clone, Debug)]
pub(super) struct Door(Arc<Places>);

#[derive(Debug)]
struct Places {
    most: usize,
    taken: Mutex<Taken>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Taken {
    usual: Shares,
    monitoring: Shares,
}

impl Door {
    pub(super) fn new(most: usize, metrics: Metrics) -> Door {
        Door(Arc::new(Places { most, taken: Mutex::default(), metrics }))
    }

    fn place(&self, address: IpAddr) -> Option<Place> {
        let Places { most, taken, metrics } = &*self.0;
        let mut taken = taken.lock();
        let is_usual = taken.usual.take(address, 1, *most, most - most / 4);
        if !is_usual && !taken.monitoring.take(address, 1, MONITORING_PLACES, MONITORING_PLACES_PER_ADDRESS) {
            metrics.connections_refused.inc();
            return None;
        }
        drop(taken);
        Some(Place { door: self.clone(), address, is_usual })
    }
}

#[derive(Debug)]
struct Place {
    door: Door,
    address: IpAddr,
    is_usual: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.door.0.taken.lock();
        let places = if self.is_usual { &mut taken.usual } else { &mut taken.monitoring };
        places.give_back(self.address, 1);
    }
}

impl<S> Accept<TcpStream, S> for Door {
    type Stream = TcpStream;
    type Service = Admitted<S>;
    type Future = Ready<io::Result<(TcpStream, Admitted<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let place = stream.peer_addr().and_then(|peer| {
            self.place(peer.ip().to_canonical()).ok_or_else(|| io::Error::other("the limit of connections is reached"))
        });
        ready(place.and_then(|place| {
            stream.set_nodelay(true)?;
            Ok((stream, Admitted { service, place: Arc::new(place) }))
        }))
    }
}

/// The service of a connection. It holds the connection's place.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    service: S,
    place: Arc<Place>,
}

impl<B, S: Service<Request<B>>> Service<Request<B>> for Admitted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if !self.place.is_usual {
            request.extensions_mut().insert(MonitoringOnly);
        }
        self.service.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_three_quarters_and_monitoring_has_places_of_its_own() {
        let door = Door::new(8, Metrics::new());
        let [a, b] = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
        let of = |address, count| (0..count).filter_map(|_| door.place(address)).collect::<Vec<_>>();
        let usual = |places: &[Place]| places.iter().filter(|place| place.is_usual).count();
        let greedy = of(a, 100);
        assert_eq!((greedy.len(), usual(&greedy)), (6 + MONITORING_PLACES_PER_ADDRESS, 6));
        let other = of(b, 3);
        assert_eq!((other.len(), usual(&other)), (3, 2), "the third may ask for health");
        assert_eq!(door.0.metrics.connections_refused.get(), 100 - 14);
        drop((greedy, other));
        assert_eq!(usual(&of(b, 6)), 6, "they are free again");
        assert!(door.0.taken.lock().usual.is_unused());
    }
}
