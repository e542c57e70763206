//! What the newest revision without a mistake wants, kept whole: a daemon that starts where it stopped walks no tree and reads no
//! blob.
//!
//! The tree of a revision decides what it wants, with the limits under which it is read, this program and the templates that stand
//! on the host; of a revision with mistakes, what was declared before counts, too, and none is kept here. The file begins with all
//! apps of one revision, and goes on with what later ones changed, so that keeping a commit costs what it changes. Every part is
//! found damaged by its digest, and nothing counts behind a part that is.
//!
//! ```text
//!   magic · what it is for (32 bytes) · head · chunks of apps, as many as the head has digests of · steps
//!     head, step: length (4 bytes), SHA-256 of the seal before and the content, content (postcard)
//!     chunk:      length (4 bytes), content (postcard)
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use setpoint_plan::desired::{Completeness, Desired, DesiredTemplateRoot};
use setpoint_schema::app::{AppMetadata, DesiredApp, PinnedSpec, SandboxSpec};
use setpoint_schema::env::revealed;
use setpoint_schema::id::{CommitId, SpecDigest, TemplateDigest};
use setpoint_schema::name::{AppKey, RepoPath, SnapshotKey};
use setpoint_schema::project::Project;
use setpoint_schema::shared::{Difference, SharedMap};
use setpoint_schema::snapshot::DesiredSnapshot;
use setpoint_schema::template::TemplateRoot;
use sha2::{Digest as _, Sha256};

use crate::parallel;
use crate::source::{Files, FolderId, SourceLimits};

use super::super::pin::PinnedTemplates;
use super::super::{Loaded, completeness};
use super::{Cache, DIGEST_BYTES, file};

/// Changes with the layout.
const MAGIC: &[u8; 16] = b"setpoint whole 2";
/// Apps that are written, and read by one thread, together.
const CHUNK: usize = 256;
/// So many changed apps are added to a file of few; to one of many, a tenth of these.
const FEW_CHANGES: usize = 100;

/// What a revision without a mistake wants, and all that decides it.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Whole {
    /// The tree that it was read from.
    pub tree: FolderId,
    /// The limits under which it was read.
    pub limits: SourceLimits,
    /// Its settings.
    pub project: Project,
    /// How each template in use comes to be.
    pub templates: BTreeMap<TemplateDigest, TemplateRoot>,
    /// What templates stood on the host, by path.
    pub hosts: BTreeMap<String, TemplateDigest>,
    /// The templates that are to be warm before anything begins from them.
    pub prewarmed: BTreeMap<TemplateDigest, TemplateRoot>,
    /// Its snapshots.
    pub snapshots: SharedMap<SnapshotKey, Arc<DesiredSnapshot>>,
    /// Its apps.
    pub apps: SharedMap<AppKey, Arc<DesiredApp>>,
}

/// Where a file ends that is this far known.
#[derive(Debug)]
pub(in super::super) struct End {
    length: u64,
    seal: Seal,
    /// How many apps its steps hold.
    changes: usize,
}

type Seal = [u8; DIGEST_BYTES];

/// Everything but the apps.
#[derive(Serialize, Deserialize)]
struct Facts {
    tree: String,
    /// As JSON: variables are of any type.
    project: String,
    templates: BTreeMap<TemplateDigest, TemplateRoot>,
    hosts: BTreeMap<String, TemplateDigest>,
    prewarmed: BTreeMap<TemplateDigest, TemplateRoot>,
    snapshots: Vec<DesiredSnapshot>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    facts: Facts,
    chunks: Vec<Seal>,
}

/// An app, as it is written.
#[derive(Serialize)]
struct Entry<'a> {
    metadata: &'a AppMetadata,
    path: &'a RepoPath,
    spec: &'a SandboxSpec,
    digest: &'a SpecDigest,
    processes: &'a SpecDigest,
}

/// The same, as it is read.
#[derive(Deserialize)]
struct Stored {
    metadata: AppMetadata,
    path: RepoPath,
    spec: SandboxSpec,
    digest: SpecDigest,
    processes: SpecDigest,
}

