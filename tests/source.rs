//! The source over real repositories: what is read, what is refused, and how soon a change is noticed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/git.rs"]
mod git;
#[path = "support/http_git.rs"]
mod http_git;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use git::{Git, config, run_in};
use http_git::HttpGit;
use setpoint::source::watch::{Hint, Watcher};
use setpoint::source::{
    Excess, Files as _, Item, RemoteFault, Repository, SourceConfig, SourceError, SourceLimits, Worktree,
};
use setpoint_schema::id::CommitId;
use setpoint_schema::name::RepoPath;
use setpoint_vmm::driver::FileKind;

fn path(text: &str) -> RepoPath {
    RepoPath::new(text).unwrap()
}

fn paths(files: &dyn setpoint::source::Files) -> Vec<String> {
    let mut found = Vec::new();
    files.root().walk("", &mut |path, _| found.push(path));
    found
}

fn snapshot_error(repository: &Repository) -> SourceError {
    let tip = repository.tip().unwrap();
    repository.snapshot(&tip).map(|_| ()).unwrap_err()
}

#[test]
fn the_tip_and_tree_of_a_branch_are_read_from_the_object_database() {
    let git = Git::with(&[("apps/a/app.yaml", "one"), ("README", "read me")]);
    let head = git.head();
    git.write(&[("apps/a/app.yaml", "dirty"), ("untracked", "x")]);
    let repository = git.open();
    let tip = repository.tip().unwrap();
    assert_eq!(tip.as_str(), head);
    let snapshot = repository.snapshot(&tip).unwrap();
    assert_eq!(paths(&snapshot), ["README", "apps/a/app.yaml"]);
    let Some(Item::File { blob, kind: FileKind::Regular }) = snapshot.root().get(&path("apps/a/app.yaml")) else {
        panic!("no plain file");
    };
    assert_eq!(snapshot.read(blob, "", 100).unwrap(), b"one");
}

#[test]
fn bare_repositories_file_urls_and_linked_work_trees_are_opened_in_place() {
    let git = Git::with(&[("a", "1")]);
    let other = tempfile::tempdir().unwrap();
    let bare = other.path().join("bare.git");
    run_in(other.path(), &["clone", "--quiet", "--bare", git.path().to_str().unwrap(), bare.to_str().unwrap()], b"");
    let linked = other.path().join("linked");
    git.run(&["worktree", "add", "--quiet", "--detach", linked.to_str().unwrap()]);
    for url in [bare.display().to_string(), format!("file://{}", bare.display()), linked.display().to_string()] {
        let repository = Repository::open(&config(&url, SourceLimits::default())).unwrap();
        assert_eq!(repository.tip().unwrap().as_str(), git.head(), "{url}");
    }
}

#[test]
fn reading_writes_nothing() {
    let git = Git::with(&[("apps/a/app.yaml", "one")]);
    let before = listing(git.path());
    let repository = git.open();
    let tip = repository.tip().unwrap();
    let snapshot = repository.snapshot(&tip).unwrap();
    let _ = paths(&snapshot);
    repository.commit_info(&tip).unwrap();
    assert_eq!(listing(git.path()), before);
}

