//! What the operating system knows of this process, under the names that Prometheus has for it:
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>.

use std::fmt;

use metrics_process::collector::{Metrics, collect};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit::{self, Bytes, Seconds},
};

/// Looks at the process each time the metrics are read. What can't be known is left out.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Metrics {
            cpu_seconds_total,
            open_fds,
            max_fds,
            virtual_memory_bytes,
            resident_memory_bytes,
            start_time_seconds,
            threads,
            ..
        } = collect();
        if let Some(seconds) = cpu_seconds_total {
            let metric = ConstCounter::new(seconds);
            let help = "User and system CPU time spent";
            metric.encode(encoder.encode_descriptor("process_cpu", help, Some(&Seconds), metric.metric_type())?)?;
        }
        let gauges: [(&str, &str, Option<Unit>, Option<u64>); 6] = [
            ("process_open_fds", "Open file descriptors", None, open_fds),
            // 0 is how an unlimited number is told.
            ("process_max_fds", "Most open file descriptors", None, max_fds.filter(|most| *most > 0)),
            ("process_virtual_memory", "Virtual memory", Some(Bytes), virtual_memory_bytes),
            ("process_resident_memory", "Resident memory", Some(Bytes), resident_memory_bytes),
            ("process_start_time", "When the process began, since 1970", Some(Seconds), start_time_seconds),
            ("process_threads", "Threads of the operating system", None, threads),
        ];
        for (name, help, unit, value) in gauges {
            let Some(value) = value else { continue };
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, unit.as_ref(), metric.metric_type())?)?;
        }
        Ok(())
    }
}