/// What a later revision changed, as it is written.
#[derive(Serialize)]
struct Change<'a> {
    facts: Facts,
    set: Vec<Entry<'a>>,
    gone: Vec<&'a AppKey>,
}

/// The same, as it is read.
#[derive(Deserialize)]
struct Step {
    facts: Facts,
    set: Vec<Stored>,
    gone: Vec<AppKey>,
}

impl Cache {
    fn revision(&self) -> PathBuf {
        self.directory.join("revision")
    }

    /// What a revision of this tree wants, if that is kept.
    pub(in super::super) fn whole(&self, tree: &FolderId, limits: SourceLimits) -> Option<(Whole, End)> {
        self.try_whole(tree, limits).unwrap_or_else(|error| {
            tracing::debug!(file = %self.revision().display(), %error, "kept revision cannot be used");
            None
        })
    }

    fn try_whole(&self, tree: &FolderId, limits: SourceLimits) -> io::Result<Option<(Whole, End)>> {
        let (Some(bytes), Some(beginning)) = (file::read(&self.revision())?, beginning(limits)) else {
            return Ok(None);
        };
        let Some(rest) = bytes.strip_prefix(&*beginning) else { return Ok(None) };
        let (head, mut seal, mut rest) =
            sealed(&sha256(&[&beginning]), rest).ok_or_else(|| io::Error::other("its head is damaged"))?;
        let Head { mut facts, chunks: seals } = decoded(head)?;
        let mut chunks: Vec<(Seal, &[u8])> = Vec::with_capacity(seals.len());
        for seal in seals {
            let (chunk, behind) = cut(rest).ok_or_else(|| io::Error::other("it ends within a chunk"))?;
            chunks.push((seal, chunk));
            rest = behind;
        }
        let mut steps = Vec::new();
        while let Some((content, next, behind)) = sealed(&seal, rest) {
            let Step { facts: newer, set, gone } = decoded(content)?;
            steps.push((set, gone));
            (facts, seal, rest) = (newer, next, behind);
        }
        if facts.tree != tree.0 || !rest.is_empty() {
            return Ok(None);
        }
        let mut apps = Vec::new();
        for entries in parallel::each(&chunks, |(seal, chunk)| entries(seal, chunk)) {
            apps.extend(entries?);
        }
        let mut apps: SharedMap<AppKey, Arc<DesiredApp>> = apps.into_iter().collect();
        let mut changes = 0;
        for (set, gone) in steps {
            changes += set.len() + gone.len();
            apps.extend(set.into_iter().map(Stored::entry));
            gone.iter().for_each(|key| drop(apps.remove(key)));
        }
        let Facts { tree, project, templates, hosts, prewarmed, snapshots } = facts;
        let keyed = |snapshot: DesiredSnapshot| (snapshot.metadata.key.clone(), Arc::new(snapshot));
        let snapshots = snapshots.into_iter().map(keyed).collect();
        let project = serde_json::from_str(&project).map_err(io::Error::other)?;
        let whole = Whole { tree: FolderId(tree), limits, project, templates, hosts, prewarmed, snapshots, apps };
        Ok(Some((whole, End { length: bytes.len() as u64, seal, changes })))
    }

    /// Keeps a revision, where `kept` is what is kept already and where that ends. What cannot be kept is not missed.
    pub(in super::super) fn keep_whole(&self, kept: Option<(Whole, End)>, whole: &Whole) -> Option<(Whole, End)> {
        let end = match kept {
            Some((known, end)) if known.limits == whole.limits => match self.add(&known, &end, whole) {
                Ok(Some(end)) => Ok(Some(end)),
                // The file may be removed at any time.
                Ok(None) | Err(_) => self.rewrite(whole),
            },
            Some(_) | None => self.rewrite(whole),
        };
        let end = end.unwrap_or_else(|error| {
            tracing::warn!(file = %self.revision().display(), %error, "revision cannot be kept");
            None
        });
        Some((whole.clone(), end?))
    }

