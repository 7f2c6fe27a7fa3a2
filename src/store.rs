//! The contract of every store, and what a crash leaves of each call. It has four parts: jobs ([`JobStore`]), what calls
//! cost ([`Ledger`]), messages to callback URLs ([`Outbox`]), and runtime settings with the audit log ([`Registry`]).
//!
//! A store makes the pure transitions of [`crate::job`] atomic and durable, and answers questions about jobs. It knows no
//! order and decides nothing: the board of `queue` has all pending jobs in memory, fed by [`Feed`]. Every method that
//! reads or writes is async and may fail. Calls made at the same time share a commit, so callers need no batches of their own.
//! Every implementation passes the suite [`contract`].

pub mod archive;
pub(crate) mod nodes;
pub mod postgres;
pub mod sled;
mod traits;

mod change;
mod new_job;
mod record;
mod watch;

#[cfg(test)]
pub mod contract;
#[cfg(test)]
pub(crate) mod fault;
#[cfg(test)]
pub(crate) mod memory;

pub use self::{
    nodes::{Alone, LEASE, Nodes},
    traits::{
        ClaimedJob, Due, EndedCounts, FEED_LIMIT, Feed, Insertion, JobHead, JobStore, Ledger, OrphanedKey, Outbox,
        Registry, Store, StoreError, Totals,
    },
};
