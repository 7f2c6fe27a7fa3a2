//! What nodes tell each other of their waiting clients, and what becomes of it.

use std::time::Duration;

use tokio::{sync::broadcast, time::Instant};

use super::{
    handles::{Inner, Queue},
    hint::Hint,
};

impl Queue {
    /// The hints for the other nodes.
    pub fn hints(&self) -> broadcast::Receiver<Hint> {
        self.0.order.hints()
    }

    /// Sends the hints of all clients of this node again, for nodes that did not get them.
    pub fn repeat_hints(&self) {
        self.0.order.repeat_hints();
    }

    /// The hints that another node sent.
    pub fn hear(&self, node: &str, hints: Vec<Hint>) {
        if node != self.0.policy.node {
            hints.into_iter().for_each(|hint| self.0.hear(node, hint));
        }
    }
}

impl Inner {
    fn hear(&self, node: &str, hint: Hint) {
        match hint {
            Hint::Waits { client, job, caller, kind, left_ms } => {
                let until = Instant::now().checked_add(Duration::from_millis(left_ms));
                let is_new = until.is_some_and(|until| self.order.enter_other(node, client, job, caller, kind, until));
                if is_new && let Some(job) = self.board.get(job) {
                    self.place(&job, self.now());
                }
            }
            Hint::Left { client } => self.order.leave_other(node, client),
            Hint::Demoted { node, client } if node == self.policy.node => self.order.demote_own(client),
            Hint::Demoted { .. } => {}
            Hint::Lasted { kind, observed } => self.service_time.observe(&kind, observed),
        }
    }
}
