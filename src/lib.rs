//! ceoagent

pub mod analysis;
pub mod cli;
pub mod prompts;
