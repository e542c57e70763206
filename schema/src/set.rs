//! What only all declarations together can show: objects declared twice, references that lead nowhere or in a circle, names
//! that two apps claim. Every mistake names the app that cannot be used, so that the others go on.
//!
//! Called by the loader with all files of a revision. Iterative and near linear, for a hundred thousand apps.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::diagnostic::{Diagnostic, Place};
use crate::document::{AppDocument, Parsed, TemplateDocument};
use crate::name::{AppKey, TemplateName};
use crate::project::Project;

mod cycle;

/// Everything that is wrong between the declarations of a revision, in the order of the apps.
#[must_use]
pub fn check<'a>(project: &Project, files: impl IntoIterator<Item = &'a Parsed>) -> Vec<Diagnostic> {
    let set = Set::of(files);
    let mut diagnostics = Vec::new();
    set.check_duplicate_apps(&mut diagnostics);
    set.check_duplicate_templates(&mut diagnostics);
    set.check_templates(&mut diagnostics);
    set.check_dependencies(&mut diagnostics);
    set.check_cycles(&mut diagnostics);
    set.check_claims("the uid", uid_claims, &mut diagnostics);
    set.check_claims("the host name", |app| host_claims(app, project), &mut diagnostics);
    set.check_moves(project, &mut diagnostics);
    diagnostics.sort_by(|a, b| (&a.object, &a.path, a.at).cmp(&(&b.object, &b.path, b.at)));
    diagnostics
}

/// All declarations of a revision, findable by name.
struct Set<'a> {
    /// Each app, with every document that declares it; usually one.
    apps: BTreeMap<&'a AppKey, Vec<&'a AppDocument>>,
    /// Apps that are declared, but with mistakes.
    broken: BTreeSet<&'a AppKey>,
    templates: BTreeMap<&'a TemplateName, Vec<&'a TemplateDocument>>,
    broken_templates: BTreeSet<&'a TemplateName>,
}

impl<'a> Set<'a> {
    fn of(files: impl IntoIterator<Item = &'a Parsed>) -> Self {
        let mut set = Self {
            apps: BTreeMap::new(),
            broken: BTreeSet::new(),
            templates: BTreeMap::new(),
            broken_templates: BTreeSet::new(),
        };
        for file in files {
            for app in &file.apps {
                set.apps.entry(&app.metadata.key).or_default().push(app);
            }
            for template in &file.templates {
                set.templates.entry(&template.template.name).or_default().push(template);
            }
            set.broken.extend(file.diagnostics.iter().filter_map(|diagnostic| diagnostic.object.as_ref()));
            set.broken_templates.extend(&file.broken_templates);
        }
        // The same order whatever order the files came in.
        set.apps.values_mut().for_each(|places| places.sort_by_key(|app| (&app.path, app.places.name.at)));
        set.templates.values_mut().for_each(|places| places.sort_by_key(|one| (&one.path, one.name_place.at)));
        set
    }

