//! A disk that answers with an error for a moment: every system call of a commit fails once, and for a while, under load.
//! The service has to work again by itself, with every job that it accepted.
//!
//! The faults are made below sled, by a library of the test's own that is preloaded into the service (`disk_fault.c`).

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::harness::{PATIENCE, Service, Setup, simulator};

/// The system calls of a commit: the name for messages, its number in `disk_fault.c`, and whether it is on the mark's file.
const CALLS: [(&str, i32, i32); 5] = [
    ("pwrite of the database", 1, 0),
    ("fdatasync of the database", 2, 0),
    ("fsync of the database", 3, 0),
    ("sync_file_range of the database", 4, 0),
    ("pwrite of the mark", 1, 1),
];

/// Clients that submit all the time.
const CLIENTS: usize = 8;

/// The page that the test and the preloaded library share.
struct Faults {
    page: File,
    library: PathBuf,
    control: PathBuf,
}

impl Faults {
    fn build(setup: &Setup) -> Faults {
        let (library, control) = (setup.folder().join("disk_fault.so"), setup.folder().join("control"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/disk_fault.c");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
        assert!(cc.status().unwrap().success());
        let page = File::options().read(true).write(true).create_new(true).open(&control).unwrap();
        page.set_len(16).unwrap();
        Faults { page, library, control }
    }

    fn write(&self, place: u64, value: i32) {
        self.page.write_all_at(&value.to_ne_bytes(), place * 4).unwrap();
    }

    fn failed(&self) -> i32 {
        let mut bytes = [0; 4];
        self.page.read_exact_at(&mut bytes, 12).unwrap();
        i32::from_ne_bytes(bytes)
    }

    /// Has the next `count` such calls fail.
    fn arm(&self, (_, call, file): (&str, i32, i32), count: i32) {
        [(0, call), (1, file), (3, 0), (2, count)].into_iter().for_each(|(place, value)| self.write(place, value));
    }

    /// Waits until a call has failed; false if the service makes no such call.
    async fn have_struck(&self, accepted: &Mutex<Vec<String>>) -> bool {
        let (started, before) = (Instant::now(), accepted.lock().unwrap().len());
        while self.failed() == 0 {
            // A thousand commits without the call: it is not one of this platform's.
            if accepted.lock().unwrap().len() > before + 1_000 {
                return false;
            }
            assert!(started.elapsed() < PATIENCE, "nothing was committed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }
}

/// Submits until `stop`, and notes what was accepted.
async fn submit(service: Arc<Service>, client: usize, stop: Arc<AtomicBool>, accepted: Arc<Mutex<Vec<String>>>) {
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let answer = service.submit(&format!("Should client {client} make plan {n}?")).await;
        match answer.status {
            202 => accepted.lock().unwrap().push(answer.id()),
            _ => drop(answer.assert_problem(503, "storage_unavailable")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_disk_in_any_call_of_a_commit_costs_no_accepted_job_and_not_the_service() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let faults = Faults::build(&setup);
    let setup = setup
        .with("LD_PRELOAD", &faults.library.display().to_string())
        .with("DISK_FAULT_CONTROL", &faults.control.display().to_string());
    let service = Arc::new(setup.start());
    let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| tokio::spawn(submit(Arc::clone(&service), client, Arc::clone(&stop), Arc::clone(&accepted))))
        .collect();
    let mut struck = Vec::new();
    // Once, and until the store has met it at each of several tries to open the database again.
    for (call, count) in CALLS.into_iter().flat_map(|call| [(call, 1), (call, 6)]) {
        faults.arm(call, count);
        if !faults.have_struck(&accepted).await {
            continue;
        }
        struck.push(call.0);
        let (started, before) = (Instant::now(), accepted.lock().unwrap().len());
        while accepted.lock().unwrap().len() < before + 2 * CLIENTS {
            assert!(started.elapsed() < PATIENCE, "after {call:?} × {count} the service never worked again");
            assert_eq!(service.get("/health").await.status, 200, "the process lives");
        }
        println!("{} × {count}: works again after {} ms", call.0, started.elapsed().as_millis());
    }
    faults.arm(CALLS[0], 0);
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(
        ["pwrite of the database", "fdatasync of the database"].iter().all(|call| struck.contains(call)),
        "{struck:?}"
    );
    let accepted = std::mem::take(&mut *accepted.lock().unwrap());
    for id in &accepted {
        assert_eq!(service.ended(id).await.body["status"], "succeeded", "{id}");
    }
}
