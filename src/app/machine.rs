//! What the machine or container allows: memory for the store's cache, request bodies and connections, and open files.

use std::{fs, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

/// The store's cache gets this part of the memory: a container of 1 GiB has room for 64 MiB of it.
const CACHE_SHARE: u64 = 16;

/// Below this, sled evicts pages while it writes them.
const MIN_CACHE_BYTES: u64 = 16 << 20;

/// A larger cache gains nothing: jobs are indexed in memory, and the system caches the file.
const MAX_CACHE_BYTES: u64 = 64 << 20;

/// Request bodies and answers get this part of the memory. JSON takes up to three times its bytes while it is parsed.
const BODY_SHARE: u64 = 8;

/// Room for the largest batch twice.
const MIN_BODY_BYTES: u64 = 16 << 20;

/// More would not help: the disk is slower.
const MAX_BODY_BYTES: u64 = 512 << 20;

const CONNECTION_SHARE: u64 = 4;

/// Memory of a connection with a half sent request.
const CONNECTION_BYTES: u64 = 48 << 10;

const MAX_CONNECTIONS: u64 = 20_000;

/// Open files that connections leave to the store, the log, calls to Claude and webhooks.
const RESERVED_FILES: u64 = 256;

/// Most open files to ask for: more than are used.
const WANTED_FILES: u64 = 65_536;

/// The host name of the machine, container or pod.
pub(super) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or("localhost").to_owned()
}

pub(super) fn store_cache_bytes() -> u64 {
    cache_bytes(memory_limit(Path::new("/")))
}

fn cache_bytes(memory: Option<u64>) -> u64 {
    memory.map_or(MAX_CACHE_BYTES, |memory| (memory / CACHE_SHARE).clamp(MIN_CACHE_BYTES, MAX_CACHE_BYTES))
}

pub(super) fn body_budget_bytes() -> usize {
    let memory = memory_limit(Path::new("/")).unwrap_or(MIN_BODY_BYTES * BODY_SHARE);
    usize::try_from((memory / BODY_SHARE).clamp(MIN_BODY_BYTES, MAX_BODY_BYTES)).unwrap_or(usize::MAX)
}

/// The memory of the machine, or of the control group if that is less. `root` is where /proc and /sys are.
fn memory_limit(root: &Path) -> Option<u64> {
    let number = |path: &str| fs::read_to_string(root.join(path)).ok()?.trim().parse::<u64>().ok();
    let machine = || {
        let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    };
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    // Version 2. A group is bounded by its parents too; within a container its own path may not be visible.
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let least = |own: &str, tree: &str, file: &str| {
        let groups = Path::new(own).ancestors();
        groups.filter_map(|group| number(&format!("sys/fs/cgroup/{tree}{}/{file}", group.display()))).min()
    };
    let unified = least(own, "", "memory.max");
    // Version 1: a tree of its own for memory.
    let own = groups.lines().find_map(|line| line.split_once(":memory:/")).map_or("", |(_, path)| path);
    let version_1 = least(own, "memory/", "memory.limit_in_bytes");
    [machine(), unified, version_1].into_iter().flatten().min()
}

/// Raises the limit of open files as far as this process may, and returns how many connections it leaves room for.
pub(super) fn max_connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(WANTED_FILES).min(WANTED_FILES);
    let mut files = limit.current.unwrap_or(WANTED_FILES);
    if files < wanted {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => files = wanted,
            Err(error) => debug!(%error, files, "the limit of open files can't be raised"),
        }
    }
    connections(files, memory_limit(Path::new("/")))
}

fn connections(files: u64, memory: Option<u64>) -> usize {
    let by_memory = memory.map_or(MAX_CONNECTIONS, |memory| memory / CONNECTION_SHARE / CONNECTION_BYTES);
    let most = files.saturating_sub(RESERVED_FILES).max(files / 2).min(by_memory).min(MAX_CONNECTIONS);
    usize::try_from(most).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root folder with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_memory_is_the_least_of_the_machine_and_the_control_groups() {
        let memory = ("proc/meminfo", "MemTotal:        4194304 kB\nMemFree: 1 kB\n");
        let limit = |files: &[(&str, &str)]| memory_limit(root(files).path());
        assert_eq!(limit(&[]), None);
        assert_eq!(limit(&[memory]), Some(4 << 30));
        let own = ("proc/self/cgroup", "0::/a/b\n");
        let (parent, child) =
            (("sys/fs/cgroup/a/memory.max", "1073741824\n"), ("sys/fs/cgroup/a/b/memory.max", "max\n"));
        assert_eq!(limit(&[memory, own, parent, child]), Some(1 << 30), "the parent's");
        let in_container = [memory, ("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "268435456\n")];
        assert_eq!(limit(&in_container), Some(256 << 20));
        let version_1 = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n");
        assert_eq!(limit(&[memory, version_1]), Some(512 << 20));
        let own = ("proc/self/cgroup", "4:memory:/a/b\n0::/\n");
        let group = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "134217728\n");
        assert_eq!(limit(&[memory, version_1, own, group]), Some(128 << 20), "a parent's");
        let unlimited = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit(&[memory, unlimited]), Some(4 << 30));
    }

    #[test]
    fn the_cache_is_a_part_of_the_memory_within_bounds() {
        let mib = |memory: Option<u64>| cache_bytes(memory.map(|mib| mib << 20)) >> 20;
        assert_eq!([None, Some(128), Some(512), Some(1_024), Some(65_536)].map(mib), [64, 16, 32, 64, 64]);
    }

    #[test]
    fn connections_leave_files_for_everything_else() {
        let of = |files| connections(files, None);
        assert_eq!([64, 512, 1_024, 4_096, 65_536].map(of), [32, 256, 768, 3_840, 20_000]);
        assert_eq!([256, 1_024, 65_536].map(|mib| connections(65_536, Some(mib << 20))), [1_365, 5_461, 20_000]);
    }
}
