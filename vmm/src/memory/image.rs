//! The file that describes one memory: its base, its packs, and a line for each chunk. All numbers are little-endian.
//!
//! ```text
//! "setpoint memory\n"                                    16 bytes
//! version u32, page size u32, memory u64                 16
//! base: 32 hex digits, or 32 zero bytes                  32
//! packs u32, chunks u32                                   8
//! pack: 32 hex digits                                    32 each
//! chunk: number u32, written u16, data u16, pack u32,    12
//!        position u64, SHA-256                           40
//! SHA-256 of all before                                  32
//! ```

use setpoint_schema::id::SnapshotId;
use sha2::{Digest as _, Sha256};

use super::pages::{CHUNK, PAGE, PageMask};

const MAGIC: &[u8; 16] = b"setpoint memory\n";
const VERSION: u32 = 1;
const ID: usize = 32;
const HASH: usize = 32;
const HEADER: usize = 16 + 16 + ID + 8;
const ENTRY: usize = 12 + 8 + HASH;

/// A SHA-256.
pub(super) type Hash = [u8; HASH];

/// One memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// How much memory the guest has, in bytes.
    pub memory: u64,
    /// What the chunks differ from; without one, from zeros.
    pub base: Option<SnapshotId>,
    /// The packs that hold the chunks' pages.
    pub(super) packs: Vec<SnapshotId>,
    /// The chunks that differ, in order.
    pub(super) chunks: Vec<Chunk>,
}

/// The pages of one chunk that differ from the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Counted from the beginning of the memory.
    pub number: u32,
    /// The pages that differ.
    pub written: PageMask,
    /// Those of them that are not zero, and so have bytes.
    pub data: PageMask,
    /// Which of the image's packs holds them. In a base's own image there are none: its pages lie in place.
    pub pack: u32,
    /// Where in it.
    pub position: u64,
    /// Of masks, number and bytes, see [`hash`].
    pub hash: Hash,
}

impl Image {
    /// The entry of one chunk.
    pub(super) fn find(&self, number: u32) -> Option<&Chunk> {
        let at = self.chunks.binary_search_by_key(&number, |chunk| chunk.number).ok()?;
        self.chunks.get(at)
    }

    /// As it is written.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.packs.len() * ID + self.chunks.len() * ENTRY + HASH);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((PAGE as u32).to_le_bytes());
        out.extend(self.memory.to_le_bytes());
        out.extend(id_bytes(self.base.as_ref()));
        let count = |length: usize| u32::try_from(length).expect("an image has fewer chunks than a guest has pages");
        out.extend(count(self.packs.len()).to_le_bytes());
        out.extend(count(self.chunks.len()).to_le_bytes());
        for pack in &self.packs {
            out.extend(id_bytes(Some(pack)));
        }
        for chunk in &self.chunks {
            out.extend(chunk.number.to_le_bytes());
            out.extend(chunk.written.to_le_bytes());
            out.extend(chunk.data.to_le_bytes());
            out.extend(chunk.pack.to_le_bytes());
            out.extend(chunk.position.to_le_bytes());
            out.extend(chunk.hash);
        }
        let sum = Sha256::digest(&out);
        out.extend_from_slice(&sum);
        out
    }

    /// Reads what [`Self::encode`] wrote; otherwise says what is wrong with it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (content, sum) = bytes.split_last_chunk::<HASH>().ok_or("it is too short")?;
        if Sha256::digest(content)[..] != sum[..] {
            return Err("its checksum does not match");
        }
        let mut rest = Fields(content);
        if rest.take::<16>()? != *MAGIC {
            return Err("it is no description of a memory");
        }
        if rest.u32()? != VERSION {
            return Err("it has another version");
        }
        if rest.u32()? != PAGE as u32 {
            return Err("it was made with pages of another size");
        }
        let memory = rest.u64()?;
        let base = rest.id()?;
        let (packs, chunks) = (rest.u32()?, rest.u32()?);
        let packs = (0..packs).map(|_| rest.id()?.ok_or("a pack has no name")).collect::<Result<Vec<_>, _>>()?;
        let chunks = (0..chunks).map(|_| rest.chunk()).collect::<Result<Vec<_>, _>>()?;
        let image = Self { memory, base, packs, chunks };
        image.check()?;
        if rest.0.is_empty() { Ok(image) } else { Err("it is too long") }
    }

    fn check(&self) -> Result<(), &'static str> {
        let in_order = self.chunks.windows(2).all(|pair| pair[0].number < pair[1].number);
        let inside = self.chunks.last().is_none_or(|last| u64::from(last.number) * (CHUNK as u64) < self.memory);
        let with_data = self.chunks.iter().all(|chunk| chunk.data & !chunk.written == 0);
        if in_order && inside && with_data { Ok(()) } else { Err("its chunks are out of order") }
    }
}

