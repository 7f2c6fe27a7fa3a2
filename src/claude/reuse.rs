//! Whether a call went out on a connection that had been used before.
//!
//! A server may close an idle connection just as the next call goes out. That call can be repeated without risk. On a new
//! connection the same end may mean anything.

use std::cell::Cell;

use tower::util::MapRequestLayer;

use super::error::causes;

tokio::task_local! {
    static HAS_CONNECTED: Cell<bool>;
}

/// Runs a call. Returns also whether it went out on a connection used before.
pub(super) async fn watch<T>(call: impl Future<Output = T>) -> (T, bool) {
    let watched = async {
        let outcome = call.await;
        (outcome, !HAS_CONNECTED.with(Cell::get))
    };
    HAS_CONNECTED.scope(Cell::new(false), watched).await
}

/// Whether the connection was closed before a byte of an answer came.
pub(super) fn was_closed(error: &reqwest::Error) -> bool {
    let of_http = causes(error).find_map(|error| error.downcast_ref::<hyper::Error>());
    of_http.is_some_and(|error| !error.is_parse() && !error.is_user() && !error.is_timeout())
}

/// A layer for the connector, which is called for each new connection, on behalf of [`watch`].
pub(super) fn connections<R>() -> MapRequestLayer<fn(R) -> R> {
    MapRequestLayer::new(|request| {
        let _ = HAS_CONNECTED.try_with(|has_connected| has_connected.set(true));
        request
    })
}
