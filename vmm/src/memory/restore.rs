//! Bringing a memory back: the base is mapped by the VMM itself, the chunks that differ are checked and written into it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use super::image::{Chunk, Image, hash};
use super::pages::{CHUNK, ranges};
use super::process::GuestRam;
use super::store::{Store, read_packed};
use super::{MemoryError, Result, failed};

/// Chunks that are read ahead of the VMM: 32 MiB at most.
const AHEAD: usize = 512;

/// An image on its way into a process, read and checked while the process starts.
pub(crate) struct Loading {
    chunks: Receiver<Checked>,
    reader: JoinHandle<Result<()>>,
}

/// A chunk with each page in its place.
struct Checked {
    chunk: Chunk,
    content: Box<[u8; CHUNK]>,
}

impl Loading {
    /// Begins to read and check `image`, its base first.
    pub fn start(store: &Store, image: Image) -> Self {
        let store = store.clone();
        let (sender, chunks) = sync_channel(AHEAD);
        let reader = thread::spawn(move || {
            if let Some(base) = &image.base {
                store.check_base(base)?;
            }
            let layers = Layers::open(&store, &image)?;
            for chunk in image.chunks {
                let content = layers.read(&chunk)?;
                // Nobody takes it any more: the VMM did not start.
                if sender.send(Checked { chunk, content }).is_err() {
                    break;
                }
            }
            Ok(())
        });
        Self { chunks, reader }
    }

    /// Writes everything into a process that has not run yet. Until this has succeeded it must not run.
    pub fn finish(self, ram: &GuestRam) -> Result<()> {
        for Checked { chunk, content } in &self.chunks {
            let begin = u64::from(chunk.number) * CHUNK as u64;
            for range in ranges(chunk.written) {
                ram.write(begin + range.start as u64, &content[range])?;
            }
        }
        match self.reader.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// The packs of an image, open.
pub(super) struct Layers {
    packs: Vec<(File, PathBuf)>,
    dir: PathBuf,
}

impl Layers {
    pub fn open(store: &Store, image: &Image) -> Result<Self> {
        let open = |id| -> Result<_> {
            let path = store.pack_path(id);
            Ok((File::open(&path).map_err(failed("open", &path))?, path))
        };
        let packs = image.packs.iter().map(open).collect::<Result<Vec<_>>>()?;
        Ok(Self { packs, dir: store.dir().to_owned() })
    }

    /// The pages of one of the image's chunks in their places, checked.
    pub fn read(&self, chunk: &Chunk) -> Result<Box<[u8; CHUNK]>> {
        match self.packs.get(chunk.pack as usize) {
            _ if chunk.data == 0 => Ok(Box::new([0; CHUNK])),
            Some((file, path)) => read_checked(file, path, chunk),
            None => Err(MemoryError::Damaged { path: self.dir.clone(), what: "a pack is missing" }),
        }
    }
}

fn read_checked(file: &File, path: &Path, chunk: &Chunk) -> Result<Box<[u8; CHUNK]>> {
    let mut packed = Box::new([0; CHUNK]);
    let pages = read_packed(file, chunk, &mut packed).map_err(failed("read", path))?;
    if hash(chunk.number, chunk.written, chunk.data, pages) != chunk.hash {
        return Err(MemoryError::Damaged { path: path.to_owned(), what: "a chunk's checksum does not match" });
    }
    let mut content = Box::new([0; CHUNK]);
    let mut at = 0;
    for range in ranges(chunk.data) {
        let length = range.len();
        content[range].copy_from_slice(&pages[at..at + length]);
        at += length;
    }
    Ok(content)
}
