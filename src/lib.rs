//! ceoagent
pub mod agent;
pub mod analysis;
pub mod app;
pub mod claude;
pub mod cli;
pub mod clock;
pub mod http;
pub mod job;
pub mod limits;
pub mod metrics;
pub mod prompts;
pub mod queue;
pub mod store;
pub mod sweeper;
pub mod worker;
