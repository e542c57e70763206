//! What processes print: a file each, rotated so that a chatty process fills neither disk nor memory, read from the tail and
//! followed without polling.
//!
//! A log is one long sequence of bytes of which the last ones are kept: `name.log` holds the newest, `name.log.1` those before
//! them. Positions count from the beginning of that sequence, so that a reader's place survives a rotation.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::limits;

use super::freeze::Gate;

/// The size at which a log's newest file becomes its older one: a few thousand lines, twice.
const ROTATE_AT: u64 = 1024 * 1024;

/// How much of the last line is remembered for reasons.
const LAST_LINE: usize = 256;

/// All logs of one agent.
#[derive(Debug)]
pub struct Logs {
    directory: PathBuf,
    open: Mutex<HashMap<String, Arc<Log>>>,
}

impl Logs {
    /// The logs that live in `directory`, which is made if it does not exist.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory, open: Mutex::default() })
    }

    /// The log `name`, new or as an earlier boot left it.
    ///
    /// # Errors
    /// Its file cannot be opened.
    pub fn open(&self, name: &str) -> io::Result<Arc<Log>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = open.get(name) {
            return Ok(log.clone());
        }
        let log = Arc::new(Log::open(self.directory.join(format!("{name}.log")), ROTATE_AT)?);
        open.insert(name.to_owned(), log.clone());
        Ok(log)
    }

    /// The log `name` if anything was ever written to it.
    ///
    /// # Errors
    /// Its file cannot be opened.
    pub fn find(&self, name: &str) -> io::Result<Option<Arc<Log>>> {
        let exists = self.directory.join(format!("{name}.log")).exists();
        if exists { self.open(name).map(Some) } else { Ok(None) }
    }
}

impl Logs {
    /// Forgets all that was logged. Nothing may be logging.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn forget(&self) -> io::Result<()> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for log in open.values() {
            log.forget()?;
        }
        let names: Vec<_> = open.keys().flat_map(|name| [format!("{name}.log"), format!("{name}.log.1")]).collect();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if !names.iter().any(|name| entry.file_name() == name.as_str()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// One process's log.
#[derive(Debug)]
pub struct Log {
    files: Mutex<Files>,
    /// The position after the last byte written.
    end: watch::Sender<u64>,
}

#[derive(Debug)]
struct Files {
    path: PathBuf,
    rotate_at: u64,
    newest: File,
    /// The position of the newest file's first byte.
    newest_start: u64,
    newest_length: u64,
    older: Option<File>,
    /// The position of the older file's first byte.
    older_start: u64,
    /// How often all of it was forgotten.
    forgotten: u64,
    last_line: Vec<u8>,
    /// Whether the next byte begins a new last line.
    line_ended: bool,
}

impl Log {
    fn open(path: PathBuf, rotate_at: u64) -> io::Result<Self> {
        let older = File::open(older_path(&path)).ok();
        let newest_start = older.as_ref().map_or(Ok(0), length)?;
        let newest = File::options().read(true).append(true).create(true).open(&path)?;
        let newest_length = length(&newest)?;
        let files = Files {
            path,
            rotate_at,
            newest,
            newest_start,
            newest_length,
            older,
            older_start: 0,
            forgotten: 0,
            last_line: Vec::new(),
            line_ended: true,
        };
        Ok(Self { end: watch::Sender::new(newest_start + newest_length), files: Mutex::new(files) })
    }

    /// Appends what comes out of `pipe` until it ends. A log that cannot be written loses output rather than block the process.
    pub async fn record(self: Arc<Self>, mut pipe: pipe::Receiver, gate: Gate) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            let forgotten = self.files().forgotten;
            // Writing to a frozen file system would stop the whole agent.
            gate.passed().await;
            // What was printed before all of it was forgotten is another machine's.
            if self.files().forgotten != forgotten {
                continue;
            }
            if let Err(error) = self.append(&buffer[..count]) {
                eprintln!("setpoint-agent: could not write a log: {error}");
            }
        }
    }

    /// Appends `data`.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn append(&self, data: &[u8]) -> io::Result<()> {
        let mut files = self.files();
        files.remember_last_line(data);
        let written = files.write(data);
        self.end.send_replace(files.end());
        written
    }

    /// The last line that is not blank since [`Self::forget_last_line`], cut to a bounded length.
    #[must_use]
    pub fn last_line(&self) -> String {
        String::from_utf8_lossy(&self.files().last_line).trim().to_owned()
    }

    /// Forgets the last line: what comes now belongs to another run.
    pub fn forget_last_line(&self) {
        let mut files = self.files();
        files.last_line.clear();
        files.line_ended = true;
    }

    /// Forgets everything. Readers go on with what comes.
    fn forget(&self) -> io::Result<()> {
        let mut files = self.files();
        files.newest.set_len(0)?;
        files.newest_start = files.end();
        files.newest_length = 0;
        files.forgotten += 1;
        files.older = None;
        match fs::remove_file(older_path(&files.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        files.last_line.clear();
        files.line_ended = true;
        Ok(())
    }

    /// A reader that begins `lines` lines before the end.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn tail(self: &Arc<Self>, lines: u32) -> io::Result<Reader> {
        let position = self.files().position_of_tail(lines)?;
        Ok(Reader { log: self.clone(), position, end: self.end.subscribe() })
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a log that moves towards its end.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    position: u64,
    end: watch::Receiver<u64>,
}

impl Reader {
    /// The next bytes, at most a chunk; `None` at the end. What was rotated away before it was read is skipped.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn read_next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let (position, data) = self.log.files().read(self.position, limits::CHUNK)?;
        self.position = position + data.len() as u64;
        Ok((!data.is_empty()).then_some(data))
    }

    /// Resolves when there is more than was read.
    pub async fn more(&mut self) {
        let position = self.position;
        self.end
            .wait_for(|end| *end > position)
            .await
            .map(drop)
            .expect("the reader holds the log, which holds the sender");
    }
}

