//! Samples of durations, and what is printed of them.
#![allow(dead_code, reason = "each measurement uses its own part of this")]

use std::fmt;
use std::fs;
use std::time::Duration;

/// Durations of one thing, measured several times.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// One more.
    pub fn push(&mut self, sample: Duration) {
        let at = self.0.partition_point(|other| *other < sample);
        self.0.insert(at, sample);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Half of them are not above this.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }

    /// `percent` of them are not above this: the nearest rank, so that it is always one that was measured.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    /// The least and the most.
    pub fn range(&self) -> (Duration, Duration) {
        (self.percentile(0), self.percentile(100))
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut samples = Self::default();
        durations.into_iter().for_each(|duration| samples.push(duration));
        samples
    }
}

/// A duration in milliseconds, as wide as a column.
pub struct Millis(pub Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = usize::from(self.0 < Duration::from_millis(100));
        f.pad(&format!("{:.digits$} ms", self.0.as_secs_f64() * 1000.0))
    }
}

/// `a / b`.
pub fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

/// The load of the last minute, which every figure here moves with.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// What a process has used of processors so far, in all its threads, to a hundredth of a second.
pub fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields 14 and 15 of proc_pid_stat(5); the name, field 2, may hold blanks and stands in parentheses.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
