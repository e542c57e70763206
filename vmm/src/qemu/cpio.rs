//! Writes the archive format of Linux's initramfs, "newc": see `Documentation/driver-api/early-userspace/buffer-format.rst` in
//! the kernel's sources. Equal content gives equal bytes: every time is zero, and all belongs to root.

use std::fmt::Write as _;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; its parents must stand before it.
    pub fn directory(&mut self, path: &str, mode: u32) -> &mut Self {
        self.entry(path, DIRECTORY | mode, (0, 0), &[])
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.entry(path, REGULAR | mode, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, mode: u32, number: (u32, u32)) -> &mut Self {
        self.entry(path, CHARACTER | mode, number, &[])
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) -> &mut Self {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).expect("no file of an initramfs has four gigabytes");
        let name_size = u32::try_from(path.len()).expect("paths are short") + 1;
        // inode, mode, uid, gid, links, mtime, size, device, device of the node, length of the name, check sum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        let mut header = "070701".to_owned();
        for field in fields {
            write!(header, "{field:08x}").expect("writing to a string cannot fail");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_cpio_program_reads_what_is_written() {
        let mut archive = Archive::default();
        archive.directory("bin", 0o755).file("bin/odd", 0o755, b"abc").symlink("init", "bin/odd");
        let mut cpio = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let listing = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let words: Vec<Vec<_>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words.len(), 3, "{listing}");
        assert_eq!((words[1][0], words[1][4], *words[1].last().unwrap()), ("-rwxr-xr-x", "3", "bin/odd"));
        assert!(listing.contains("init -> bin/odd"), "{listing}");
    }
}
