//! How connections come in: without delay for small answers, and no more of them than the setting allows. One too many is
//! closed at once, which costs nothing and tells its client; waiting at the door would cost memory without bound.

use std::{
    future::{Ready, ready},
    io,
    sync::Arc,
    task::{Context, Poll},
};

use axum_server::accept::Accept;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower_service::Service;

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
        let place = place.map_err(|_| io::Error::other("there are MAX_CONNECTIONS connections"));
        ready(place.and_then(|place| {
            stream.set_nodelay(true)?;
            Ok((stream, Admitted { service, _place: Arc::new(place) }))
        }))
    }
}

/// The service of a connection, which has its place as long as it lasts.
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
