//! The changes that callers ask for, each a function of [`super::batch::Batch`]. It writes its records, stages its jobs and
//! returns the reply, or the error with which the life cycle refuses it; an error of the disk fails the whole batch.

mod insert;
mod registry;
mod remove;
mod transition;
mod webhook;

pub(super) use self::insert::size_of;
