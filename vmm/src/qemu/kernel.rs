//! The guest's kernel: found where the host has one, or fetched as a distribution package without any privileges.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::files::io_error;
use crate::driver::{Result, VmmError};

/// The distribution's package that always depends on its newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

const HINT: &str = "install the package linux-image-cloud-amd64, or set `kernel` under [vmm] to a kernel image";

/// A kernel image with its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As `6.1.0-56-cloud-amd64`.
    pub version: String,
    /// The bootable image.
    pub image: PathBuf,
    /// The directory `lib/modules/<version>`.
    pub modules: PathBuf,
}

/// Finds a kernel: the configured one; else the newest installed on the host; else the newest in the cache.
pub(super) fn find(configured: Option<&Path>, modules: Option<&Path>, cache: &Path) -> Result<Option<Kernel>> {
    if let Some(image) = configured {
        return configured_kernel(image, modules).map(Some);
    }
    if let Some(kernel) = newest(Path::new("/")) {
        return Ok(Some(kernel));
    }
    let packages = fs::read_dir(cache).into_iter().flatten().flatten();
    Ok(packages.filter_map(|package| newest(&package.path())).max_by(|a, b| by_version(&a.version, &b.version)))
}

/// Finds a kernel, or fetches the distribution's package into the cache.
pub(super) fn find_or_install(configured: Option<&Path>, modules: Option<&Path>, cache: &Path) -> Result<Kernel> {
    match find(configured, modules, cache)? {
        Some(kernel) => Ok(kernel),
        None => install(cache),
    }
}

/// Downloads and unpacks the distribution's newest kernel for virtual machines into `cache/<package>`, with the rights of the
/// caller.
pub(super) fn install(cache: &Path) -> Result<Kernel> {
    let depends = run(Command::new("apt-cache").args(["depends", "--important", META_PACKAGE]))?;
    let package = newest_dependency(&depends).ok_or_else(|| missing(format!("apt knows no package {META_PACKAGE}")))?;
    let target = cache.join(&package);
    if newest(&target).is_none() {
        tracing::info!(%package, "fetching a kernel for microVMs");
        unpack_package(&package, cache, &target)?;
    }
    newest(&target).ok_or_else(|| missing(format!("package {package} holds no kernel image")))
}

fn unpack_package(package: &str, cache: &Path, target: &Path) -> Result<()> {
    let work = cache.join(format!(".{package}"));
    if work.exists() {
        fs::remove_dir_all(&work).map_err(io_error("remove", &work))?;
    }
    let tree = work.join("tree");
    fs::create_dir_all(&tree).map_err(io_error("create", &tree))?;
    run(Command::new("apt-get").args(["-q", "download", package]).current_dir(&work))?;
    let archive = fs::read_dir(&work).map_err(io_error("list", &work))?.flatten().map(|entry| entry.path());
    let archive = archive.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let archive = archive.ok_or_else(|| missing(format!("apt-get downloaded no archive of {package}")))?;
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree))?;
    fs::rename(&tree, target).map_err(io_error("rename", &tree))?;
    fs::remove_dir_all(&work).map_err(io_error("remove", &work))
}

/// The kernel package among the lines of `apt-cache depends`, as `  Depends: linux-image-6.1.0-56-cloud-amd64`.
fn newest_dependency(depends: &str) -> Option<String> {
    let packages = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let kernels = packages.filter(|package| package.starts_with("linux-image-"));
    kernels.max_by(|a, b| by_version(a, b)).map(ToOwned::to_owned)
}

fn configured_kernel(image: &Path, modules: Option<&Path>) -> Result<Kernel> {
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let version = name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-")).unwrap_or(&name).to_owned();
    if !image.is_file() {
        return Err(missing(format!("there is no kernel image {}", image.display())));
    }
    // Beside the image when it lies in an unpacked package, else where the host keeps modules.
    let unpacked = image.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join("lib/modules").join(&version);
    let installed = Path::new("/lib/modules").join(&version);
    let candidates = modules.map(Path::to_owned).into_iter().chain([unpacked, installed]);
    let modules = candidates.into_iter().find(|path| path.is_dir());
    let modules = modules.ok_or_else(|| missing(format!("kernel {version} has no directory lib/modules/{version}")))?;
    Ok(Kernel { version, image: image.to_owned(), modules })
}

/// The newest kernel for virtual machines under a root directory, with its modules.
fn newest(root: &Path) -> Option<Kernel> {
    let images = fs::read_dir(root.join("boot")).ok()?.flatten();
    let kernels = images.filter_map(|image| {
        let name = image.file_name().into_string().ok()?;
        let version = name.strip_prefix("vmlinuz-").filter(|version| version.ends_with("-cloud-amd64"))?.to_owned();
        let modules = root.join("lib/modules").join(&version);
        // Some distributions let root alone read their kernels.
        let readable = modules.is_dir() && fs::File::open(image.path()).is_ok();
        readable.then(|| Kernel { version, image: image.path(), modules })
    });
    kernels.max_by(|a, b| by_version(&a.version, &b.version))
}

/// Compares versions number by number, so that `6.10` is newer than `6.9`.
fn by_version(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| missing(format!("no kernel for microVMs is here, and {program} cannot run: {error}")))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint = complaint.lines().last().unwrap_or_default().to_owned();
        return Err(missing(format!("no kernel for microVMs is here, and {program} failed: {complaint}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn missing(problem: String) -> VmmError {
    VmmError::Unsupported { problem, hint: HINT.to_owned() }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    fn plant(root: &Path, version: &str) {
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::create_dir_all(root.join("lib/modules").join(version)).unwrap();
        fs::write(root.join("boot").join(format!("vmlinuz-{version}")), "").unwrap();
    }

    #[test]
    fn the_newest_version_wins_by_number_and_not_by_letter() {
        let dir = tempfile::tempdir().unwrap();
        plant(dir.path(), "6.9.0-1-cloud-amd64");
        plant(dir.path(), "6.10.0-1-cloud-amd64");
        plant(dir.path(), "7.0.0-1-amd64");
        assert_eq!(newest(dir.path()).unwrap().version, "6.10.0-1-cloud-amd64");
    }

    #[test]
    fn a_configured_image_of_an_unpacked_package_finds_its_modules() {
        let dir = tempfile::tempdir().unwrap();
        plant(dir.path(), "6.1.0-1-cloud-amd64");
        let image = dir.path().join("boot/vmlinuz-6.1.0-1-cloud-amd64");
        let kernel = find(Some(&image), None, Path::new("/nowhere")).unwrap().unwrap();
        assert_eq!(kernel.modules, dir.path().join("lib/modules/6.1.0-1-cloud-amd64"));
    }

    #[test]
    fn a_configured_image_that_is_not_there_is_an_error_and_not_a_fallback() {
        assert!(find(Some(Path::new("/nowhere/vmlinuz-1")), None, Path::new("/nowhere")).is_err());
    }

    #[test]
    fn the_package_is_read_from_what_apt_says() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: x\n";
        assert_eq!(newest_dependency(depends).unwrap(), "linux-image-6.1.0-56-cloud-amd64");
    }
}
