//! Samples of durations, and the tables that are printed of them and kept for docs/performance.md.
#![allow(dead_code, reason = "each measurement uses its own part of this")]

use std::fmt::{self, Display};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// One table of figures: printed for whoever waits for it, and kept as Markdown, which `scripts/bench` puts between the marks of that
/// name in docs/performance.md.
pub struct Table {
    name: &'static str,
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// The table `name`, under a title that says what was measured and how often; the load is added to it.
    pub fn new(name: &'static str, title: impl Display, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { name, title: format!("{title} (load {})", load()), rows: vec![columns] }
    }

    /// One more row.
    pub fn row(&mut self, cells: &[&dyn Display]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }

    /// Prints and keeps it.
    pub fn print(self) {
        println!("{}", self.title);
        let columns = self.rows[0].len();
        let wide = |column: usize| self.rows.iter().map(|row| width(row, column)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(wide).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(n, (cell, &width))| match n {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        println!();
        self.keep();
    }

    fn keep(&self) {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("figures");
        let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.rows[0].len()));
        let (head, body) = self.rows.split_first().expect("the columns have names");
        let body: String = body.iter().map(line).collect();
        let text = format!("{}:\n\n{}{rule}{body}", self.title, line(head));
        fs::create_dir_all(&directory).expect("the target directory is ours");
        fs::write(directory.join(format!("{}.md", self.name)), text).expect("the target directory is ours");
    }
}

fn width(row: &[String], column: usize) -> usize {
    row.get(column).map_or(0, |cell| cell.chars().count())
}

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
