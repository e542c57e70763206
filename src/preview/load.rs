//! Reads the declarations that are previewed: one revision or working directory, or one and another to compare it with.

use std::collections::BTreeMap;
use std::io;

use setpoint_schema::id::CommitId;
use setpoint_schema::name::{AppKey, RepoPath};
use setpoint_schema::observed::LastGood;
use tempfile::TempDir;

use super::{Declarations, loader};
use crate::config::Config;
use crate::desired::{Loaded, Loader, Remembered, WORKTREE};
use crate::drivers;
use crate::source::{Location, Repository, SourceConfig, SourceError, SourceLimits, Worktree};

/// What of a repository is read, how much at most, and where its mirror stands.
pub(super) struct Place {
    path: Option<RepoPath>,
    limits: SourceLimits,
    /// Gone afterwards: a preview leaves no trace.
    mirror: TempDir,
}

impl Place {
    pub fn of(config: &Config) -> io::Result<Self> {
        let (path, limits) = (config.source.path.clone(), drivers::source_limits(config));
        Ok(Self { path, limits, mirror: tempfile::tempdir()? })
    }
}

/// The declarations, where broken apps stay as they are remembered.
pub(super) fn one(
    declarations: &Declarations,
    place: &Place,
    remembered: &dyn Remembered,
) -> Result<Loaded, SourceError> {
    read(&mut loader(), declarations, place, remembered)
}

/// The revision `against` of the same repository, and the declarations, where broken apps stay as they are in that.
pub(super) fn two(declarations: &Declarations, against: &str, place: &Place) -> Result<(Loaded, Loaded), SourceError> {
    let rev = against.to_owned();
    let base = match declarations {
        Declarations::Revision { repo, branch, rev: _ } => {
            Declarations::Revision { repo: repo.clone(), branch: branch.clone(), rev }
        }
        Declarations::Worktree(dir) => Declarations::Revision { repo: dir.display().to_string(), branch: None, rev },
    };
    let mut loader = loader();
    let before = read(&mut loader, &base, place, &BTreeMap::<AppKey, LastGood>::new())?;
    let known = before.desired.apps.iter().map(|(key, app)| {
        let revision = before.desired.revision_of(key).clone();
        (key.clone(), LastGood { app: app.clone(), revision })
    });
    let known: BTreeMap<_, _> = known.collect();
    let after = read(&mut loader, declarations, place, &known)?;
    Ok((before, after))
}

fn read(
    loader: &mut Loader,
    declarations: &Declarations,
    place: &Place,
    remembered: &dyn Remembered,
) -> Result<Loaded, SourceError> {
    let Place { path, limits, mirror } = place;
    let mut loaded = match declarations {
        Declarations::Worktree(dir) => {
            let dir = path.as_ref().map_or_else(|| dir.clone(), |path| dir.join(path.as_str()));
            let worktree = Worktree::read(&dir, *limits)?;
            loader.load_files(&worktree, &CommitId(WORKTREE.into()), remembered)?
        }
        Declarations::Revision { repo, branch, rev } => {
            let (url, branch, path) = (repo.clone(), branch.clone(), path.clone());
            let config = SourceConfig { url, branch, path, state_dir: mirror.path().to_owned(), limits: *limits };
            let repository = Repository::open(&config)?;
            let commit = commit(&repository, &config, rev)?;
            loader.load(&repository, &commit, remembered)?
        }
    };
    loader.advise(&mut loaded);
    Ok(loaded)
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