/// Every path with its time of change and size.
fn listing(dir: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        found.push(format!("{:?} {:?} {}", entry.path(), metadata.modified().unwrap(), metadata.len()));
        if metadata.is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn declarations_may_live_in_a_folder_of_the_repository() {
    let git = Git::with(&[("deploy/apps/a/app.yaml", "one"), ("src/main.rs", "code")]);
    let configured = SourceConfig { path: Some(path("deploy")), ..git.config() };
    let repository = Repository::open(&configured).unwrap();
    let tip = repository.tip().unwrap();
    assert_eq!(paths(&repository.snapshot(&tip).unwrap()), ["apps/a/app.yaml"]);
    git.run(&["rm", "--quiet", "-r", "deploy"]);
    git.commit_all();
    let error = snapshot_error(&repository);
    assert!(matches!(error, SourceError::FolderMissing { .. }), "{error:?}");
}

#[test]
fn without_a_branch_head_is_followed_through_a_switch() {
    let git = Git::with(&[("a", "1")]);
    let repository = Repository::open(&SourceConfig { branch: None, ..git.config() }).unwrap();
    let first = repository.tip().unwrap();
    git.run(&["switch", "--quiet", "--create", "other"]);
    let second = git.commit(&[("a", "2")]);
    assert_ne!(first.as_str(), second);
    assert_eq!(repository.tip().unwrap().as_str(), second);
}

#[test]
fn revisions_are_named_as_in_git() {
    let git = Git::with(&[("a", "1")]);
    let first = git.head();
    git.run(&["tag", "-a", "v1", "-m", "v1"]);
    let second = git.commit(&[("a", "2")]);
    let repository = git.open();
    for (rev, commit) in [("HEAD", &second), ("main~1", &first), ("v1", &first), (&first[..10], &first)] {
        assert_eq!(repository.resolve(rev).unwrap().as_str(), commit, "{rev}");
    }
    for rev in ["nonsense", "HEAD:a", "", "v2"] {
        let error = repository.resolve(rev).unwrap_err();
        assert!(matches!(error, SourceError::UnknownRevision { .. }), "{rev}: {error:?}");
    }
}

#[test]
fn a_commit_says_who_made_it_and_why() {
    let git = Git::with(&[("a", "1")]);
    git.run(&["commit", "--quiet", "--amend", "--message=Serve the blog\n\nAt last."]);
    let repository = git.open();
    let info = repository.commit_info(&repository.tip().unwrap()).unwrap();
    assert_eq!((info.author.as_str(), info.summary.as_str()), ("Ada", "Serve the blog"));
}

#[test]
fn a_rewritten_branch_is_no_descendant() {
    let git = Git::with(&[("a", "1")]);
    let first = CommitId(git.head().into());
    let second = CommitId(git.commit(&[("a", "2")]).into());
    git.run(&["reset", "--quiet", "--hard", "HEAD~1"]);
    let rewritten = CommitId(git.commit(&[("a", "3")]).into());
    let repository = git.open();
    assert!(repository.is_descendant(&first, &first).unwrap());
    assert!(repository.is_descendant(&first, &second).unwrap());
    assert!(!repository.is_descendant(&second, &rewritten).unwrap());
    assert!(!repository.is_descendant(&second, &first).unwrap());
}

#[test]
fn a_commit_that_was_collected_has_no_descendants() {
    let git = Git::with(&[("a", "1")]);
    let repository = git.open();
    let never = CommitId("1".repeat(40).into());
    assert!(!repository.is_descendant(&never, &repository.tip().unwrap()).unwrap());
}

#[test]
fn a_shallow_clone_cannot_tell_a_rewritten_branch_and_says_so() {
    let git = Git::with(&[("a", "1")]);
    let first = CommitId(git.head().into());
    git.commit(&[("a", "2")]);
    git.commit(&[("a", "3")]);
    let other = tempfile::tempdir().unwrap();
    let clone = other.path().join("clone");
    let url = format!("file://{}", git.path().display());
    run_in(other.path(), &["clone", "--quiet", "--depth=1", &url, clone.to_str().unwrap()], b"");
    run_in(&clone, &["fetch", "--quiet", "--depth=1", "origin", first.as_str()], b"");
    let repository = Repository::open(&config(clone.to_str().unwrap(), SourceLimits::default())).unwrap();
    let tip = repository.tip().unwrap();
    assert!(repository.snapshot(&tip).is_ok());
    let error = repository.is_descendant(&first, &tip).unwrap_err();
    assert!(matches!(error, SourceError::Shallow { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("--unshallow"));
}

#[test]
fn what_cannot_be_opened_is_told_apart() {
    let empty_dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| {
        Repository::open(&config(path.to_str().unwrap(), SourceLimits::default())).unwrap_err()
    };
    let error = open(&empty_dir.path().join("gone"));
    assert!(matches!(error, SourceError::Missing { .. }), "{error:?}");
    let error = open(empty_dir.path());
    assert!(matches!(error, SourceError::NotARepository { .. }), "{error:?}");
    let sha256 = Git::init_with(&["--object-format=sha256"]);
    let error = open(sha256.path());
    assert!(matches!(error, SourceError::Unsupported { feature: "SHA-256 objects", .. }), "{error:?}");
    let reftable = Git::init_with(&["--ref-format=reftable"]);
    let error = open(reftable.path());
    assert!(matches!(error, SourceError::Unsupported { feature: "the reftable format", .. }), "{error:?}");
}

#[test]
fn a_repository_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root can give a directory away.
    }
    let git = Git::with(&[("a", "1")]);
    let nobody = rustix::fs::Uid::from_raw(65534);
    for place in [git.path().to_owned(), git.path().join(".git")] {
        rustix::fs::chown(place, Some(nobody), None).unwrap();
    }
    let error = Repository::open(&git.config()).unwrap_err();
    assert!(matches!(error, SourceError::UnsafeOwner { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("safe.directory"));
}

#[test]
fn an_empty_repository_is_an_error_and_not_emptiness() {
    let error = Git::init().open().tip().unwrap_err();
    assert!(matches!(error, SourceError::Empty { .. }), "{error:?}");
}

#[test]
fn a_vanished_branch_is_an_error_that_names_others() {
    let git = Git::with(&[("a", "1")]);
    let repository = git.open();
    repository.tip().unwrap();
    git.run(&["branch", "--move", "trunk"]);
    let error = repository.tip().unwrap_err();
    assert!(matches!(&error, SourceError::BranchMissing { known, .. } if known == &["trunk"]), "{error:?}");
    assert!(error.hint().unwrap().contains("trunk"));
}

#[test]
fn a_vanished_repository_is_an_error_until_it_is_back() {
    let git = Git::with(&[("a", "1")]);
    let repository = git.open();
    let tip = repository.tip().unwrap();
    fs::rename(git.path().join(".git"), git.path().join("away")).unwrap();
    let error = repository.tip().unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. } | SourceError::NotARepository { .. }), "{error:?}");
    fs::rename(git.path().join("away"), git.path().join(".git")).unwrap();
    assert_eq!(repository.tip().unwrap(), tip);
}