impl Files {
    fn end(&self) -> u64 {
        self.newest_start + self.newest_length
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        if self.newest_length >= self.rotate_at {
            self.rotate()?;
        }
        self.newest.write_all(data)?;
        self.newest_length += data.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.path, older_path(&self.path))?;
        let fresh = File::options().read(true).append(true).create(true).open(&self.path)?;
        self.older = Some(std::mem::replace(&mut self.newest, fresh));
        self.older_start = self.newest_start;
        self.newest_start += self.newest_length;
        self.newest_length = 0;
        Ok(())
    }

    /// At most `limit` bytes from `position` on, or from the oldest that are kept; and where they begin.
    fn read(&self, position: u64, limit: usize) -> io::Result<(u64, Vec<u8>)> {
        let position = position.max(if self.older.is_some() { self.older_start } else { self.newest_start });
        let (file, start, end) = match &self.older {
            Some(older) if position < self.newest_start => (older, self.older_start, self.newest_start),
            _ => (&self.newest, self.newest_start, self.end()),
        };
        let available = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
        let mut data = vec![0; available.min(limit)];
        file.read_exact_at(&mut data, position - start)?;
        Ok((position, data))
    }

    /// Where the last `lines` lines begin, looking backwards a block at a time. An unfinished last line counts as one.
    fn position_of_tail(&self, lines: u32) -> io::Result<u64> {
        const BLOCK: u64 = 8 * 1024;
        let oldest = if self.older.is_some() { self.older_start } else { self.newest_start };
        let mut position = self.end();
        // The newline that ends the last line does not begin another.
        let mut wanted = u64::from(lines) + u64::from(self.last_byte()? == Some(b'\n'));
        if wanted == 0 {
            return Ok(position);
        }
        while position > oldest {
            // A block never spans both files.
            let floor = if position > self.newest_start { self.newest_start } else { oldest };
            let begin = position.saturating_sub(BLOCK).max(floor);
            let (_, block) = self.read(begin, usize::try_from(position - begin).unwrap_or(usize::MAX))?;
            for (at, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                wanted -= 1;
                if wanted == 0 {
                    return Ok(begin + at as u64 + 1);
                }
            }
            position = begin;
        }
        Ok(oldest)
    }

    fn last_byte(&self) -> io::Result<Option<u8>> {
        let end = self.end();
        if end == 0 { Ok(None) } else { Ok(self.read(end - 1, 1)?.1.first().copied()) }
    }

    fn remember_last_line(&mut self, data: &[u8]) {
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = line.split_last().map_or((line, false), |(last, text)| match last {
                b'\n' => (text, true),
                _ => (line, false),
            });
            if self.line_ended && !text.trim_ascii().is_empty() {
                self.last_line.clear();
                self.line_ended = false;
            }
            let room = LAST_LINE.saturating_sub(self.last_line.len());
            if !self.line_ended {
                self.last_line.extend_from_slice(&text[..text.len().min(room)]);
            }
            self.line_ended |= ended;
        }
    }
}

