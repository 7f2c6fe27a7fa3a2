//! Whether a call went out on a connection that had been used before.
//!
//! Servers close idle connections, at times just as the next call goes out. Such a call ends without a byte of an answer
//! and can be made again at no risk. On a new connection the same end may mean anything.

use std::{
    cell::Cell,
    error::Error,
    task::{Context, Poll},
};

use tower::{Layer, Service};

tokio::task_local! {
    static HAS_CONNECTED: Cell<bool>;
}

/// Runs a call, and says whether it went out on a connection used before: none was begun for it.
pub(super) async fn watch<T>(call: impl Future<Output = T>) -> (T, bool) {
    let watched = async {
        let outcome = call.await;
        (outcome, !HAS_CONNECTED.with(Cell::get))
    };
    HAS_CONNECTED.scope(Cell::new(false), watched).await
}

/// Whether the connection was closed before a byte of an answer came.
pub(super) fn was_closed(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return !error.is_parse() && !error.is_user() && !error.is_timeout();
        }
        source = error.source();
    }
    false
}

/// Takes note of new connections for [`watch`].
#[derive(Clone)]
pub(super) struct Connections;

#[derive(Clone)]
pub(super) struct Noting<S>(S);

impl<S> Layer<S> for Connections {
    type Service = Noting<S>;

    fn layer(&self, connector: S) -> Noting<S> {
        Noting(connector)
    }
}

impl<S: Service<R>, R> Service<R> for Noting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> S::Future {
        let _ = HAS_CONNECTED.try_with(|has_connected| has_connected.set(true));
        self.0.call(request)
    }
}
