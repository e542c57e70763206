//! The memory of a guest inside its VMM's process: where it is mapped, which pages were written, reading and writing them.
//!
//! Pages of a private file mapping that were written are anonymous, and `/proc/PID/pagemap` tells them from the file's (see
//! Documentation/admin-guide/mm/pagemap.rst): present or swapped, and neither the file's nor shared. A guest that began with
//! fresh memory has it in a file without a name, of which the kernel tells what is not a hole.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::num::NonZero;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::pages::{CHUNK, PAGE, Touched, bytes, ranges, touch};
use super::{MemoryError, Result, failed};

/// What the mapping of fresh memory is called, after the object that QEMU makes it with.
const FRESH_NAME: &str = "/memfd:memory-backend-memfd";

/// How much of the page map is read at once: the entries of 512 MiB of memory.
const PAGEMAP_READ: usize = 1 << 20;

/// How much more room is made for a copy than is written when it is made: what a guest writes in the milliseconds until it stands.
const MORE: usize = 4 << 20;

/// How much of a copy is worth a thread: some milliseconds' worth.
const COPY_EACH: usize = 8 << 20;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;

/// What a guest's memory was made from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mapped<'a> {
    /// Nothing: zeros.
    Fresh,
    /// This file, privately.
    Base(&'a Path),
}

/// The memory of one guest. It must stand still while it is read.
#[derive(Debug)]
pub(crate) struct GuestRam {
    memory: File,
    path: PathBuf,
    /// Where page 0 of the guest lies in `memory`.
    offset: u64,
    bytes: u64,
    written: Written,
}

/// The written pages of a guest's memory at one moment.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(super) bytes: u64,
    pub(super) touched: Vec<Touched>,
    /// Their content, one behind the other.
    pub(super) content: Vec<u8>,
}

/// Memory for a copy of pages.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: Vec<u8>,
}

impl Captured {
    /// How much was written, in bytes.
    pub fn written(&self) -> u64 {
        self.content.len() as u64
    }
}

#[derive(Debug)]
enum Written {
    /// Whatever is no hole in the file itself.
    NotHoles,
    /// What the page map shows as anonymous.
    Anonymous { pagemap: File, path: PathBuf },
}

impl GuestRam {
    /// Finds the memory of a guest, `bytes` long, in the process `pid`.
    pub fn find(pid: i32, bytes: u64, mapped: Mapped<'_>) -> Result<Self> {
        match mapped {
            Mapped::Fresh => Self::find_fresh(pid, bytes),
            Mapped::Base(base) => Self::find_private(pid, bytes, base),
        }
    }

    fn find_fresh(pid: i32, bytes: u64) -> Result<Self> {
        let descriptors = PathBuf::from(format!("/proc/{pid}/fd"));
        for entry in fs::read_dir(&descriptors).map_err(forbidden(pid, "list", &descriptors))? {
            let path = entry.map_err(failed("list", &descriptors))?.path();
            // A descriptor that was closed meanwhile is not the one.
            let Ok(target) = fs::read_link(&path) else { continue };
            if target.to_string_lossy().starts_with(FRESH_NAME) {
                let memory = File::open(&path).map_err(forbidden(pid, "open", &path))?;
                let length = memory.metadata().map_err(failed("inspect", &path))?.len();
                if length >= bytes {
                    return Ok(Self { memory, path, offset: 0, bytes, written: Written::NotHoles });
                }
            }
        }
        Err(MemoryError::NoMapping { pid, bytes })
    }

