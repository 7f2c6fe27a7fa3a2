//! ceoagent