/// What tells one content of a chunk from another: equal hashes are equal chunks.
pub(super) fn hash(number: u32, written: PageMask, data: PageMask, pages: &[u8]) -> Hash {
    let mut hash = Sha256::new();
    hash.update(number.to_le_bytes());
    hash.update(written.to_le_bytes());
    hash.update(data.to_le_bytes());
    hash.update(pages);
    hash.finalize().into()
}

fn id_bytes(id: Option<&SnapshotId>) -> [u8; ID] {
    let mut bytes = [0; ID];
    if let Some(id) = id {
        let text = id.as_str().as_bytes();
        bytes[..text.len().min(ID)].copy_from_slice(&text[..text.len().min(ID)]);
    }
    bytes
}

/// What is still to be read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or("it ends too early")?;
        self.0 = rest;
        Ok(*field)
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        self.take().map(u64::from_le_bytes)
    }

    /// A name becomes a file's, so nothing but digits is one.
    fn id(&mut self) -> Result<Option<SnapshotId>, &'static str> {
        let bytes: [u8; ID] = self.take()?;
        if bytes == [0; ID] {
            return Ok(None);
        }
        let id = SnapshotId(String::from_utf8_lossy(&bytes).into_owned());
        if is_id(&id) { Ok(Some(id)) } else { Err("it names a file wrongly") }
    }

    fn chunk(&mut self) -> Result<Chunk, &'static str> {
        let (number, written, data) = (self.u32()?, self.u16()?, self.u16()?);
        Ok(Chunk { number, written, data, pack: self.u32()?, position: self.u64()?, hash: self.take()? })
    }
}

/// Whether an id is 32 lower-case hex digits.
pub(super) fn is_id(id: &SnapshotId) -> bool {
    let text = id.as_str();
    text.len() == ID && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    fn image() -> Image {
        let chunk =
            |number| Chunk { number, written: 3, data: 1, pack: 0, position: 4096, hash: hash(number, 3, 1, b"x") };
        Image {
            memory: 1 << 28,
            base: Some(SnapshotId("ab".repeat(16))),
            packs: vec![SnapshotId("cd".repeat(16))],
            chunks: vec![chunk(1), chunk(7)],
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Image::decode(&image().encode()).unwrap(), image());
        let empty = Image { memory: 4096, base: None, packs: Vec::new(), chunks: Vec::new() };
        assert_eq!(Image::decode(&empty.encode()).unwrap(), empty);
    }

    #[test]
    fn any_changed_or_missing_byte_is_noticed() {
        let whole = image().encode();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(Image::decode(&damaged).is_err(), "byte {at}");
            assert!(Image::decode(&whole[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn chunks_out_of_order_and_names_with_slashes_are_refused() {
        let mut twice = image();
        twice.chunks[1].number = 1;
        assert!(Image::decode(&twice.encode()).is_err());
        let mut named = image();
        named.packs[0] = SnapshotId("../".repeat(10) + "ab");
        assert!(Image::decode(&named.encode()).is_err());
    }
}
