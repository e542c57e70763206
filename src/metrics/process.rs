//! What the kernel knows of this process, under the names that every Prometheus client uses.

use std::fs;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Ticks of processor time in a second; Linux has told programs 100 on every architecture for decades.
const TICKS: f64 = 100.0;

pub(super) struct Process {
    memory: Gauge,
    files: Gauge,
    processor: Counter<f64, AtomicU64>,
}

impl Process {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self { memory: Gauge::default(), files: Gauge::default(), processor: Counter::default() };
        registry.register_with_unit("process_resident_memory", "Resident memory", Unit::Bytes, this.memory.clone());
        registry.register("process_open_fds", "Open file descriptors", this.files.clone());
        registry.register_with_unit("process_cpu", "Processor time", Unit::Seconds, this.processor.clone());
        this
    }

    /// Reads it anew. What cannot be read stays as it was.
    pub(super) fn look(&self) {
        if let Some(kib) = resident_kib() {
            self.memory.set(kib * 1024);
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            self.files.set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
        let ticks = |at| Some(field_of_stat(at)?.parse::<f64>().ok()? / TICKS);
        // User and system time: fields 14 and 15 of proc_pid_stat(5).
        if let (Some(user), Some(system)) = (ticks(14), ticks(15)) {
            let more = user + system - self.processor.get();
            self.processor.inc_by(more.max(0.0));
        }
    }
}

fn resident_kib() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// A field by its number in proc_pid_stat(5). The name, field 2, may hold blanks and ends with the last parenthesis.
fn field_of_stat(number: usize) -> Option<String> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(number.checked_sub(3)?).map(str::to_owned)
}
