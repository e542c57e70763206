//! What the writer of a name that leads nowhere may have meant. Advice only, and only for people who read it: the loader of a
//! daemon does without, because it takes a look at every name there is.

use super::Set;
use crate::decode::nearest;
use crate::diagnostic::Diagnostic;
use crate::document::AppDocument;
use crate::name::{AppKey, Team, TemplateName};

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
        let documents = self.documents(mistake.object.as_ref()?).iter();
        documents.filter(|app| app.path == mistake.path).find_map(|app| {
            self.template_meant(app, mistake, names).or_else(|| self.dependency_meant(app, mistake, names))
        })
    }

    fn template_meant(&self, app: &AppDocument, mistake: &Diagnostic, names: &Names<'_>) -> Option<String> {
        let place = app.places.template.as_ref().filter(|place| Some(place.at) == mistake.at);
        let name = place.map(|_| app.spec.template.as_str()).filter(|name| !names.templates.contains(name))?;
        nearest(name, &names.templates).map(str::to_owned)
    }

    fn dependency_meant(&self, app: &AppDocument, mistake: &Diagnostic, names: &Names<'_>) -> Option<String> {
        let (dependency, _) = app.places.depends_on.iter().find(|(_, place)| Some(place.at) == mistake.at)?;
        if self.is_declared(dependency) {
            return None;
        }
        let team = &app.metadata.key.team;
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
        Self { apps, templates }
    }
}

/// An app as one of this team writes it.
fn written(key: &AppKey, team: &Team) -> String {
    if key.team == *team { key.name.to_string() } else { format!("{}/{}", key.team, key.name) }
}
