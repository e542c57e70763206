//! Snapshots among the declarations: which there are, who names them, and what is wrong between them and apps.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Beginning, Set, SnapshotRef, referred};
use crate::app::AppSpec;
use crate::diagnostic::Diagnostic;
use crate::document::{AppDocument, Parsed, SnapshotDocument};
use crate::name::{AppKey, SnapshotKey};

/// The declared snapshots that an app names.
pub(super) fn named(app: &AppSpec) -> impl Iterator<Item = &SnapshotKey> {
    let from = match &app.from {
        Some(Beginning::Snapshot(snapshot)) => Some(snapshot),
        Some(Beginning::App(_)) | None => None,
    };
    let restore = app.restore.as_ref().map(|restore| &restore.snapshot);
    from.into_iter().chain(restore).filter_map(SnapshotRef::name)
}

impl Set {
    /// Every snapshot without a mistake.
    pub fn snapshots(&self) -> impl Iterator<Item = &Arc<SnapshotDocument>> {
        self.snapshots
            .iter()
            .filter(|(key, _)| self.snapshot_mistakes_of(key).is_empty())
            .filter_map(|(key, documents)| documents.first().filter(|_| !self.broken_snapshots.contains_key(key)))
    }

    /// Every snapshot with mistakes, with the first of them.
    pub fn broken_snapshots(&self) -> impl Iterator<Item = (&SnapshotKey, String)> {
        let between = self.snapshots.keys().filter(|key| !self.broken_snapshots.contains_key(*key));
        let between = between.filter_map(|key| Some((key, self.snapshot_mistakes_of(key).first()?.headline())));
        let within = self.broken_snapshots.iter().filter_map(|(key, whys)| Some((key, whys.first()?.clone())));
        between.chain(within)
    }

    /// Every snapshot that is declared, with or without mistakes; one may come twice.
    pub fn declared_snapshots(&self) -> impl Iterator<Item = &SnapshotKey> {
        self.snapshots.keys().chain(self.broken_snapshots.keys())
    }

    /// What is wrong between snapshots and the other declarations.
    #[must_use]
    pub fn snapshot_mistakes(&self) -> Vec<Diagnostic> {
        self.snapshots.keys().flat_map(|key| self.snapshot_mistakes_of(key)).collect()
    }

    fn snapshot_mistakes_of(&self, key: &SnapshotKey) -> Vec<Diagnostic> {
        let documents = self.snapshots.get(key).map_or(&[][..], Vec::as_slice);
        let Some((first, again)) = documents.split_first() else { return Vec::new() };
        let place = |document: &SnapshotDocument| {
            let at = document.name_place.at;
            format!("{}:{}:{}", document.snapshot.path, at.line, at.column)
        };
        let mut mistakes = Vec::new();
        for document in again {
            let message = format!("snapshot `{key}` is declared twice, first in {}", place(first));
            mistakes.push(document.mistake(&document.name_place, message).hint("rename or remove one of them"));
        }
        for document in documents.iter().filter(|document| !self.is_declared(&document.snapshot.spec.of)) {
            let message = format!("app `{}` is not declared", document.snapshot.spec.of);
            mistakes.push(document.mistake(&document.of_place, message));
        }
        mistakes
    }

    /// Adds the snapshots of a file.
    pub(super) fn insert_snapshots(&mut self, file: &Parsed) {
        for document in &file.snapshots {
            self.disturb_users(document.key());
            let documents = self.snapshots.entry(document.key().clone()).or_default();
            documents.push(Arc::clone(document));
            documents.sort_by(|a, b| (&a.snapshot.path, a.name_place.at).cmp(&(&b.snapshot.path, b.name_place.at)));
        }
        for (key, why) in &file.broken_snapshots {
            self.disturb_users(key);
            self.broken_snapshots.entry(key.clone()).or_default().push(why.clone());
        }
    }

    /// Takes out the snapshots of a file that was inserted before.
    pub(super) fn remove_snapshots(&mut self, file: &Parsed) {
        for document in &file.snapshots {
            self.disturb_users(document.key());
            if let Some(documents) = self.snapshots.get_mut(document.key()) {
                documents.retain(|other| !Arc::ptr_eq(other, document));
                if documents.is_empty() {
                    self.snapshots.remove(document.key());
                }
            }
        }
        for (key, why) in &file.broken_snapshots {
            self.disturb_users(key);
            if let Some(whys) = self.broken_snapshots.get_mut(key) {
                if let Some(at) = whys.iter().position(|known| known == why) {
                    whys.remove(at);
                }
                if whys.is_empty() {
                    self.broken_snapshots.remove(key);
                }
            }
        }
    }

    /// What the apps that name a snapshot wait for goes by what that is of.
    fn disturb_users(&mut self, snapshot: &SnapshotKey) {
        for app in self.snapshot_users.get(snapshot).cloned().unwrap_or_default() {
            self.disturb(&app);
        }
    }

    /// The apps that have to be well before this one can be what it is declared to be.
    pub(super) fn awaited(&self, app: &AppDocument) -> BTreeSet<AppKey> {
        let of = |key: &SnapshotKey| Some(self.snapshots.get(key)?.first()?.snapshot.spec.of.clone());
        let from = match &app.spec.from {
            Some(Beginning::Snapshot(SnapshotRef::Name(key))) => of(key),
            Some(Beginning::Snapshot(SnapshotRef::Id(_)) | Beginning::App(_)) | None => None,
        };
        // An app may well go back to a snapshot of its own.
        let restore = app.spec.restore.as_ref().and_then(|restore| of(restore.snapshot.name()?));
        let restore = restore.filter(|of| *of != app.metadata.key);
        referred(app).cloned().chain(from).chain(restore).collect()
    }

    /// What is wrong with what an app says of snapshots, and of the app that it begins as.
    pub(super) fn check_snapshots(&self, app: &AppDocument, out: &mut Vec<Diagnostic>) {
        let is_declared = |key| self.snapshots.contains_key(key) || self.broken_snapshots.contains_key(key);
        let undeclared = |key: &SnapshotKey| format!("snapshot `{key}` is not declared");
        let from = app.places.from.as_ref();
        match &app.spec.from {
            Some(Beginning::App(source)) if *source == app.metadata.key => {
                out.push(app.mistake(from, format!("app `{source}` begins as itself")));
            }
            Some(Beginning::App(source)) if !self.is_declared(source) => {
                out.push(app.mistake(from, format!("app `{source}` is not declared")));
            }
            Some(Beginning::Snapshot(SnapshotRef::Name(key))) if !is_declared(key) => {
                out.push(app.mistake(from, undeclared(key)));
            }
            Some(Beginning::Snapshot(SnapshotRef::Name(key))) if self.is_of(key, &app.metadata.key) => {
                let hint = "to go back to a snapshot, declare `restore`";
                out.push(app.mistake(from, format!("app begins as `{key}`, a snapshot of itself")).hint(hint));
            }
            Some(Beginning::App(_) | Beginning::Snapshot(_)) | None => {}
        }
        let restored = app.spec.restore.as_ref().and_then(|restore| restore.snapshot.name());
        if let Some(key) = restored.filter(|key| !is_declared(key)) {
            out.push(app.mistake(app.places.restore.as_ref(), undeclared(key)));
        }
    }

    fn is_of(&self, snapshot: &SnapshotKey, app: &AppKey) -> bool {
        let documents = self.snapshots.get(snapshot).map_or(&[][..], Vec::as_slice);
        documents.iter().any(|document| document.snapshot.spec.of == *app)
    }
}
