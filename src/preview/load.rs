//! Reads the declarations that are previewed: one revision or working directory, or one and another to compare it with.

use std::collections::BTreeMap;
use std::path::Path;

use setpoint_schema::id::CommitId;
use setpoint_schema::name::{AppKey, RepoPath};
use setpoint_schema::observed::LastGood;

use super::{Declarations, loader};
use crate::desired::{Loaded, Loader, Remembered, WORKTREE};
use crate::source::{Location, Repository, SourceConfig, SourceError, SourceLimits, Worktree};

/// The declarations, where broken apps stay as they are remembered.
pub(super) fn one(
    declarations: &Declarations,
    path: Option<RepoPath>,
    mirror: &Path,
    remembered: &dyn Remembered,
) -> Result<Loaded, SourceError> {
    read(&mut loader(), declarations, path, mirror, remembered)
}

/// The revision `against` of the same repository, and the declarations, where broken apps stay as they are in that.
pub(super) fn two(
    declarations: &Declarations,
    against: &str,
    path: Option<RepoPath>,
    mirror: &Path,
) -> Result<(Loaded, Loaded), SourceError> {
    let rev = against.to_owned();
    let base = match declarations {
        Declarations::Revision { repo, branch, rev: _ } => {
            Declarations::Revision { repo: repo.clone(), branch: branch.clone(), rev }
        }
        Declarations::Worktree(dir) => Declarations::Revision { repo: dir.display().to_string(), branch: None, rev },
    };
    let mut loader = loader();
    let before = read(&mut loader, &base, path.clone(), mirror, &BTreeMap::<AppKey, LastGood>::new())?;
    let known = before.desired.apps.iter().map(|(key, app)| {
        let revision = before.desired.revision_of(key).clone();
        (key.clone(), LastGood { app: app.clone(), revision })
    });
    let known: BTreeMap<_, _> = known.collect();
    let after = read(&mut loader, declarations, path, mirror, &known)?;
    Ok((before, after))
}

fn read(
    loader: &mut Loader,
    declarations: &Declarations,
    path: Option<RepoPath>,
    mirror: &Path,
    remembered: &dyn Remembered,
) -> Result<Loaded, SourceError> {
    match declarations {
        Declarations::Worktree(dir) => {
            let dir = path.map_or_else(|| dir.clone(), |path| dir.join(path.as_str()));
            let worktree = Worktree::read(&dir, SourceLimits::default())?;
            loader.load_files(&worktree, &CommitId(WORKTREE.to_owned()), remembered)
        }
        Declarations::Revision { repo, branch, rev } => {
            let (url, branch, state_dir) = (repo.clone(), branch.clone(), mirror.to_owned());
            let config = SourceConfig { url, branch, path, state_dir, limits: SourceLimits::default() };
            let repository = Repository::open(&config)?;
            let commit = commit(&repository, &config, rev)?;
            loader.load(&repository, &commit, remembered)
        }
    }
}

/// The commit that people call `rev`. A remote's branch is fetched first; another one of its branches is found by its name.
fn commit(repository: &Repository, config: &SourceConfig, rev: &str) -> Result<CommitId, SourceError> {
    match (rev, repository.location()) {
        ("HEAD", _) => repository.poll(),
        (rev, Location::Local(_)) => repository.resolve(rev),
        (rev, Location::Remote(_)) => {
            repository.poll()?;
            repository.resolve(rev).or_else(|unknown| {
                let branch = SourceConfig { branch: Some(rev.to_owned()), ..config.clone() };
                Repository::open(&branch)?.poll().map_err(|_| unknown)
            })
        }
    }
}