#[test]
fn another_repository_at_the_same_path_is_read_anew() {
    let git = Git::with(&[("a", "1")]);
    let repository = git.open();
    repository.tip().unwrap();
    fs::remove_dir_all(git.path().join(".git")).unwrap();
    git.run(&["init", "--quiet", "--initial-branch=main"]);
    let fresh = git.commit(&[("a", "2")]);
    let tip = repository.tip().unwrap();
    assert_eq!(tip.as_str(), fresh);
    assert_eq!(paths(&repository.snapshot(&tip).unwrap()), ["a"]);
}

#[test]
fn damaged_and_missing_objects_are_errors() {
    let git = Git::with(&[("a", "some content")]);
    let repository = git.open();
    let tip = repository.tip().unwrap();
    let blob = git.run(&["rev-parse", "HEAD:a"]);
    let tree = git.run(&["rev-parse", "HEAD^{tree}"]);
    let file = |id: &str| git.path().join(".git/objects").join(&id[..2]).join(&id[2..]);
    fs::remove_file(file(&blob)).unwrap();
    let snapshot = repository.snapshot(&tip).unwrap();
    let error = snapshot.read(&setpoint_schema::id::BlobId(blob), "a", 100).unwrap_err();
    assert!(matches!(error, SourceError::Object { .. }), "{error:?}");
    fs::remove_file(file(&tree)).unwrap();
    fs::write(file(&tree), b"garbage").unwrap();
    let error = snapshot_error(&git.open());
    assert!(matches!(&error, SourceError::Object { id, .. } if *id == tree), "{error:?}");
}