    /// Adds what a revision changes to the file; nothing where that is so much that all of it is better written anew.
    fn add(&self, known: &Whole, end: &End, whole: &Whole) -> io::Result<Option<End>> {
        let (mut set, mut gone) = (Vec::new(), Vec::new());
        for (key, difference) in known.apps.differences(&whole.apps) {
            match difference {
                Difference::Added(app) | Difference::Changed { before: _, after: app } => set.push(entry_of(app)),
                Difference::Removed(_) => gone.push(key),
            }
        }
        let changes = end.changes + set.len() + gone.len();
        if changes > FEW_CHANGES + whole.apps.len() / 10 {
            return Ok(None);
        }
        let change = Change { facts: whole.facts()?, set, gone };
        let (part, seal) = seal(&end.seal, &postcard::to_stdvec(&change).map_err(io::Error::other)?)?;
        file::append(&self.revision(), end.length, &part)?;
        Ok(Some(End { length: end.length + part.len() as u64, seal, changes }))
    }

    fn rewrite(&self, whole: &Whole) -> io::Result<Option<End>> {
        let Some(beginning) = beginning(whole.limits) else { return Ok(None) };
        let apps: Vec<&Arc<DesiredApp>> = whole.apps.values().collect();
        let chunks: Vec<&[&Arc<DesiredApp>]> = apps.chunks(CHUNK).collect();
        let encoded = parallel::each(&chunks, |chunk| {
            let entries: Vec<Entry<'_>> = chunk.iter().map(|app| entry_of(app)).collect();
            postcard::to_stdvec(&entries)
        });
        let encoded: Vec<Vec<u8>> = encoded.into_iter().collect::<Result<_, _>>().map_err(io::Error::other)?;
        let head = Head { facts: whole.facts()?, chunks: encoded.iter().map(|chunk| sha256(&[chunk])).collect() };
        let (head, seal) = seal(&sha256(&[&beginning]), &postcard::to_stdvec(&head).map_err(io::Error::other)?)?;
        let mut content = [beginning, head].concat();
        for chunk in encoded {
            content.extend(length(&chunk)?);
            content.extend(chunk);
        }
        file::replace(&self.revision(), &content)?;
        Ok(Some(End { length: content.len() as u64, seal, changes: 0 }))
    }
}

impl Whole {
    /// A revision that was loaded, if there was no mistake in it.
    pub fn of(loaded: &Loaded, templates: &PinnedTemplates, files: &dyn Files) -> Option<Self> {
        let Loaded { desired, diagnostics, project, prewarmed } = loaded;
        let Desired {
            revision: _,
            apps,
            kept,
            stalled,
            templates: used,
            moved: _,
            snapshots,
            stalled_snapshots,
            completeness,
        } = desired;
        let is_sure = match completeness {
            Completeness::Complete | Completeness::EmptyRefused => true,
            Completeness::Partial(_) => false,
        };
        let is_sound =
            is_sure && diagnostics.is_empty() && kept.is_empty() && stalled.is_empty() && stalled_snapshots.is_empty();
        is_sound.then(|| Self {
            tree: files.root().id.clone(),
            limits: *files.limits(),
            project: project.clone(),
            templates: used.iter().map(|(digest, template)| (digest.clone(), template.root.clone())).collect(),
            hosts: templates.hosts(),
            prewarmed: prewarmed.iter().map(|(digest, template)| (digest.clone(), template.root.clone())).collect(),
            snapshots: snapshots.clone(),
            apps: apps.clone(),
        })
    }

    /// The same as a revision that is loaded.
    pub fn loaded(&self, revision: &CommitId) -> Loaded {
        let Self { tree: _, limits: _, project, templates, hosts: _, prewarmed, snapshots, apps } = self;
        let root = |root: &TemplateRoot| DesiredTemplateRoot { root: root.clone(), revision: revision.clone() };
        let completeness = completeness(apps.len(), project);
        let desired = Desired {
            revision: revision.clone(),
            apps: apps.clone(),
            kept: BTreeMap::new(),
            stalled: BTreeMap::new(),
            templates: templates.iter().map(|(digest, template)| (digest.clone(), root(template))).collect(),
            moved: project.moved.clone(),
            snapshots: snapshots.clone(),
            stalled_snapshots: BTreeMap::new(),
            completeness,
        };
        let prewarmed = prewarmed.iter().map(|(digest, template)| (digest.clone(), root(template))).collect();
        Loaded { desired, diagnostics: Vec::new(), project: project.clone(), prewarmed }
    }

