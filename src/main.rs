//! The `ceoagent` binary.

fn main() {}
