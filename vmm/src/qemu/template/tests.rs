//! Root images are looked at with `debugfs`, as the guest's kernel would see them.

#![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

use tar::{Builder, EntryType, Header};

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    templates: Templates,
    digest: TemplateDigest,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::new(dir.path().join("templates"));
        Self { dir, templates, digest: TemplateDigest("t1".into()) }
    }

    fn tar(&self, fill: impl FnOnce(&mut Builder<File>)) -> Result<()> {
        let path = self.dir.path().join("root.tar");
        let mut builder = Builder::new(File::create(&path).unwrap());
        fill(&mut builder);
        builder.finish().unwrap();
        self.templates.make(&self.digest, Some(&TemplateSource::Tar(path)))
    }

    fn stat(&self, path: &str) -> String {
        let Some(Root::Image(image)) = self.templates.root(&self.digest) else { panic!("no image") };
        let output = Command::new(tool("debugfs")).args(["-R", &format!("stat {path}")]).arg(image).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn add(tar: &mut Builder<File>, path: &str, kind: EntryType, mode: u32, owner: (u64, u64), content: &str) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.0);
    header.set_gid(owner.1);
    // The bytes themselves, because the builder refuses the paths that an attacker would write.
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    if matches!(kind, EntryType::Symlink | EntryType::Link) {
        header.set_link_name_literal(content).unwrap();
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, std::io::empty()).unwrap();
    } else {
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
}

#[test]
fn owners_modes_and_links_of_a_tar_archive_are_kept() {
    let fixture = Fixture::new();
    let made = fixture.tar(|tar| {
        add(tar, "./bin/", EntryType::Directory, 0o755, (0, 0), "");
        add(tar, "./bin/su", EntryType::Regular, 0o4755, (0, 0), "x");
        add(tar, "./secret", EntryType::Regular, 0o000, (0, 42), "y");
        add(tar, "./home/app file", EntryType::Regular, 0o644, (100_000, 1000), "z");
        add(tar, "./sh", EntryType::Symlink, 0o777, (0, 0), "/bin/su");
        add(tar, "dev/console", EntryType::Char, 0o600, (0, 0), "");
    });
    made.unwrap();
    let su = fixture.stat("/bin/su");
    assert!(su.contains("Mode: 04755") && su.contains("User: 0 Group: 0"), "{su}");
    let secret = fixture.stat("/secret");
    assert!(secret.contains("Mode: 0000") && secret.contains("User: 0 Group: 42"), "{secret}");
    let file = fixture.stat("\"/home/app file\"");
    assert!(file.contains("Mode: 0644") && file.contains("User: 100000 Group: 1000"), "{file}");
    assert!(fixture.stat("/home").contains("User: 0 Group: 0"));
    assert!(fixture.stat("/sh").contains("Fast link dest: \"/bin/su\""));
    assert!(!fixture.dir.path().join("templates/t1.img.staging").exists());
}

#[test]
fn the_image_of_a_tar_archive_is_a_clean_file_system() {
    let fixture = Fixture::new();
    fixture.tar(|tar| add(tar, "a", EntryType::Regular, 0o644, (7, 7), "x")).unwrap();
    let Some(Root::Image(image)) = fixture.templates.root(&fixture.digest) else { panic!("no image") };
    let check = Command::new(tool("e2fsck")).arg("-fn").arg(image).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

#[test]
fn paths_and_links_that_lead_out_are_refused_and_make_nothing() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().to_owned();
    type Fill = Box<dyn FnOnce(&mut Builder<File>)>;
    let attacks: Vec<(&str, Fill)> = vec![
        ("dots", Box::new(|tar| add(tar, "../evil", EntryType::Regular, 0o644, (0, 0), "x"))),
        ("through a link", {
            let target = target.clone();
            Box::new(move |tar| {
                add(tar, "link", EntryType::Symlink, 0o777, (0, 0), &target);
                add(tar, "link/evil", EntryType::Regular, 0o644, (0, 0), "x");
            })
        }),
        ("hard link", Box::new(|tar| add(tar, "hard", EntryType::Link, 0o644, (0, 0), "/etc/passwd"))),
        ("device", Box::new(|tar| add(tar, "tmp/sda", EntryType::Block, 0o666, (0, 0), ""))),
    ];
    for (name, attack) in attacks {
        let fixture = Fixture::new();
        assert!(fixture.tar(attack).is_err(), "{name}");
        assert!(fixture.templates.root(&fixture.digest).is_none(), "{name}");
        assert!(!fixture.dir.path().join("templates/evil").exists(), "{name}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn what_was_exported_from_a_repository_belongs_to_root() {
    let fixture = Fixture::new();
    let root = fixture.dir.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/motd"), "hello").unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(root.join("etc/motd"), Some(1234), Some(1234)).unwrap();
    }
    fixture.templates.make(&fixture.digest, Some(&TemplateSource::Exported(root))).unwrap();
    let motd = fixture.stat("/etc/motd");
    assert!(motd.contains("User: 0 Group: 0"), "{motd}");
}

#[test]
fn the_built_in_template_needs_no_image() {
    let fixture = Fixture::new();
    assert_eq!(fixture.templates.root(&fixture.digest), None);
    fixture.templates.make(&fixture.digest, None).unwrap();
    assert_eq!(fixture.templates.root(&fixture.digest), Some(Root::BuiltIn));
}
