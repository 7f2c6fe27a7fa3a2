//! What readers and the writer share.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{connection::Database, readers::Readers, state::State};
use crate::{
    clock::Clock,
    metrics::Metrics,
    store::traits::{Feed, StoreError},
};

pub(super) struct Shared {
    pub(super) database: Arc<Database>,
    pub(super) readers: Readers,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) state: RwLock<State>,
    pub(super) feed: Mutex<Option<Arc<dyn Feed>>>,
    pub(super) trouble: Mutex<Option<String>>,
    pub(super) lost: CancellationToken,
}

impl Shared {
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock() = trouble;
    }
}

/// Asks the writer to reset the feed.
pub(super) struct Reset {
    pub(super) feed: Arc<dyn Feed>,
    pub(super) reply: oneshot::Sender<Result<(), StoreError>>,
}