fn older_path(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    #[test]
    fn what_is_forgotten_is_read_by_nobody_and_readers_go_on_with_what_comes() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().join("logs")).unwrap();
        let open = logs.open("web").unwrap();
        open.append(b"of another\n").unwrap();
        fs::write(dir.path().join("logs/build.log"), "of another\n").unwrap();
        fs::write(dir.path().join("logs/web.log.1"), "of another\n").unwrap();
        let mut reader = open.tail(0).unwrap();
        logs.forget().unwrap();
        assert!(logs.find("build").unwrap().is_none());
        assert_eq!((open.tail(9).unwrap().read_next().unwrap(), open.last_line()), (None, String::new()));
        open.append(b"its own\n").unwrap();
        for reader in [&mut reader, &mut open.tail(9).unwrap()] {
            assert_eq!(reader.read_next().unwrap().unwrap(), b"its own\n");
        }
    }

    fn log(rotate_at: u64) -> (tempfile::TempDir, Arc<Log>) {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path().join("web.log"), rotate_at).unwrap();
        (directory, Arc::new(log))
    }

    fn read_all(reader: &mut Reader) -> String {
        let mut out = Vec::new();
        while let Some(data) = reader.read_next().unwrap() {
            out.extend(data);
        }
        String::from_utf8(out).unwrap()
    }

    fn tail(log: &Arc<Log>, lines: u32) -> String {
        read_all(&mut log.tail(lines).unwrap())
    }

    #[test]
    fn a_tail_is_whole_lines_across_both_files() {
        let (_directory, log) = log(20);
        for number in 0..8 {
            log.append(format!("line {number}\n").as_bytes()).unwrap();
        }
        assert_eq!(tail(&log, 0), "");
        assert_eq!(tail(&log, 1), "line 7\n");
        assert_eq!(tail(&log, 4), "line 4\nline 5\nline 6\nline 7\n");
        assert_eq!(tail(&log, 100), "line 3\nline 4\nline 5\nline 6\nline 7\n");
    }

    #[test]
    fn an_unfinished_line_counts_as_one() {
        let (_directory, log) = log(1000);
        log.append(b"one\ntwo\nthr").unwrap();
        assert_eq!(tail(&log, 1), "thr");
        assert_eq!(tail(&log, 2), "two\nthr");
    }

    #[test]
    fn a_reader_keeps_its_place_over_a_rotation() {
        let (_directory, log) = log(10);
        log.append(b"0123456789").unwrap();
        let mut reader = log.tail(1).unwrap();
        log.append(b"abcdefghij").unwrap();
        assert_eq!(read_all(&mut reader), "0123456789abcdefghij");
        log.append(b"KLMNOPQRST").unwrap();
        log.append(b"uvwxyz").unwrap();
        assert_eq!(read_all(&mut reader), "KLMNOPQRSTuvwxyz");
    }

    #[test]
    fn what_was_rotated_away_is_skipped() {
        let (directory, log) = log(10);
        log.append(b"0123456789").unwrap();
        let mut reader = log.tail(1).unwrap();
        for _ in 0..5 {
            log.append(b"abcdefghij").unwrap();
        }
        assert_eq!(read_all(&mut reader), "abcdefghijabcdefghij");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_goes_on_where_an_earlier_boot_ended() {
        let (directory, log) = log(10);
        log.append(b"before the\n").unwrap();
        log.append(b"boot\n").unwrap();
        drop(log);
        let log = Arc::new(Log::open(directory.path().join("web.log"), 10).unwrap());
        log.append(b"after\n").unwrap();
        assert_eq!(tail(&log, 10), "before the\nboot\nafter\n");
    }

    #[tokio::test]
    async fn a_follower_wakes_when_something_is_written() {
        let (_directory, log) = log(1000);
        let mut reader = log.tail(0).unwrap();
        let following = tokio::spawn(async move {
            reader.more().await;
            read_all(&mut reader)
        });
        tokio::task::yield_now().await;
        log.append(b"news\n").unwrap();
        assert_eq!(following.await.unwrap(), "news\n");
    }

    #[test]
    fn the_last_line_is_the_last_that_says_something_and_bounded() {
        let (_directory, log) = log(1000);
        log.append(b"first\nsec").unwrap();
        log.append(b"ond\n\n  \n").unwrap();
        assert_eq!(log.last_line(), "second");
        log.append(&[b'x'; 10_000]).unwrap();
        assert_eq!(log.last_line().len(), LAST_LINE);
        log.forget_last_line();
        assert_eq!(log.last_line(), "");
    }
}
