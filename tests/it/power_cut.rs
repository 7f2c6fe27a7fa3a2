//! The power fails under load: every job that was answered `202` is on the disk and ends exactly once.
//!
//! How: the service works on a disk of its own, an ext4 file system on a loop device. At a random moment it is stopped
//! with SIGSTOP, the image behind the device is copied, and the service is killed. The copy is mounted, which replays
//! the file system's journal, and the service starts on it, is put under load, and is cut off again.
//!
//! What this models: all that is written but not synced is gone, contents, lengths and names of files alike, except for
//! what the kernel has written by itself. (A killed process loses nothing of this kind: `crash` can't find a missing
//! sync, this test does.)
//!
//! What it does not model: a cut in the middle of one system call (the process comes to a stop at the end of the one it
//! is in, and the copy shows a device at rest), a device that reorders or tears writes, and one that says that it has
//! flushed its own cache when it has not.

use std::{fs, time::Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    harness::{PATIENCE, Service, Setup, simulator},
    load::{Ledger, Load},
    loop_disk::LoopDisk,
};

/// More for the long version: `CEOAGENT_TEST_CUTS=100 cargo test --test it power_cut`.
const CUTS: usize = 5;

/// Enough for what the long version writes.
const DISK_MB: u64 = 256;

/// Stops the process in all its threads: what they were doing in the kernel is done when this returns.
fn freeze(service: &Service) {
    service.signal("STOP");
    let started = Instant::now();
    let stopped = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    while !fs::read_dir(format!("/proc/{}/task", service.pid())).unwrap().map(Result::unwrap).all(stopped) {
        assert!(started.elapsed() < PATIENCE, "the process does not stop");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_moment_loses_no_accepted_job_and_ends_each_once() {
    let cuts = std::env::var("CEOAGENT_TEST_CUTS").ok().map_or(CUTS, |cuts| cuts.parse().unwrap());
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let claude = simulator().await;
    let mut disk = LoopDisk::new(DISK_MB);
    let mut setup = Setup::new(&claude.base_url()).with("WORKERS", "16").with("MAX_RETRIES", "20");
    let mut ledger = Ledger::default();
    for life in 0..cuts {
        setup.set("DATA_DIR", &disk.path().join("data").display().to_string());
        let service = setup.start();
        ledger.assert_kept(&service).await;
        let mut load = Load::start(&service, life);
        load.accepted(random.random_range(1..150), &mut ledger).await;
        freeze(&service);
        let after = disk.after_power_cut();
        service.kill();
        load.end(&mut ledger).await;
        disk = after;
    }
    println!("{cuts} power cuts, {} jobs accepted", ledger.accepted.len());

    setup.set("DATA_DIR", &disk.path().join("data").display().to_string());
    let service = setup.start();
    ledger.assert_kept(&service).await;
    ledger.assert_ended_once(&service, cuts).await;
}
