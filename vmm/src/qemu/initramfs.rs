//! What the guest's kernel starts from: the agent as `/init`, the modules it loads, and the built-in template.
//!
//! ```text
//! /init                            the agent
//! /lib/modules/setpoint/order      file names, one a line, in the order to load them
//! /lib/modules/setpoint/*.ko
//! /template/…                      a busybox system, the root when the microVM has no root image
//! ```
//!
//! It is not compressed: the host's page cache has it anyway, and unpacking it under emulation takes as long as it saves.

use std::path::{Path, PathBuf};
use std::process::Command;

use setpoint_schema::id::sha256_hex;

use super::cpio::Archive;
use super::files::{io_error, write_atomic};
use super::modules::Module;
use crate::driver::{Result, VmmError};

/// The user that a guest's processes run as.
const USER: &str = "app:x:1000:1000:app:/workspace:/bin/sh";

/// A busybox with the names it answers to.
pub(super) struct Busybox {
    content: Vec<u8>,
    applets: Vec<String>,
}

impl Busybox {
    /// Finds the configured program, else the host's.
    pub fn find(configured: Option<&Path>) -> Result<PathBuf> {
        let installed = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let candidates: &[&Path] = if let Some(path) = &configured { std::slice::from_ref(path) } else { &installed };
        candidates.iter().find(|path| path.is_file()).map(|path| path.to_path_buf()).ok_or_else(|| {
            let looked: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
            unsupported(format!("there is no busybox at {}", looked.join(" or ")))
        })
    }

    /// Reads it. It must run without any library, as the guest has none.
    pub fn read(path: &Path) -> Result<Self> {
        let content = std::fs::read(path).map_err(io_error("read", path))?;
        // A dynamic program names its loader, which stands in its first page.
        if content.iter().take(4096).copied().collect::<Vec<_>>().windows(8).any(|bytes| bytes == b"ld-linux") {
            return Err(unsupported(format!("{} is not statically linked", path.display())));
        }
        let list = Command::new(path).arg("--list").output().map_err(io_error("run", path))?;
        let mut applets: Vec<_> = String::from_utf8_lossy(&list.stdout).lines().map(ToOwned::to_owned).collect();
        applets.retain(|name| name != "busybox" && !name.contains('/'));
        applets.sort();
        Ok(Self { content, applets })
    }
}

/// Makes the initramfs, or finds the one that was made from the same parts.
pub(super) fn prepare(cache: &Path, agent: &[u8], modules: &[Module], busybox: &Busybox) -> Result<PathBuf> {
    let archive = pack(agent, modules, busybox);
    let path = cache.join(format!("initramfs-{}.cpio", &sha256_hex(&[&archive])[..16]));
    let complete = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == archive.len() as u64);
    if !complete {
        std::fs::create_dir_all(cache).map_err(io_error("create", cache))?;
        write_atomic(&path, &archive).map_err(io_error("write", &path))?;
    }
    Ok(path)
}

fn pack(agent: &[u8], modules: &[Module], busybox: &Busybox) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "lib", "lib/modules", "lib/modules/setpoint"] {
        archive.directory(directory, 0o755);
    }
    // The kernel gives its first process this console before anything is mounted.
    archive.character_device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, agent);
    let order: Vec<_> = modules.iter().map(|module| module.file_name.as_str()).collect();
    archive.file("lib/modules/setpoint/order", 0o644, (order.join("\n") + "\n").as_bytes());
    for module in modules {
        archive.file(&format!("lib/modules/setpoint/{}", module.file_name), 0o644, &module.content);
    }
    pack_template(&mut archive, busybox);
    archive.finish()
}

fn pack_template(archive: &mut Archive, busybox: &Busybox) {
    archive.directory("template", 0o755);
    for directory in
        ["bin", "dev", "etc", "home", "mnt", "opt", "proc", "run", "sys", "usr", "usr/local", "usr/local/bin"]
    {
        archive.directory(&format!("template/{directory}"), 0o755);
    }
    for directory in ["var", "var/log", "var/lib", "workspace"] {
        archive.directory(&format!("template/{directory}"), 0o755);
    }
    archive.directory("template/root", 0o700).directory("template/tmp", 0o1777).directory("template/var/tmp", 0o1777);
    for (link, target) in [("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("var/run", "../run")] {
        archive.symlink(&format!("template/{link}"), target);
    }
    archive.file("template/bin/busybox", 0o755, &busybox.content);
    for applet in &busybox.applets {
        archive.symlink(&format!("template/bin/{applet}"), "busybox");
    }
    let files = [
        ("passwd", format!("root:x:0:0:root:/root:/bin/sh\n{USER}\nnobody:x:65534:65534:nobody:/:/bin/false\n")),
        ("group", "root:x:0:\napp:x:1000:\nnogroup:x:65534:\n".to_owned()),
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
        ("shells", "/bin/sh\n".to_owned()),
        ("profile", "export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\n".to_owned()),
        // The name server of QEMU's user network.
        ("resolv.conf", "nameserver 10.0.2.3\n".to_owned()),
    ];
    for (name, content) in files {
        archive.file(&format!("template/etc/{name}"), 0o644, content.as_bytes());
    }
}

fn unsupported(problem: String) -> VmmError {
    VmmError::Unsupported {
        problem,
        hint: "install the package busybox-static, or set `busybox` under [vmm]".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    fn busybox() -> Busybox {
        Busybox { content: b"box".to_vec(), applets: vec!["ls".into(), "sh".into()] }
    }

    #[test]
    fn equal_parts_give_the_same_file_and_another_agent_gives_another() {
        let dir = tempfile::tempdir().unwrap();
        let modules = [Module { file_name: "a.ko".into(), content: vec![1] }];
        let first = prepare(dir.path(), b"agent", &modules, &busybox()).unwrap();
        assert_eq!(prepare(dir.path(), b"agent", &modules, &busybox()).unwrap(), first);
        assert_ne!(prepare(dir.path(), b"newer", &modules, &busybox()).unwrap(), first);
    }

    #[test]
    fn a_cut_file_in_the_cache_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = prepare(dir.path(), b"agent", &[], &busybox()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..10]).unwrap();
        assert_eq!(prepare(dir.path(), b"agent", &[], &busybox()).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_configured_busybox_that_is_missing_is_an_error_and_not_a_fallback() {
        assert!(Busybox::find(Some(Path::new("/nowhere/busybox"))).is_err());
    }
}
