//! ceoagent

pub mod claude;