    fn facts(&self) -> io::Result<Facts> {
        Ok(Facts {
            tree: self.tree.0.clone(),
            // Read back, and laid under apps that change later: its sensitive defaults need their texts.
            project: revealed(|| serde_json::to_string(&self.project))?,
            templates: self.templates.clone(),
            hosts: self.hosts.clone(),
            prewarmed: self.prewarmed.clone(),
            snapshots: self.snapshots.values().map(|snapshot| DesiredSnapshot::clone(snapshot)).collect(),
        })
    }
}

impl Stored {
    /// Has in common with its neighbour what says the same. Parsed apps do where they stand on one file or name nothing of their own.
    fn share(&mut self, neighbour: &Self) {
        let (own, other) = (&mut self.spec, &neighbour.spec);
        if own.template == other.template {
            own.template.clone_from(&other.template);
        }
        if own.app.template == other.app.template {
            own.app.template.clone_from(&other.app.template);
        }
        if own.app.runtime == other.app.runtime {
            own.app.runtime.clone_from(&other.app.runtime);
        }
    }

    fn entry(self) -> (AppKey, Arc<DesiredApp>) {
        let Self { metadata, path, spec, digest, processes } = self;
        let spec = PinnedSpec::with_hashes(spec, digest, processes);
        (metadata.key.clone(), Arc::new(DesiredApp { metadata, spec, path }))
    }
}

fn entry_of(app: &DesiredApp) -> Entry<'_> {
    let DesiredApp { metadata, spec, path } = app;
    Entry { metadata, path, spec, digest: spec.digest(), processes: spec.processes_digest() }
}

/// The apps of a chunk.
fn entries(seal: &Seal, chunk: &[u8]) -> io::Result<Vec<(AppKey, Arc<DesiredApp>)>> {
    if sha256(&[chunk]) != *seal {
        return Err(io::Error::other("a chunk of it is damaged"));
    }
    let mut stored: Vec<Stored> = decoded(chunk)?;
    for at in 1..stored.len() {
        if let [.., before, after] = &mut stored[..=at] {
            after.share(before);
        }
    }
    Ok(stored.into_iter().map(Stored::entry).collect())
}

fn decoded<'a, T: Deserialize<'a>>(content: &'a [u8]) -> io::Result<T> {
    postcard::from_bytes(content).map_err(io::Error::other)
}

/// What a file begins with that is for this program and these limits.
fn beginning(limits: SourceLimits) -> Option<Vec<u8>> {
    let purpose = sha256(&[file::program()?.as_bytes(), b"\0", format!("{limits:?}").as_bytes()]);
    Some([&MAGIC[..], &purpose].concat())
}

/// A part with its length and its seal, and the seal.
fn seal(before: &Seal, content: &[u8]) -> io::Result<(Vec<u8>, Seal)> {
    let seal = sha256(&[before, content]);
    Ok(([&length(content)?[..], &seal, content].concat(), seal))
}

/// The part that `bytes` begin with, its seal and what is behind it, if it is whole.
fn sealed<'a>(before: &Seal, bytes: &'a [u8]) -> Option<(&'a [u8], Seal, &'a [u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (seal, rest) = rest.split_first_chunk::<DIGEST_BYTES>()?;
    let (content, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    (sha256(&[before, content]) == *seal).then_some((content, *seal, rest))
}

/// The chunk that `bytes` begin with, and what is behind it.
fn cut(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

fn length(content: &[u8]) -> io::Result<[u8; 4]> {
    Ok(u32::try_from(content.len()).map_err(io::Error::other)?.to_le_bytes())
}

fn sha256(parts: &[&[u8]]) -> Seal {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}
