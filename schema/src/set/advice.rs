//! What the writer of a name that leads nowhere may have meant. Advice only, and only for people who read it: the loader of a
//! daemon does without, because it takes a look at every name there is.

use super::{Beginning, Set};
use crate::decode::nearest;
use crate::diagnostic::Diagnostic;
use crate::document::AppDocument;
use crate::name::{AppKey, SnapshotKey, Team, TemplateName};

/// So many mistakes get advice: nobody reads more of it at once, and each takes a look at every name.
const ADVISED: usize = 50;

impl Set {
    /// Adds to mistakes about templates and apps that are not declared which one may be meant.
    pub fn advise<'d>(&self, mistakes: impl IntoIterator<Item = &'d mut Diagnostic>) {
        let (mut names, minimal) = (None, TemplateName::minimal());
        for mistake in mistakes.into_iter().filter(|mistake| mistake.hint.is_none()).take(ADVISED) {
            let names = names.get_or_insert_with(|| Names::of(self, &minimal));
            if let Some(near) = self.meant(mistake, names) {
                mistake.hint = Some(format!("did you mean `{near}`?"));
            }
        }
    }

    fn meant(&self, mistake: &Diagnostic, names: &Names<'_>) -> Option<String> {
        let Some(app) = mistake.object.as_ref() else { return self.source_meant(mistake, names) };
        self.documents(app).iter().filter(|app| app.path == mistake.path).find_map(|app| {
            let template = self.template_meant(app, mistake, names);
            let other = template.or_else(|| self.dependency_meant(app, mistake, names));
            other.or_else(|| self.snapshot_meant(app, mistake, names))
        })
    }

    /// The app that a snapshot may be meant to be of.
    fn source_meant(&self, mistake: &Diagnostic, names: &Names<'_>) -> Option<String> {
        let mut documents = self.snapshots.values().flatten().map(|document| (&document.snapshot, &document.of_place));
        let (snapshot, _) =
            documents.find(|(snapshot, place)| snapshot.path == mistake.path && Some(place.at) == mistake.at)?;
        self.app_meant(&snapshot.spec.of, &snapshot.metadata.key.team, names)
    }

    fn snapshot_meant(&self, app: &AppDocument, mistake: &Diagnostic, names: &Names<'_>) -> Option<String> {
        let team = &app.metadata.key.team;
        if app.places.from.as_ref().is_some_and(|place| Some(place.at) == mistake.at)
            && let Some(Beginning::App(source)) = &app.spec.from
        {
            return self.app_meant(source, team, names);
        }
        let places = [&app.places.from, &app.places.restore];
        places.into_iter().flatten().find(|place| Some(place.at) == mistake.at)?;
        let named = super::snapshots::named(&app.spec).find(|key| !names.snapshots.contains(key))?;
        let elsewhere =
            names.snapshots.iter().find(|key| key.name == named.name).map(|key| written_snapshot(key, team));
        elsewhere.or_else(|| {
            let all: Vec<String> = names.snapshots.iter().map(|key| written_snapshot(key, team)).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            nearest(&written_snapshot(named, team), &all).map(str::to_owned)
        })
    }

    fn template_meant(&self, app: &AppDocument, mistake: &Diagnostic, names: &Names<'_>) -> Option<String> {
        let place = app.places.template.as_ref().filter(|place| Some(place.at) == mistake.at);
        let name = place.map(|_| app.spec.template.as_str()).filter(|name| !names.templates.contains(name))?;
        nearest(name, &names.templates).map(str::to_owned)
    }

    fn dependency_meant(&self, app: &AppDocument, mistake: &Diagnostic, names: &Names<'_>) -> Option<String> {
        let (dependency, _) = app.places.depends_on.iter().find(|(_, place)| Some(place.at) == mistake.at)?;
        self.app_meant(dependency, &app.metadata.key.team, names)
    }

    fn app_meant(&self, dependency: &AppKey, team: &Team, names: &Names<'_>) -> Option<String> {
        if self.is_declared(dependency) {
            return None;
        }
        // The right app of the wrong team is a likelier slip than a wrong name.
        let elsewhere = names.apps.iter().find(|key| key.name == dependency.name);
        elsewhere.map(|key| written(key, team)).or_else(|| {
            let all: Vec<String> = names.apps.iter().map(|key| written(key, team)).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            nearest(&written(dependency, team), &all).map(str::to_owned)
        })
    }
}

/// All that can be referred to, in order, so that the same mistake gets the same advice.
struct Names<'s> {
    apps: Vec<&'s AppKey>,
    templates: Vec<&'s str>,
    snapshots: Vec<&'s SnapshotKey>,
}

impl<'s> Names<'s> {
    fn of(set: &'s Set, minimal: &'s TemplateName) -> Self {
        let mut apps: Vec<&AppKey> = set.declared().collect();
        apps.sort_unstable();
        apps.dedup();
        let templates = set.templates.keys().chain(set.broken_templates.keys()).map(TemplateName::as_str);
        let mut templates: Vec<&str> = templates.chain([minimal.as_str()]).collect();
        templates.sort_unstable();
        templates.dedup();
        let mut snapshots: Vec<&SnapshotKey> = set.declared_snapshots().collect();
        snapshots.sort_unstable();
        snapshots.dedup();
        Self { apps, templates, snapshots }
    }
}

/// A snapshot as one of this team writes it.
fn written_snapshot(key: &SnapshotKey, team: &Team) -> String {
    if key.team == *team { key.name.to_string() } else { format!("{}/{}", key.team, key.name) }
}

/// An app as one of this team writes it.
fn written(key: &AppKey, team: &Team) -> String {
    if key.team == *team { key.name.to_string() } else { format!("{}/{}", key.team, key.name) }
}
