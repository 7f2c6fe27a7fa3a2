//! ceoagent
pub mod clock;
pub mod job;
