//! Which kernel modules a guest needs, in the order in which they load.
//!
//! An unpacked package has no `modules.dep`: that is made at installation. What a module depends on stands in the module
//! itself, in its section `.modinfo`, as `depends=virtio,virtio_ring`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::MachineType;
use super::files::io_error;
use super::kernel::Kernel;
use crate::driver::{Result, VmmError};

/// One module to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// File name in the guest, as `virtio_blk.ko`.
    pub file_name: String,
    /// Its content, uncompressed.
    pub content: Vec<u8>,
}

/// What the agent and its devices need, whichever of it is not built into the kernel.
fn needed(machine: MachineType) -> [&'static str; 7] {
    let bus = match machine {
        MachineType::Microvm => "virtio_mmio",
        MachineType::Q35 => "virtio_pci",
    };
    [bus, "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "overlay", "ext4"]
}

/// Reads the needed modules, each after those that it depends on.
pub(super) fn load(kernel: &Kernel, machine: MachineType) -> Result<Vec<Module>> {
    let mut loader = Loader {
        files: module_files(&kernel.modules)?,
        builtin: builtin(&kernel.modules),
        version: &kernel.version,
        seen: BTreeSet::new(),
        loaded: Vec::new(),
    };
    for name in needed(machine) {
        loader.load(name)?;
    }
    Ok(loader.loaded)
}

struct Loader<'a> {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    version: &'a str,
    seen: BTreeSet<String>,
    loaded: Vec<Module>,
}

impl Loader<'_> {
    fn load(&mut self, name: &str) -> Result<()> {
        if self.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name).cloned() else {
            return Err(VmmError::Unsupported {
                problem: format!("kernel {} has no module {name}", self.version),
                hint: "use a distribution kernel with virtio and overlay, as linux-image-cloud-amd64".to_owned(),
            });
        };
        let content = read_module(&path)?;
        for dependency in dependencies(&content) {
            self.load(&dependency)?;
        }
        self.loaded.push(Module { file_name: format!("{name}.ko"), content });
        Ok(())
    }
}

/// Module name to file. The kernel takes `-` and `_` in names for the same.
fn module_files(directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut open = vec![directory.join("kernel")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).map_err(io_error("list", &directory))? {
            let entry = entry.map_err(io_error("list", &directory))?;
            let kind = entry.file_type().map_err(io_error("inspect", &entry.path()))?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if let Some(name) = module_name(&entry.path()) {
                files.insert(name, entry.path());
            }
        }
    }
    Ok(files)
}

fn module_name(path: &Path) -> Option<String> {
    let (name, rest) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn builtin(directory: &Path) -> BTreeSet<String> {
    let list = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    list.lines().filter_map(|line| module_name(Path::new(line))).collect()
}

/// The module's bytes; compressed ones go through the program that every distribution with such modules has.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).map_err(io_error("read", path)),
    };
    let output = Command::new(program).arg("-dc").arg(path).output().map_err(io_error("decompress", path))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(io_error("decompress", path)(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())))
}

/// What stands in `.modinfo` after `depends=`. The section is a list of zero-terminated texts, so that searching the file for
/// one needs no reading of ELF tables.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    /// A kernel whose modules are nothing but their dependencies.
    fn kernel(dir: &Path, modules: &[(&str, &str)], builtin: &[&str]) -> Kernel {
        fs::create_dir_all(dir.join("kernel/drivers")).unwrap();
        for (name, depends) in modules {
            let content = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(dir.join("kernel/drivers").join(format!("{name}.ko")), content).unwrap();
        }
        let lines: Vec<_> = builtin.iter().map(|name| format!("kernel/fs/{name}.ko")).collect();
        fs::write(dir.join("modules.builtin"), lines.join("\n")).unwrap();
        Kernel { version: "6.1".into(), image: "/k".into(), modules: dir.to_owned() }
    }

    const MODULES: &[(&str, &str)] = &[
        ("virtio", "virtio_ring"),
        ("virtio_ring", ""),
        ("virtio_mmio", "virtio,virtio_ring"),
        ("virtio_blk", "virtio_ring,virtio"),
        ("virtio_console", "virtio"),
        ("virtio_net", "net_failover"),
        ("net_failover", "failover"),
        ("failover", ""),
        ("virtio-rng", "virtio"),
    ];

    #[test]
    fn every_module_comes_after_what_it_depends_on() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = load(&kernel(dir.path(), MODULES, &["ext4", "overlay"]), MachineType::Microvm).unwrap();
        let names: Vec<_> = loaded.iter().map(|module| module.file_name.as_str()).collect();
        let position = |name: &str| names.iter().position(|n| *n == format!("{name}.ko")).unwrap();
        for (name, depends) in MODULES {
            for dependency in depends.split(',').filter(|d| !d.is_empty()) {
                assert!(position(dependency) < position(&name.replace('-', "_")), "{names:?}");
            }
        }
        assert_eq!(names.len(), MODULES.len());
    }

    #[test]
    fn a_kernel_without_a_needed_module_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(&kernel(dir.path(), MODULES, &["ext4"]), MachineType::Microvm).unwrap_err();
        assert_eq!(error.to_string(), "kernel 6.1 has no module overlay");
    }
}