    fn find_private(pid: i32, bytes: u64, base: &Path) -> Result<Self> {
        let maps = PathBuf::from(format!("/proc/{pid}/maps"));
        let file = File::open(&maps).map_err(forbidden(pid, "open", &maps))?;
        let inode = fs::metadata(base).map_err(failed("inspect", base))?.ino();
        let mut areas = Vec::new();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(failed("read", &maps))?;
            areas.extend(Area::parse(&line).filter(|area| area.inode == inode));
        }
        let low = whole(&areas, bytes).ok_or(MemoryError::NoMapping { pid, bytes })?;
        let open = |name: &str, write: bool| -> Result<_> {
            let path = PathBuf::from(format!("/proc/{pid}/{name}"));
            let file = File::options().read(true).write(write).open(&path).map_err(forbidden(pid, "open", &path))?;
            Ok((file, path))
        };
        let (memory, path) = open("mem", true)?;
        let (pagemap, pagemap_path) = open("pagemap", false)?;
        Ok(Self { memory, path, offset: low, bytes, written: Written::Anonymous { pagemap, path: pagemap_path } })
    }

    /// How much memory the guest has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The pages that were written since the process began, in order.
    pub(super) fn touched(&self) -> Result<Vec<Touched>> {
        match &self.written {
            Written::NotHoles => self.not_holes(),
            Written::Anonymous { pagemap, path } => self.anonymous(pagemap).map_err(failed("read", path)),
        }
    }

    fn not_holes(&self) -> Result<Vec<Touched>> {
        let mut touched = Vec::new();
        let mut at = 0;
        while at < self.bytes {
            let seek = |to| rustix::fs::seek(&self.memory, to);
            let begin = match seek(SeekFrom::Data(at)) {
                Ok(begin) => begin,
                // Nothing but a hole up to the end.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(failed("look for holes in", &self.path)(error.into())),
            };
            let end = seek(SeekFrom::Hole(begin)).map_err(|e| failed("look for holes in", &self.path)(e.into()))?;
            touch(&mut touched, begin / PAGE as u64, end.min(self.bytes).div_ceil(PAGE as u64));
            at = end;
        }
        Ok(touched)
    }

    fn anonymous(&self, pagemap: &File) -> io::Result<Vec<Touched>> {
        let pages = self.bytes / PAGE as u64;
        let first = self.offset / PAGE as u64;
        let mut entries = vec![0; PAGEMAP_READ];
        let mut touched = Vec::new();
        let mut page = 0;
        while page < pages {
            let count = usize::try_from((pages - page) * 8).unwrap_or(usize::MAX).min(PAGEMAP_READ);
            pagemap.read_exact_at(&mut entries[..count], (first + page) * 8)?;
            for (at, entry) in entries[..count].chunks_exact(8).enumerate() {
                let entry = u64::from_ne_bytes(entry.try_into().expect("a chunk of eight bytes has eight"));
                if entry & (PRESENT | SWAPPED) != 0 && entry & FILE_OR_SHARED == 0 {
                    let number = page + at as u64;
                    touch(&mut touched, number, number + 1);
                }
            }
            page += count as u64 / 8;
        }
        Ok(touched)
    }

    /// Room for a copy of the pages that are written now, and of some more, made while the guest runs.
    pub fn room(&self) -> Result<Room> {
        let written = length(&self.touched()?);
        // Filled rather than only asked for: the kernel gives the memory now, and not while the guest stands still.
        Ok(Room { bytes: vec![1; written + written / 8 + MORE] })
    }

    /// Copies the pages that were written since the process began, so that the guest need not stand still any longer.
    pub fn capture(&self, room: Room) -> Result<Captured> {
        let touched = self.touched()?;
        let mut content = room.bytes;
        content.resize(length(&touched), 0);
        let readers = (content.len() / COPY_EACH).clamp(1, thread::available_parallelism().map_or(1, NonZero::get));
        thread::scope(|scope| {
            let mut rest = content.as_mut_slice();
            let mut others = Vec::new();
            for part in touched.chunks(touched.len().div_ceil(readers).max(1)) {
                let (own, behind) = rest.split_at_mut(length(part));
                rest = behind;
                if rest.is_empty() {
                    self.copy(part, own)?;
                } else {
                    others.push(scope.spawn(move || self.copy(part, own)));
                }
            }
            let joined = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.collect::<Result<()>>()
        })?;
        Ok(Captured { bytes: self.bytes, touched, content })
    }

    /// Copies the pages of `touched`, one behind the other.
    fn copy(&self, touched: &[Touched], mut content: &mut [u8]) -> Result<()> {
        for Touched { chunk, pages } in touched {
            for range in ranges(*pages) {
                let (part, behind) = content.split_at_mut(range.len());
                self.read(u64::from(*chunk) * CHUNK as u64 + range.start as u64, part)?;
                content = behind;
            }
        }
        Ok(())
    }

    /// Reads from `offset` of the guest's memory on.
    pub(super) fn read(&self, offset: u64, content: &mut [u8]) -> Result<()> {
        self.memory.read_exact_at(content, self.offset + offset).map_err(failed("read", &self.path))
    }

    /// Writes from `offset` of the guest's memory on. The guest must not have run yet.
    pub(super) fn write(&self, offset: u64, content: &[u8]) -> Result<()> {
        self.memory.write_all_at(content, self.offset + offset).map_err(failed("write", &self.path))
    }
}

/// What the pages take.
fn length(touched: &[Touched]) -> usize {
    touched.iter().map(|touched| bytes(touched.pages)).sum()
}

/// One line of `/proc/PID/maps`, see proc_pid_maps(5).
#[derive(Debug, PartialEq, Eq)]
struct Area {
    low: u64,
    high: u64,
    offset: u64,
    inode: u64,
}

impl Area {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (low, high) = words.next()?.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let offset = hex(words.nth(1)?)?;
        let inode = words.nth(1)?.parse().ok()?;
        Some(Self { low: hex(low)?, high: hex(high)?, offset, inode })
    }
}

/// Where areas of one file, which the kernel may have split, map all of it from its beginning on without a gap.
fn whole(areas: &[Area], bytes: u64) -> Option<u64> {
    let low = areas.iter().find(|area| area.offset == 0)?.low;
    let mut end = low;
    for area in areas {
        if area.low == end && area.offset == end - low {
            end = area.high;
        }
    }
    (end - low >= bytes).then_some(low)
}

/// What the kernel's guard against looking into other processes refuses is told apart from other failures.
fn forbidden(pid: i32, operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MemoryError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => MemoryError::Forbidden { pid, source },
        _ => MemoryError::Io { operation, path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_of_a_file_that_were_split_are_one_memory() {
        let line = "7f0000000000-7f0000200000 rw-p 00000000 fe:00 42    /a b/x.ram";
        let area = Area::parse(line).expect("a line of the format");
        assert_eq!(area, Area { low: 0x7f00_0000_0000, high: 0x7f00_0020_0000, offset: 0, inode: 42 });
        let next = Area { low: 0x7f00_0020_0000, high: 0x7f00_0040_0000, offset: 0x20_0000, inode: 42 };
        assert_eq!(whole(&[area, next], 4 << 20), Some(0x7f00_0000_0000));
        assert_eq!(whole(&[Area { low: 0, high: 0x1000, offset: 0, inode: 1 }], 0x2000), None);
    }
}
