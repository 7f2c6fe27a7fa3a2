//! The processes that share a store: which one this is, which of them can be given calls, and whose calls may still be under
//! way.

use std::time::Duration;

use tokio::sync::watch;

use crate::job::Owner;

/// A node without a beat for so long counts as lost, and its attempts end. It gives them up itself a second earlier.
pub const LEASE: Duration = Duration::from_secs(30);

/// The nodes of a store. Answers from memory.
pub trait Nodes: Send + Sync + 'static {
    /// This node, as the owner of attempts. It changes when the others take this node for lost, or soon may: the node gives up
    /// the calls of the former owner at once.
    fn own(&self) -> watch::Receiver<Owner>;

    /// Those that can be given calls at the moment, by the same rule for this node and for the others.
    fn ready(&self) -> Vec<Owner>;

    /// Whether a node most likely makes the calls that it has: it is heard of. It may be one that stops.
    fn is_at_work(&self, owner: Owner) -> bool;

    /// Whether attempts of another node may still be under way.
    fn may_run(&self, owner: Owner) -> bool;
}

/// The only node of a store.
pub struct Alone(watch::Sender<Owner>);

impl Alone {
    pub fn new(owner: Owner) -> Alone {
        Alone(watch::Sender::new(owner))
    }
}

impl Nodes for Alone {
    fn own(&self) -> watch::Receiver<Owner> {
        self.0.subscribe()
    }

    fn ready(&self) -> Vec<Owner> {
        vec![*self.0.borrow()]
    }

    fn is_at_work(&self, owner: Owner) -> bool {
        owner == *self.0.borrow()
    }

    fn may_run(&self, _: Owner) -> bool {
        false
    }
}

/// One of several nodes, in a test.
#[cfg(test)]
pub(crate) struct OneOfMany {
    own: watch::Sender<Owner>,
    live: Live,
}

/// The nodes that are alive.
#[cfg(test)]
pub(crate) type Live = std::sync::Arc<parking_lot::Mutex<Vec<Owner>>>;

#[cfg(test)]
impl OneOfMany {
    pub(crate) fn new(owner: Owner, live: &Live) -> OneOfMany {
        live.lock().push(owner);
        OneOfMany { own: watch::Sender::new(owner), live: std::sync::Arc::clone(live) }
    }

    /// Takes itself for lost.
    pub(crate) fn start_afresh(&self, owner: Owner) {
        let former = self.own.send_replace(owner);
        let mut live = self.live.lock();
        live.retain(|other| *other != former);
        live.push(owner);
    }
}

#[cfg(test)]
impl Nodes for OneOfMany {
    fn own(&self) -> watch::Receiver<Owner> {
        self.own.subscribe()
    }

    fn ready(&self) -> Vec<Owner> {
        self.live.lock().clone()
    }

    fn is_at_work(&self, owner: Owner) -> bool {
        self.live.lock().contains(&owner)
    }

    fn may_run(&self, owner: Owner) -> bool {
        self.live.lock().contains(&owner)
    }
}
