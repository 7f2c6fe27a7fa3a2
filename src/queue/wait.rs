//! Clients that wait for a job's end or for any change of it. Woken by the store's feed; each looks at the job again.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::job::JobId;

/// Clients that wait for jobs, one signal a job, however many wait for it.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<HashMap<JobId, Signal>>);

/// A job that is waited for.
#[derive(Debug, Default)]
struct Signal {
    /// Counted under the lock: the signal's own count of owners still falls after that is released.
    clients: usize,
    signal: Arc<Notify>,
}

/// An interest in a job; ends when dropped.
#[derive(Debug)]
pub(super) struct Interest {
    waiters: Arc<Waiters>,
    id: JobId,
    signal: Arc<Notify>,
}

impl Waiters {
    /// Registers interest. Do so before you check the job: what changes afterwards is signalled.
    pub(super) fn register(self: &Arc<Self>, id: JobId) -> Interest {
        let mut waiters = self.0.lock();
        let waited = waiters.entry(id).or_default();
        waited.clients += 1;
        Interest { waiters: Arc::clone(self), id, signal: Arc::clone(&waited.signal) }
    }

    pub(super) fn notify(&self, id: JobId) {
        if let Some(waited) = self.0.lock().get(&id) {
            waited.signal.notify_waiters();
        }
    }

    pub(super) fn notify_all(&self) {
        let mut waited: Vec<(JobId, Arc<Notify>)> =
            self.0.lock().iter().map(|(id, waited)| (*id, Arc::clone(&waited.signal))).collect();
        // In the same order in every run.
        waited.sort_unstable_by_key(|(id, _)| *id);
        waited.iter().for_each(|(_, signal)| signal.notify_waiters());
    }

    /// How many clients wait.
    pub(super) fn len(&self) -> usize {
        self.0.lock().values().map(|waited| waited.clients).sum()
    }
}

impl Interest {
    pub(super) fn signal(&self) -> &Arc<Notify> {
        &self.signal
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut waiters = self.waiters.0.lock();
        if let Some(waited) = waiters.get_mut(&self.id) {
            waited.clients -= 1;
            if waited.clients == 0 {
                waiters.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_clients_that_leave_at_the_same_moment() {
        let (waiters, together) = (Arc::<Waiters>::default(), std::sync::Barrier::new(2));
        let leave = || {
            for job in 0..30_000 {
                let interest = waiters.register(JobId::from_u128(job));
                together.wait();
                drop(interest);
            }
        };
        std::thread::scope(|threads| {
            threads.spawn(leave);
            threads.spawn(leave);
        });
        assert!(waiters.0.lock().is_empty());
    }

    #[test]
    fn every_client_of_a_job_counts_as_waiting() {
        let waiters = Arc::<Waiters>::default();
        let both = [waiters.register(JobId::nil()), waiters.register(JobId::nil())];
        assert_eq!(waiters.len(), 2);
        drop(both);
        assert_eq!(waiters.len(), 0);
    }
}
