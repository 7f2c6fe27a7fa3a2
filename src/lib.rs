//! ceoagent

pub mod analysis;
pub mod claude;
pub mod cli;
pub mod clock;
pub mod job;
pub mod prompts;
pub mod store;
