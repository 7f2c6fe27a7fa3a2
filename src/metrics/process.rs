//! Metrics of the process from Linux, under the standard names:
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit::{self, Bytes, Seconds},
};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

/// Reads the process's metrics each time. Unknown values are left out.
#[derive(Debug)]
pub(super) struct Process {
    /// Read once: the time of boot moves with the clock, and a change of this metric is a restart.
    started: Option<u64>,
}

impl Process {
    pub(super) fn new() -> Process {
        let ticks = field(&stat(), 22);
        Process { started: ticks.and_then(|ticks| Some(boot_seconds()? + ticks / clock_ticks_per_second())) }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stat = stat();
        let field = |number| field(&stat, number);
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            let metric = ConstCounter::new((user + system) as f64 / clock_ticks_per_second() as f64);
            let help = "User and system CPU time spent";
            metric.encode(encoder.encode_descriptor("process_cpu", help, Some(&Seconds), metric.metric_type())?)?;
        }
        let open_fds = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64);
        let gauges: [(&str, &str, Option<Unit>, Option<u64>); 6] = [
            ("process_open_fds", "Open file descriptors", None, open_fds),
            ("process_max_fds", "Limit of open file descriptors", None, getrlimit(Resource::Nofile).current),
            ("process_virtual_memory", "Virtual memory", Some(Bytes), field(23)),
            (
                "process_resident_memory",
                "Resident memory",
                Some(Bytes),
                field(24).map(|pages| pages * page_size() as u64),
            ),
            ("process_start_time", "Start time of the process, since 1970", Some(Seconds), self.started),
            ("process_threads", "Threads of the operating system", None, field(20)),
        ];
        for (name, help, unit, value) in gauges {
            let Some(value) = value else { continue };
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, unit.as_ref(), metric.metric_type())?)?;
        }
        Ok(())
    }
}

fn stat() -> String {
    fs::read_to_string("/proc/self/stat").unwrap_or_default()
}

/// A field of `stat`, numbered as in proc_pid_stat(5).
fn field(stat: &str, number: usize) -> Option<u64> {
    // The name of the program, in brackets, can contain anything. Two fields end with it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(number - 3)?.parse().ok()
}

fn boot_seconds() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