    fn documents(&self) -> impl Iterator<Item = &'a AppDocument> {
        self.apps.values().flatten().copied()
    }

    fn check_duplicate_apps(&self, out: &mut Vec<Diagnostic>) {
        for (key, documents) in &self.apps {
            let Some((first, again)) = documents.split_first() else { continue };
            for app in again {
                let message = format!("app `{key}` is declared twice, first in {}", place_of(first));
                out.push(app.mistake(None, message).hint("rename or remove one of them"));
            }
        }
    }

    /// Two templates of one name break the apps that start from it, not each other.
    fn check_duplicate_templates(&self, out: &mut Vec<Diagnostic>) {
        for (name, documents) in &self.templates {
            let Some((first, again)) = documents.split_first() else { continue };
            for template in again {
                let (line, column) = (first.name_place.at.line, first.name_place.at.column);
                let message = format!("template `{name}` is declared twice, first in {}:{line}:{column}", first.path);
                out.push(Diagnostic::new(template.path.clone(), message).at(template.name_place.clone()));
            }
        }
    }

    fn check_templates(&self, out: &mut Vec<Diagnostic>) {
        for app in self.documents().filter(|app| app.spec.template != TemplateName::minimal()) {
            let name = &app.spec.template;
            let wrong = match self.templates.get(name).map(Vec::len) {
                _ if self.broken_templates.contains(name) => format!("template `{name}` has mistakes"),
                None => format!("template `{name}` is not declared"),
                Some(1) => continue,
                Some(_) => format!("template `{name}` is declared twice"),
            };
            let mistake = app.mistake(app.places.template.as_ref(), wrong);
            out.push(match app.places.template {
                Some(_) => mistake,
                None => mistake.hint("it is named by `[defaults]` of setpoint.toml"),
            });
        }
    }

    fn check_dependencies(&self, out: &mut Vec<Diagnostic>) {
        for app in self.documents() {
            for (dependency, place) in &app.places.depends_on {
                if *dependency == app.metadata.key {
                    out.push(app.mistake(Some(place), format!("app `{dependency}` depends on itself")));
                } else if !self.apps.contains_key(dependency) && !self.broken.contains(dependency) {
                    out.push(app.mistake(Some(place), format!("app `{dependency}` is not declared")));
                }
            }
        }
    }

    fn check_cycles(&self, out: &mut Vec<Diagnostic>) {
        let documents: Vec<&AppDocument> = self.apps.values().filter_map(|places| places.first().copied()).collect();
        let index: HashMap<&AppKey, usize> =
            documents.iter().enumerate().map(|(index, app)| (&app.metadata.key, index)).collect();
        let dependencies: Vec<Vec<usize>> = documents
            .iter()
            .map(|app| app.spec.depends_on.iter().filter_map(|key| index.get(key).copied()).collect())
            .collect();
        for cycle in cycle::find(&dependencies) {
            let path = cycle::show(&cycle.example, |app| documents[app].metadata.key.to_string());
            for app in cycle.members.iter().map(|member| documents[*member]) {
                let within = |(key, _): &&(AppKey, Place)| {
                    index.get(key).is_some_and(|dependency| cycle.members.binary_search(dependency).is_ok())
                };
                let place = app.places.depends_on.iter().find(within).map(|(_, place)| place);
                out.push(app.mistake(place, format!("these apps wait for each other: {path}")));
            }
        }
    }

    /// Reports what more than one app claims, to each of them: which of them is wrong is not for a program to say.
    fn check_claims(&self, what: &str, claims: impl Fn(&'a AppDocument) -> Vec<Claim<'a>>, out: &mut Vec<Diagnostic>) {
        let mut claimants: HashMap<String, Vec<(&AppDocument, Option<&Place>)>> = HashMap::new();
        for app in self.apps.values().filter_map(|places| places.first().copied()) {
            for Claim { value, place } in claims(app) {
                claimants.entry(value).or_default().push((app, place));
            }
        }
        for (value, apps) in claimants.into_iter().filter(|(_, apps)| apps.len() > 1) {
            for (index, (app, place)) in apps.iter().enumerate() {
                // The first names the second, all others name the first.
                let other = apps[usize::from(index == 0)].0;
                let message = format!("{what} `{value}` is claimed by app `{}` too", other.metadata.key);
                let hint = format!("see {}", place_of(other));
                out.push(app.mistake(*place, message).hint(hint));
            }
        }
    }

    fn check_moves(&self, project: &Project, out: &mut Vec<Diagnostic>) {
        for (from, to) in &project.moved {
            if !self.apps.contains_key(from) && !self.broken.contains(from) {
                continue;
            }
            for app in [from, to].into_iter().filter_map(|key| self.apps.get(key)?.first()) {
                let message =
                    format!("setpoint.toml says that app `{from}` moved to `{to}`, but `{from}` is still declared");
                out.push(app.mistake(None, message));
            }
        }
    }
}

/// Something of which there can be one in the world, and where an app claims it.
struct Claim<'a> {
    value: String,
    place: Option<&'a Place>,
}

fn uid_claims(app: &AppDocument) -> Vec<Claim<'_>> {
    let uid = app.metadata.uid.iter();
    uid.map(|uid| Claim { value: uid.to_string(), place: app.places.uid.as_ref() }).collect()
}

/// The domain is the daemon's to know, and the same for all.
fn host_claims<'a>(app: &'a AppDocument, project: &Project) -> Vec<Claim<'a>> {
    let own = Claim { value: project.hosts.pattern.host(&app.metadata.key, "{domain}"), place: None };
    let declared = app.places.hosts.iter().map(|(host, place)| Claim { value: host.to_string(), place: Some(place) });
    std::iter::once(own).chain(declared).collect()
}

fn place_of(app: &AppDocument) -> String {
    format!("{}:{}:{}", app.path, app.places.name.at.line, app.places.name.at.column)
}

#[cfg(test)]
mod tests;