#[test]
fn a_file_is_not_read_beyond_its_limit() {
    let git = Git::with(&[("big", &"x".repeat(1001))]);
    let repository = git.open();
    let snapshot = repository.snapshot(&repository.tip().unwrap()).unwrap();
    let Some(Item::File { blob, .. }) = snapshot.root().child("big") else { panic!("no file") };
    let error = snapshot.read(blob, "big", 1000).unwrap_err();
    let excess = Excess::FileSize { size: 1001, limit: 1000 };
    assert_eq!(error, SourceError::Limit { path: "big".to_owned(), excess });
    assert_eq!(repository.blobs_read(), 0);
}

#[test]
fn a_hundred_thousand_files_are_refused() {
    let git = Git::init();
    let blob = git.blob(b"");
    let mut folder = Vec::new();
    for name in 0..1000 {
        folder.extend(format!("100644 blob {blob}\t{name:04}\n").into_bytes());
    }
    let folder = git.mktree(&folder);
    let mut root = Vec::new();
    for name in 0..100 {
        root.extend(format!("040000 tree {folder}\t{name:03}\n").into_bytes());
    }
    let root = git.mktree(&root);
    git.commit_tree(&root);
    let error = snapshot_error(&git.open());
    assert!(matches!(error, SourceError::Limit { excess: Excess::Files { limit: 50_000 }, .. }), "{error:?}");
}

