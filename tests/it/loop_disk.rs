//! A disk of a test's own: an ext4 file system in an image file, on a loop device.
//!
//! What programs write to it first stays in the kernel's cache of the file system; the image has what the file system
//! has handed to its device, because it was synced or because the kernel found the time. So a copy of the image is what
//! a power cut leaves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use crate::harness::PATIENCE;

/// The mounted disk; unmounted when dropped. Whoever works on it must have ended by then.
pub(crate) struct LoopDisk {
    folder: tempfile::TempDir,
    /// As `/dev/loop7`.
    device: String,
    mounted: bool,
}

impl LoopDisk {
    /// An empty one.
    pub(crate) fn new(megabytes: u64) -> LoopDisk {
        let folder = tempfile::tempdir().unwrap();
        fs::File::create(image(&folder)).unwrap().set_len(megabytes << 20).unwrap();
        // Whatever the kernel would write later by itself is written now.
        let options = ["-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        run("mkfs.ext4", &[&options[..], &[&image(&folder).display().to_string()]].concat());
        LoopDisk::mount(folder)
    }

    fn mount(folder: tempfile::TempDir) -> LoopDisk {
        let device = run("losetup", &["--find", "--show", &image(&folder).display().to_string()]);
        let mut disk = LoopDisk { folder, device: device.trim().to_owned(), mounted: false };
        fs::create_dir_all(disk.path()).unwrap();
        run("mount", &["-t", "ext4", &disk.device, &disk.path().display().to_string()]);
        disk.mounted = true;
        disk
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// A disk with what has reached this one's device, as after a power cut at this moment. Whoever writes must have
    /// been stopped. The kernel may still be writing by itself: the copy is made anew until nothing was written
    /// meanwhile, so that it shows one moment.
    pub(crate) fn after_power_cut(&self) -> LoopDisk {
        let folder = tempfile::tempdir().unwrap();
        let started = Instant::now();
        loop {
            let before = self.writes();
            fs::copy(image(&self.folder), image(&folder)).unwrap();
            if before.in_flight == 0 && self.writes() == before {
                return LoopDisk::mount(folder);
            }
            assert!(started.elapsed() < PATIENCE, "the device is never at rest");
        }
    }

    fn writes(&self) -> Writes {
        let name = self.device.trim_start_matches("/dev/");
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        let fields: Vec<u64> = stat.split_whitespace().map(|field| field.parse().unwrap()).collect();
        Writes { done: fields[4], in_flight: fields[8] }
    }
}

/// What a device has done, by the kernel's own count.
#[derive(PartialEq)]
struct Writes {
    done: u64,
    in_flight: u64,
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let mounted = self.path();
        let quietly = |program: &str, args: &[&str]| {
            Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
        };
        if self.mounted && !quietly("umount", &[&mounted.display().to_string()]) {
            quietly("umount", &["--lazy", &mounted.display().to_string()]);
        }
        quietly("losetup", &["--detach", &self.device]);
    }
}

fn image(folder: &tempfile::TempDir) -> PathBuf {
    Path::new(folder.path()).join("image")
}

/// Runs a program that this machine must have and allow, and gives what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let needed = "this test makes a disk of its own: it needs root, and a system where losetup, mkfs.ext4 and mount work \
                  (Debian: packages mount and e2fsprogs; in a container: docker run --privileged)";
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program} can't be run: {error}; {needed}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?} failed: {said}; {needed}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
