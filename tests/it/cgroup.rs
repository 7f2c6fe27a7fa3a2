//! A control group that limits the memory of a service under test, of version 1 or 2.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{Service, Setup};

/// Removed when dropped; then its processes must have ended.
pub(crate) struct MemoryLimit(PathBuf);

impl MemoryLimit {
    pub(crate) fn mib(mib: u64) -> MemoryLimit {
        let needed = "this test limits the memory of a service by a control group: it needs root and, in a container, \
                      --privileged";
        let root = Path::new("/sys/fs/cgroup");
        let (tree, limit) = match root.join("memory").is_dir() {
            true => (root.join("memory"), "memory.limit_in_bytes"),
            false => {
                let given = fs::write(root.join("cgroup.subtree_control"), "+memory");
                // A group with processes of its own can't have limited children, so they move into one.
                if given.is_err() {
                    let rest = root.join("ceoagent-tests-rest");
                    fs::create_dir_all(&rest).expect(needed);
                    for pid in fs::read_to_string(root.join("cgroup.procs")).expect(needed).lines() {
                        let _ = fs::write(rest.join("cgroup.procs"), pid);
                    }
                    fs::write(root.join("cgroup.subtree_control"), "+memory").expect(needed);
                }
                (root.to_owned(), "memory.max")
            }
        };
        let group = tree.join(format!("ceoagent-test-{}-{}", std::process::id(), rand::random::<u32>()));
        fs::create_dir(&group).expect(needed);
        fs::write(group.join(limit), (mib << 20).to_string()).expect(needed);
        MemoryLimit(group)
    }

    /// Starts a service within the limit.
    pub(crate) fn start(&self, setup: &Setup) -> Service {
        let mut shell: Command = setup.command_of("/bin/sh");
        let enter = "echo $$ > \"$1/cgroup.procs\" && exec \"$0\" serve";
        setup.start_as(shell.args(["-c", enter, env!("CARGO_BIN_EXE_ceoagent")]).arg(&self.0))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A process that has just ended may still be counted for a moment.
        while fs::read_to_string(self.0.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty()) {
            std::thread::yield_now();
        }
        let _ = fs::remove_dir(&self.0);
    }
}
