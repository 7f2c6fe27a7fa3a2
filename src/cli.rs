//! The commands.

pub mod memo;
