//! Clients that wait on other nodes. The node that holds a client sends a hint to all others, so that the dispatcher claims the
//! client's job in time, and all nodes estimate alike. A hint that is lost costs order, never truth. Each ends by itself when
//! its client would have to be answered, so that a dead node leaves none.

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::service_time::{Kind, Observed};
use crate::job::{JobId, caller::Caller};

/// Hints that wait to be sent. If there are more, the oldest are lost.
const PLACES: usize = 4_096;

/// What a node tells the others of its clients. Numbers of clients are the node's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Hint {
    /// A client waits for the answer to this job, for so long.
    Waits { client: u64, job: JobId, caller: Caller, kind: Kind, left_ms: u64 },
    /// It no longer does.
    Left { client: u64 },
    /// The dispatcher can't have this client of another node answered in time.
    Demoted { node: String, client: u64 },
    /// An attempt of this node succeeded.
    Lasted { kind: Kind, observed: Observed },
}

/// Where a node's hints go.
#[derive(Clone, Debug)]
pub(super) struct Hints(broadcast::Sender<Hint>);

impl Default for Hints {
    fn default() -> Hints {
        Hints(broadcast::Sender::new(PLACES))
    }
}

impl Hints {
    pub(super) fn send(&self, hint: Hint) {
        // Fails if there are no other nodes.
        let _ = self.0.send(hint);
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Hint> {
        self.0.subscribe()
    }
}
