//! The file system that holds the workspace, and its growing to a disk that the host made larger.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::sys;

/// How long the kernel may take to notice that the host made the disk larger. It says so nowhere that can be waited for.
const NOTICE: Duration = Duration::from_secs(2);

/// Where the workspace is stored.
#[derive(Debug, Clone)]
pub enum DataDisk {
    /// On an ext4 file system.
    Ext4 {
        /// Its block device, as `/dev/vda`.
        device: PathBuf,
        /// Where the kernel shows the device's length, in units of 512 bytes, as `/sys/block/vda/size`.
        length: PathBuf,
        /// Where it is mounted.
        mount: PathBuf,
    },
    /// In a directory of a file system that is not the agent's to grow.
    Directory(PathBuf),
}

impl DataDisk {
    /// The size of the file system, in bytes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn size(&self) -> io::Result<u64> {
        match self {
            Self::Ext4 { device, .. } => Ok(Superblock::read(&File::open(device)?)?.size()),
            Self::Directory(path) => {
                let stat = rustix::fs::statvfs(path)?;
                Ok(stat.f_blocks * stat.f_frsize)
            }
        }
    }

    /// Grows the file system to its disk; its size after that.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn grow(&self) -> io::Result<u64> {
        if let Self::Ext4 { device, length, mount } = self {
            let superblock = Superblock::read(&File::open(device)?)?;
            let deadline = Instant::now() + NOTICE;
            let blocks = loop {
                let sectors = std::fs::read_to_string(length)?.trim().parse::<u64>().map_err(io::Error::other)?;
                let blocks = sectors * 512 / superblock.block_size;
                if blocks > superblock.blocks || Instant::now() >= deadline {
                    break blocks;
                }
                sleep(Duration::from_millis(20)).await;
            };
            if blocks > superblock.blocks {
                sys::resize_ext4(File::open(mount)?, blocks)?;
            }
        }
        self.size()
    }
}

/// What of the ext4 superblock matters here; offsets from the kernel's Documentation/filesystems/ext4/super.rst.
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    blocks: u64,
    block_size: u64,
}

impl Superblock {
    fn read(device: &File) -> io::Result<Self> {
        let mut bytes = [0; 1024];
        device.read_exact_at(&mut bytes, 1024)?;
        Self::parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the data disk holds no ext4"))
    }

    fn parse(bytes: &[u8; 1024]) -> Option<Self> {
        let u32_at = |at: usize| bytes[at..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let magic = u16::from_le_bytes(*bytes[0x38..].first_chunk()?);
        let has_high_half = u32_at(0x60)? & 0x80 != 0;
        let high = if has_high_half { u64::from(u32_at(0x150)?) } else { 0 };
        let blocks = u64::from(u32_at(0x4)?) | high << 32;
        let block_size = 1024_u64.checked_shl(u32_at(0x18)?)?;
        (magic == 0xef53 && block_size <= 64 * 1024).then_some(Self { blocks, block_size })
    }

    fn size(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    #[test]
    fn a_superblock_gives_the_file_systems_size() {
        let mut bytes = [0; 1024];
        bytes[0x38..0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
        bytes[0x4..0x8].copy_from_slice(&131_072_u32.to_le_bytes());
        bytes[0x18] = 2;
        assert_eq!(Superblock::parse(&bytes).unwrap().size(), 512 << 20);
        bytes[0x60] = 0x80;
        bytes[0x150] = 1;
        assert_eq!(Superblock::parse(&bytes).unwrap().blocks, (1 << 32) + 131_072);
        assert_eq!(Superblock::parse(&[0; 1024]), None);
    }
}
