//! The workspace follows git, keeps what is not git's, and is never left.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use futures_util::stream;
use setpoint_guest::client::{SyncError, SyncFile};
use setpoint_guest::limits;
use setpoint_guest::proto::FileKind;

use crate::rig::{Rig, entry, file, set};

fn mode(rig: &Rig, path: &str) -> u32 {
    fs::metadata(rig.workspace().join(path)).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn files_arrive_with_content_mode_and_manifest() {
    let rig = Rig::new().await;
    let big = vec![b'x'; limits::CHUNK * 5 + 1];
    let files = [
        file("a/b/c.txt", "hello"),
        file("empty", ""),
        entry("run.sh", FileKind::Executable, "#!/bin/sh\n"),
        entry("a/link", FileKind::Symlink, "b/c.txt"),
        file("big", big.clone()),
    ];
    rig.sync("t1", &[], &files).await.unwrap();
    assert_eq!(rig.read("a/b/c.txt").unwrap(), "hello");
    assert_eq!(rig.read("a/link").unwrap(), "hello");
    assert_eq!(rig.read("empty").unwrap(), "");
    assert_eq!(fs::read(rig.workspace().join("big")).unwrap(), big);
    assert_eq!((mode(&rig, "run.sh"), mode(&rig, "big")), (0o755, 0o644));
    let manifest = rig.client.manifest().await.unwrap();
    assert_eq!((manifest.tree.as_str(), manifest.entries.len()), ("t1", 5));
    assert_eq!(rig.client.status().await.unwrap().tree, "t1");
}

#[tokio::test]
async fn what_is_gone_from_git_goes_and_what_git_never_had_stays() {
    let rig = Rig::new().await;
    rig.sync("t1", &[], &[file("lib/old.js", "1"), file("lib/deep/old.js", "1"), file("keep.js", "1")]).await.unwrap();
    fs::create_dir(rig.workspace().join("node_modules")).unwrap();
    fs::write(rig.workspace().join("node_modules/x"), "installed").unwrap();
    rig.sync("t2", &["lib/old.js", "lib/deep/old.js", "node_modules/x"], &[]).await.unwrap();
    assert!(!rig.workspace().join("lib").exists());
    assert_eq!(rig.read("node_modules/x").unwrap(), "installed");
    assert_eq!(rig.read("keep.js").unwrap(), "1");
    assert_eq!(rig.client.manifest().await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_file_and_a_directory_can_take_each_others_place() {
    let rig = Rig::new().await;
    rig.sync("t1", &[], &[file("a/b/c", "1"), file("d", "1")]).await.unwrap();
    rig.sync("t2", &["a/b/c", "d"], &[file("a", "file"), file("d/e", "deep")]).await.unwrap();
    assert_eq!((rig.read("a").unwrap(), rig.read("d/e").unwrap()), ("file".into(), "deep".into()));
}

#[tokio::test]
async fn a_directory_with_files_that_git_never_had_is_not_replaced() {
    let rig = Rig::new().await;
    fs::create_dir(rig.workspace().join("data")).unwrap();
    fs::write(rig.workspace().join("data/db"), "rows").unwrap();
    let error = rig.sync("t1", &[], &[file("data", "x")]).await.unwrap_err();
    assert!(error.to_string().contains("files that git never had"), "{error}");
    assert_eq!(rig.read("data/db").unwrap(), "rows");
    assert_eq!(rig.client.status().await.unwrap().tree, "");
}

#[tokio::test]
async fn paths_and_links_out_of_the_workspace_are_refused() {
    let rig = Rig::new().await;
    for path in ["../evil", "/etc/evil", "a/../../evil", "", "a//b", "."] {
        assert!(rig.sync("t", &[], &[file(path, "x")]).await.is_err(), "{path}");
    }
    for target in ["/etc/passwd", "../../x", "..", "a/../../.."] {
        let link = entry("link", FileKind::Symlink, target);
        assert!(rig.sync("t", &[], &[link]).await.is_err(), "{target}");
    }
    assert!(!rig.directory.path().join("evil").exists());
    assert_eq!(rig.client.manifest().await.unwrap().entries.len(), 0);
}

#[tokio::test]
async fn a_link_that_the_app_put_in_the_way_is_replaced_and_not_followed() {
    let rig = Rig::new().await;
    rig.sync("t1", &[], &[file("dir/f", "1")]).await.unwrap();
    let outside = rig.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "precious").unwrap();
    fs::remove_dir_all(rig.workspace().join("dir")).unwrap();
    symlink(&outside, rig.workspace().join("dir")).unwrap();
    rig.sync("t2", &[], &[file("dir/f", "2")]).await.unwrap();
    assert_eq!(rig.read("dir/f").unwrap(), "2");
    fs::remove_dir_all(rig.workspace().join("dir")).unwrap();
    symlink(&outside, rig.workspace().join("dir")).unwrap();
    rig.sync("t3", &["dir/f"], &[]).await.unwrap();
    assert_eq!(fs::read_to_string(outside.join("f")).unwrap(), "precious");
}

#[tokio::test]
async fn an_interrupted_sync_keeps_the_old_manifest_and_leaves_nothing_behind() {
    let rig = Rig::new().await;
    rig.sync("t1", &[], &[file("a", "1")]).await.unwrap();
    let cut_short = [Ok(file("a", "2")), Ok(file("sub/new", "2")), Err("the repository went away")];
    let error = rig.client.sync("t2", Vec::new(), stream::iter(cut_short)).await.unwrap_err();
    assert!(matches!(error, SyncError::Files("the repository went away")), "{error}");
    let manifest = rig.client.manifest().await.unwrap();
    assert_eq!((manifest.tree.as_str(), manifest.entries.len()), ("t1", 1));
    let rig = rig.rebooted().await;
    assert_eq!(rig.client.status().await.unwrap().tree, "t1");
    // What the host wants by now no longer has the file that the lost sync brought.
    rig.sync("t3", &[], &[file("a", "3")]).await.unwrap();
    assert_eq!(rig.read("a").unwrap(), "3");
    assert!(!rig.workspace().join("sub").exists());
}

#[tokio::test]
async fn a_manifest_of_many_pages_arrives_whole() {
    let rig = Rig::new().await;
    let files: Vec<SyncFile> = (0..2000).map(|number| file(&format!("dir/file-{number:04}"), "x")).collect();
    rig.sync("t1", &[], &files).await.unwrap();
    let manifest = rig.client.manifest().await.unwrap();
    let paths: Vec<&str> = manifest.entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(paths, files.iter().map(|file| file.entry.path.as_str()).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_a_copy_leaves_out_goes_once_and_what_git_had_in_it_comes_again() {
    let rig = Rig::new().await;
    let files =
        [file("out/page.html", "1"), file("src/out/deep.html", "1"), file("keep.js", "1"), file("src/out.txt", "1")];
    rig.sync("t1", &[], &files).await.unwrap();
    let outside = rig.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "precious").unwrap();
    for path in ["node_modules/a/b", "src/deep/node_modules/c"] {
        fs::create_dir_all(rig.workspace().join(path)).unwrap();
        fs::write(rig.workspace().join(path).join("x"), "installed").unwrap();
    }
    symlink(&outside, rig.workspace().join("src/node_modules")).unwrap();
    symlink(&outside, rig.workspace().join("node_modules/link")).unwrap();
    assert_eq!(rig.client.left_out().await.unwrap(), "");
    let log = rig.state().join("logs/web.log");
    fs::write(&log, "of another").unwrap();
    let rig = rig.rebooted().await;

    let names = || vec!["node_modules".to_owned(), "out".to_owned()];
    rig.client.leave_out("5e1f", names()).await.unwrap();
    assert_eq!(rig.client.left_out().await.unwrap(), "5e1f");
    assert!(!log.exists(), "it shows the logs of another app");
    assert!(["node_modules", "src/deep/node_modules", "out", "src/out"].iter().all(|path| rig.read(path).is_none()));
    assert!(["node_modules", "src/deep/node_modules", "out"].iter().all(|path| !rig.workspace().join(path).exists()));
    assert_eq!((rig.read("keep.js").unwrap(), rig.read("src/out.txt").unwrap()), ("1".into(), "1".into()));
    assert_eq!(fs::read_to_string(outside.join("f")).unwrap(), "precious");
    assert!(rig.workspace().join("src/node_modules").is_symlink());
    let manifest = rig.client.manifest().await.unwrap();
    assert_eq!((manifest.tree.as_str(), manifest.entries.len()), ("", 2));
    assert_eq!(rig.client.status().await.unwrap().tree, "");
    rig.sync("t1", &[], &files[..2]).await.unwrap();
    assert_eq!(rig.read("out/page.html").unwrap(), "1");

    // What the app makes afterwards is its own.
    fs::create_dir(rig.workspace().join("node_modules")).unwrap();
    rig.client.apply(set("one")).await.unwrap();
    rig.client.leave_out("5e1f", names()).await.unwrap();
    rig.client.leave_out("07e4", names()).await.unwrap_err();
    assert!(rig.workspace().join("node_modules").exists());
}

#[tokio::test]
async fn only_names_of_directories_are_left_out() {
    let rig = Rig::new().await;
    fs::create_dir(rig.workspace().join("data")).unwrap();
    for wrong in ["", ".", "..", "../data", "a/b", "/data"] {
        rig.client.leave_out("5e1f", vec![wrong.to_owned()]).await.unwrap_err();
    }
    rig.client.leave_out("../x", vec!["data".to_owned()]).await.unwrap_err();
    rig.client.leave_out("5e1f", vec!["x".to_owned(); limits::LEFT_OUT + 1]).await.unwrap_err();
    assert!(rig.workspace().join("data").exists());
    assert_eq!(rig.client.left_out().await.unwrap(), "");
}
