//! Owners and modes that an image is to have and its staging directory has not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::{attributes, refused, walk};
use crate::driver::Result;
use crate::qemu::disk::debugfs;

/// Owner and permission bits of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits with set-uid, set-gid and sticky, without the file's type.
    pub mode: u32,
}

/// What to correct, by path in the image.
#[derive(Debug, Default)]
pub(super) struct Owners {
    corrections: BTreeMap<PathBuf, Correction>,
}

#[derive(Debug)]
struct Correction {
    wanted: Attributes,
    /// The file's type bits, which share a field with the mode.
    kind: u32,
}

/// The type bits of a mode.
const KIND: u32 = 0o170_000;

impl Owners {
    /// Everything under `root` is to belong to root.
    pub fn all_root(root: &Path) -> Result<Self> {
        let mut owners = Self::default();
        walk(root, &mut |path, metadata| {
            let present = attributes(metadata);
            owners.correct(path, metadata, Attributes { uid: 0, gid: 0, ..present });
            Ok(())
        })?;
        Ok(owners)
    }

    /// What has to be corrected in the copy of `root` for its files to be as `wanted`.
    pub fn differing(root: &Path, wanted: &BTreeMap<PathBuf, Attributes>) -> Result<Self> {
        let mut owners = Self::default();
        walk(root, &mut |path, metadata| {
            // A directory that the archive only implies belongs to root.
            let implied = Attributes { uid: 0, gid: 0, mode: 0o755 };
            let wanted = wanted.get(path).copied().unwrap_or(implied);
            // The bits of a link mean nothing and differ between systems.
            let mode = if metadata.is_symlink() { attributes(metadata).mode } else { wanted.mode };
            owners.correct(path, metadata, Attributes { mode, ..wanted });
            Ok(())
        })?;
        Ok(owners)
    }

    fn correct(&mut self, path: &Path, metadata: &fs::Metadata, wanted: Attributes) {
        use std::os::unix::fs::MetadataExt as _;
        if attributes(metadata) != wanted {
            let kind = metadata.mode() & KIND;
            self.corrections.insert(path.to_owned(), Correction { wanted, kind });
        }
    }

    /// Writes the corrections into an image's inodes.
    pub fn write_into(&self, image: &Path) -> Result<()> {
        if self.corrections.is_empty() {
            return Ok(());
        }
        let script = self.script(image)?;
        debugfs(image, &script)
    }

    fn script(&self, image: &Path) -> Result<String> {
        let mut script = String::new();
        for (path, Correction { wanted, kind }) in &self.corrections {
            let path = quoted(path).ok_or_else(|| refused(image, "has a file name with a line break"))?;
            let Attributes { uid, gid, mode } = wanted;
            write!(
                script,
                "set_inode_field {path} uid {uid}\nset_inode_field {path} gid {gid}\nset_inode_field {path} mode 0{:o}\n",
                kind | mode
            )
            .expect("writing to a string cannot fail");
        }
        Ok(script)
    }
}

/// A path as debugfs reads it; one with a line break would end the command.
fn quoted(path: &Path) -> Option<String> {
    let path = path.to_str()?;
    (!path.contains(['\n', '\r'])).then(|| format!("\"/{}\"", path.replace('"', "\"\"")))
}