#[test]
fn a_tree_that_repeats_itself_without_end_is_refused_at_once() {
    let git = Git::init();
    let blob = git.blob(b"");
    let mut tree = git.mktree(format!("100644 blob {blob}\tfile\n").as_bytes());
    for _ in 0..30 {
        let lines: String = (0..10).map(|name| format!("040000 tree {tree}\t{name}\n")).collect();
        tree = git.mktree(lines.as_bytes());
    }
    git.commit_tree(&tree);
    let started = Instant::now();
    let error = snapshot_error(&git.open());
    assert!(matches!(error, SourceError::Limit { excess: Excess::Files { .. }, .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn deep_folders_and_long_paths_are_refused_by_name() {
    let limits = SourceLimits { depth: 3, path_bytes: 20, ..SourceLimits::default() };
    for (file, expected) in
        [("a/b/c/d/e", Excess::Depth { limit: 3 }), ("a-name-that-is-rather-long", Excess::PathLength { limit: 20 })]
    {
        let git = Git::with(&[(file, "x")]);
        let error = snapshot_error(&Repository::open(&git.config_with(limits)).unwrap());
        let SourceError::Limit { path, excess } = &error else { panic!("{error:?}") };
        assert_eq!(*excess, expected);
        assert!(file.starts_with(path), "{path}");
    }
}

#[test]
fn names_that_no_file_can_have_are_refused_and_the_rest_is_read() {
    let git = Git::init();
    let blob = git.blob(b"x");
    // `mktree` takes names that git itself would never check out.
    let tree = git.mktree(
        &[
            format!("100644 blob {blob}\tgood\n").into_bytes(),
            format!("100644 blob {blob}\t.git\n").into_bytes(),
            [format!("100644 blob {blob}\t").as_bytes(), b"bad-\xff\n"].concat(),
        ]
        .concat(),
    );
    git.commit_tree(&tree);
    let repository = git.open();
    let snapshot = repository.snapshot(&repository.tip().unwrap()).unwrap();
    let refused: Vec<&str> =
        snapshot.root().entries().filter(|(_, item)| matches!(item, Item::Refused(_))).map(|(name, _)| name).collect();
    assert_eq!(refused, [".git", "bad-\u{fffd}"]);
    assert!(matches!(snapshot.root().child("good"), Some(Item::File { .. })));
}

#[test]
fn an_unchanged_folder_is_not_read_again() {
    let git = Git::with(&[("a/1", "1"), ("b/1", "1"), ("c/d/1", "1")]);
    let repository = git.open();
    let first = repository.snapshot(&repository.tip().unwrap()).unwrap();
    assert_eq!(repository.trees_read(), 3, "the top, a and c; b and d are the same tree as a");
    git.commit(&[("a/1", "2")]);
    let second = repository.snapshot(&repository.tip().unwrap()).unwrap();
    assert_eq!(repository.trees_read(), 5, "the top and a");
    drop((first, second));
    repository.snapshot(&repository.tip().unwrap()).unwrap();
    assert_eq!(repository.trees_read(), 5);
}

#[test]
fn a_workspace_keeps_modes_and_inner_links() {
    let git = Git::with(&[("site/index.html", "hi"), ("site/run", "#!/bin/sh")]);
    git.run(&["update-index", "--chmod=+x", "site/run"]);
    git.run(&["commit", "--quiet", "--message=mode"]);
    symlink("index.html", git.path().join("site/start")).unwrap();
    git.run(&["add", "site/start"]);
    git.run(&["commit", "--quiet", "--message=link"]);
    let repository = git.open();
    let files = repository.workspace(&repository.tip().unwrap(), &path("site")).unwrap();
    let kinds: Vec<_> = files.iter().map(|(path, entry)| (path.as_str(), entry.kind)).collect();
    let expected = [("index.html", FileKind::Regular), ("run", FileKind::Executable), ("start", FileKind::Symlink)];
    assert_eq!(kinds, expected);
    assert_eq!(repository.workspace_blob(&files["start"].blob).unwrap(), b"index.html");
}

#[test]
fn a_workspace_with_a_link_out_of_it_or_a_submodule_is_refused() {
    let git = Git::with(&[("site/a", "1")]);
    symlink("../../etc/passwd", git.path().join("site/out")).unwrap();
    git.commit_all();
    let repository = git.open();
    let workspace = |repository: &Repository| repository.workspace(&repository.tip().unwrap(), &path("site"));
    let error = workspace(&repository).unwrap_err();
    assert!(matches!(&error, SourceError::Refused { path, .. } if path == "site/out"), "{error:?}");
    // A template's root may link anywhere.
    assert!(repository.folder(&repository.tip().unwrap(), &path("site")).is_ok());

    git.run(&["rm", "--quiet", "site/out"]);
    let head = git.head();
    git.run(&["update-index", "--add", "--cacheinfo", &format!("160000,{head},site/sub")]);
    git.run(&["commit", "--quiet", "--message=submodule"]);
    let error = workspace(&repository).unwrap_err();
    assert!(error.to_string().contains("site/sub is a submodule"), "{error}");
}

#[test]
fn a_working_directory_has_the_ids_that_a_commit_of_it_has() {
    let git = Git::with(&[("apps/a/app.yaml", "1"), ("apps/a.b", "x"), ("apps/a/x/y", "2"), (".gitignore", "*.log\n")]);
    symlink("app.yaml", git.path().join("apps/a/link")).unwrap();
    fs::set_permissions(git.path().join("apps/a.b"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    git.commit_all();
    git.write(&[("apps/noise.log", "ignored")]);
    fs::create_dir(git.path().join("empty")).unwrap();
    let repository = git.open();
    let committed = repository.snapshot(&repository.tip().unwrap()).unwrap();
    let worktree = Worktree::read(git.path(), SourceLimits::default()).unwrap();
    assert_eq!(paths(&worktree), paths(&committed));
    assert_eq!(worktree.root().id, committed.root().id);
}

#[tokio::test]
async fn commit_amend_switch_and_gc_are_noticed_within_a_second() {
    let git = Git::with(&[("a", "1")]);
    git.run(&["branch", "other"]);
    let repository = git.open();
    let mut watcher = Watcher::new(&repository, Duration::from_secs(3600));
    assert!(watcher.is_watching());
    settle(&mut watcher).await;
    let moves: [(&str, &[&str]); 5] = [
        ("commit", &["commit", "--quiet", "--allow-empty", "--message=x"]),
        ("amend", &["commit", "--quiet", "--amend", "--allow-empty", "--message=y"]),
        ("switch", &["switch", "--quiet", "other"]),
        ("new branch in a new folder", &["branch", "feature/deep"]),
        ("gc", &["gc", "--quiet"]),
    ];
    for (name, arguments) in moves {
        git.run(arguments);
        let hint = tokio::time::timeout(Duration::from_secs(1), watcher.hint()).await;
        assert_eq!(hint, Ok(Hint::Changed), "{name}");
        settle(&mut watcher).await;
    }
    // Packed refs are still read, and a commit after them still noticed.
    git.run(&["switch", "--quiet", "main"]);
    settle(&mut watcher).await;
    let packed = git.commit(&[("a", "2")]);
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), watcher.hint()).await, Ok(Hint::Changed));
    assert_eq!(repository.tip().unwrap().as_str(), packed);
}

/// Takes hints until there are no more.
async fn settle(watcher: &mut Watcher) {
    while tokio::time::timeout(Duration::from_millis(300), watcher.hint()).await.is_ok() {}
}

#[tokio::test]
async fn a_linked_work_tree_is_watched_where_its_refs_are() {
    let git = Git::with(&[("a", "1")]);
    let other = tempfile::tempdir().unwrap();
    let linked = other.path().join("linked");
    git.run(&["worktree", "add", "--quiet", "-b", "side", linked.to_str().unwrap()]);
    let side = SourceConfig { branch: Some("side".to_owned()), url: linked.display().to_string(), ..git.config() };
    let repository = Repository::open(&side).unwrap();
    let mut watcher = Watcher::new(&repository, Duration::from_secs(3600));
    settle(&mut watcher).await;
    run_in(&linked, &["commit", "--quiet", "--allow-empty", "--message=x"], b"");
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), watcher.hint()).await, Ok(Hint::Changed));
}

#[tokio::test]
async fn a_repository_that_was_replaced_is_watched_again_after_the_interval() {
    let git = Git::with(&[("a", "1")]);
    let repository = git.open();
    let mut watcher = Watcher::new(&repository, Duration::from_millis(200));
    fs::remove_dir_all(git.path().join(".git")).unwrap();
    git.run(&["init", "--quiet", "--initial-branch=main"]);
    let replaced = git.commit(&[("a", "2")]);
    while watcher.hint().await != Hint::Interval {}
    assert_eq!(repository.tip().unwrap().as_str(), replaced);
    assert!(watcher.is_watching());
}

#[test]
fn a_remote_is_mirrored_polled_and_fetched_only_when_it_moved() {
    let git = Git::with(&[("apps/a/app.yaml", "one")]);
    let server = HttpGit::serve(&git.path().join(".git"));
    let state = tempfile::tempdir().unwrap();
    let configured =
        SourceConfig { state_dir: state.path().to_owned(), ..config(&server.url(), SourceLimits::default()) };
    let repository = Repository::open(&configured).unwrap();
    assert!(repository.tip().is_err(), "nothing is fetched before the first poll");

    let tip = repository.poll().unwrap();
    assert_eq!(tip.as_str(), git.head());
    assert_eq!(paths(&repository.snapshot(&tip).unwrap()), ["apps/a/app.yaml"]);
    server.take_requests();
    repository.poll().unwrap();
    assert_eq!(server.take_requests(), ["GET /info/refs"], "a poll that finds nothing is one request");

    git.run(&["commit", "--quiet", "--amend", "--message=rewritten"]);
    let rewritten = repository.poll().unwrap();
    assert_eq!(rewritten.as_str(), git.head());
    assert!(!repository.is_descendant(&tip, &rewritten).unwrap());
    assert!(repository.snapshot(&tip).is_ok(), "the revision before stays readable");

    git.run(&["branch", "--move", "trunk"]);
    let error = repository.poll().unwrap_err();
    assert!(matches!(&error, SourceError::BranchMissing { known, .. } if known == &["trunk"]), "{error:?}");
    assert_eq!(repository.tip().unwrap(), rewritten, "the last tip stays known");

    drop(server);
    let error = repository.poll().unwrap_err();
    assert!(matches!(error, SourceError::Remote { fault: RemoteFault::Unreachable, .. }), "{error:?}");
    let reopened = Repository::open(&configured).unwrap();
    assert_eq!(reopened.tip().unwrap(), rewritten, "the mirror outlives the process");
}
