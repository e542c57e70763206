//! `setpoint.toml`, at the root of the declarations: what holds for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::app::AppSpec;
use crate::check;
use crate::declared;
use crate::decode::{Decode, Decoder};
use crate::diagnostic::{Diagnostic, Lines, SourceText};
use crate::name::{AppKey, NameError, RepoPath, Team};
use crate::node::{Ending, Node, Scalar, ScalarKind, Value};
use crate::toml;

/// What holds for all declarations of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Project {
    /// `[defaults]`: what an app has where its `spec` says nothing.
    pub defaults: AppSpec,
    /// `[vars]`: variables for templates in declarations.
    pub vars: Map<String, Json>,
    /// `[hosts]`: how apps are named to browsers.
    pub hosts: Hosts,
    /// `[policies]`: what is refused unless it is allowed here.
    pub policies: Policies,
    /// `[[moved]]`: renames, old key to new, chains followed to their end.
    pub moved: BTreeMap<AppKey, AppKey>,
}

declared! {
    /// How apps are named to browsers.
    pub struct Hosts {
        /// The host name of an app's web port, with `{app}`, `{domain}` and maybe `{team}`.
        live pattern: HostPattern = HostPattern::default(),
    }
}

declared! {
    /// What is refused unless it is allowed.
    pub struct Policies {
        /// Whether a revision that declares no app at all removes every app.
        live allow_empty: bool = false,
        /// Whether the branch may move to a commit that does not descend from the last one.
        live allow_rewind: bool = false,
    }
}

/// The host name of an app's web port: `{app}` and `{domain}`, in between letters, digits, dots and hyphens.
///
/// Without `{team}` in the pattern, apps of teams other than `default` have their team behind their name, so that two teams
/// never share a host name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(String);

impl HostPattern {
    /// The host name of an app, in a domain such as `localhost`.
    #[must_use]
    pub fn host(&self, app: &AppKey, domain: &str) -> String {
        self.host_of(app, app.name.as_str(), domain)
    }

    /// The host name of a further port of an app. No app is called like it, because names start with a letter.
    #[must_use]
    pub fn port_host(&self, app: &AppKey, port: u16, domain: &str) -> String {
        self.host_of(app, &format!("{port}-{}", app.name), domain)
    }

    /// Whether the pattern has `{team}` in it.
    #[must_use]
    pub fn names_team(&self) -> bool {
        self.0.contains("{team}")
    }

    fn host_of(&self, app: &AppKey, label: &str, domain: &str) -> String {
        let in_team = !self.names_team() && app.team != Team::default_team();
        let name = if in_team { format!("{label}.{}", app.team) } else { label.to_owned() };
        self.0.replace("{app}", &name).replace("{team}", app.team.as_str()).replace("{domain}", domain)
    }
}

impl Default for HostPattern {
    fn default() -> Self {
        Self("{app}.{domain}".to_owned())
    }
}

impl FromStr for HostPattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        const RULE: NameError =
            NameError { rule: "must be a host name with `{app}` and `{domain}` in it, and maybe `{team}`" };
        let literal =
            ["{app}", "{team}", "{domain}"].iter().fold(text.to_owned(), |text, name| text.replace(name, "a"));
        let whole = text.contains("{app}") && text.contains("{domain}") && text.len() <= 128;
        let valid = whole && crate::name::HostName::new(literal).is_ok();
        if valid { Ok(Self(text.to_owned())) } else { Err(RULE) }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> String {
        pattern.0
    }
}

impl Decode for HostPattern {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.parsed(node, "a pattern such as `{app}.{domain}`")
    }
}

impl Project {
    /// The sections of the file.
    pub const FIELDS: &'static [&'static str] = &["defaults", "vars", "hosts", "policies", "moved"];

    /// Reads a `setpoint.toml`. Without the file, [`Project::default`] holds.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(path: &RepoPath, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let lines = Lines::new(SourceText { path, text });
        let mut cx = Decoder::new(&lines);
        let document = toml::read(text);
        cx.mistakes_of(&document);
        let mut project = Self::default();
        match document.ending {
            Ending::Whole => project.read(&document.root, &mut cx),
            Ending::Cut | Ending::CutBeforeOthers => {}
        }
        let diagnostics = cx.finish();
        if diagnostics.is_empty() { Ok(project) } else { Err(diagnostics) }
    }

    fn read(&mut self, root: &Node<'_>, cx: &mut Decoder<'_>) {
        for entry in cx.fields(root, "Project", Self::FIELDS) {
            match entry.key.as_ref() {
                "defaults" => {
                    cx.field(entry, &mut self.defaults, check::anything);
                    cx.within("defaults", |cx| refuse_without_default(&entry.value, cx));
                }
                "hosts" => cx.field(entry, &mut self.hosts, check::anything),
                "policies" => cx.field(entry, &mut self.policies, check::anything),
                "vars" => cx.within("vars", |cx| {
                    for var in cx.entries(&entry.value) {
                        self.vars.insert(var.key.to_string(), cx.within(&var.key, |cx| json(&var.value, cx)));
                    }
                }),
                "moved" => cx.within("moved", |cx| self.moved = moved(&entry.value, cx)),
                _ => {} // Reported by `fields`.
            }
        }
    }
}

/// Fields that make no sense as a default: they say what one app is.
pub(crate) const WITHOUT_DEFAULT: [&str; 5] = ["runtime", "source", "dependsOn", "from", "restore"];

fn refuse_without_default(defaults: &Node<'_>, cx: &mut Decoder<'_>) {
    for entry in WITHOUT_DEFAULT.iter().filter_map(|field| defaults.entry(field)) {
        cx.error(entry.key_at, &format!("`{}` cannot have a default; each app says its own", entry.key), None);
    }
}

/// A variable as templates see it.
fn json(node: &Node<'_>, cx: &mut Decoder<'_>) -> Json {
    match &node.value {
        Value::Sequence(items) => items.iter().map(|item| json(item, cx)).collect(),
        Value::Mapping(entries) => {
            entries.iter().map(|entry| (entry.key.to_string(), json(&entry.value, cx))).collect()
        }
        Value::Scalar(Scalar { text, kind }) => match kind {
            ScalarKind::Null => Json::Null,
            ScalarKind::Bool => Json::Bool(text == "true"),
            ScalarKind::Text => Json::String(text.to_string()),
            ScalarKind::Integer | ScalarKind::Float => {
                match serde_json::from_str::<serde_json::Number>(text.trim_start_matches('+')) {
                    Ok(number) => Json::Number(number),
                    Err(_) => {
                        cx.expected(node, "a finite number");
                        Json::Null
                    }
                }
            }
        },
    }
}

/// One `[[moved]]`.
struct Move {
    from: AppKey,
    to: AppKey,
}

impl Decode for Move {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.fields(node, "Move", &["from", "to"]);
        let from = cx.required(node, "from", check::anything);
        let to = cx.required(node, "to", check::anything);
        Some(Self { from: from?, to: to? })
    }
}

fn moved(node: &Node<'_>, cx: &mut Decoder<'_>) -> BTreeMap<AppKey, AppKey> {
    let Value::Sequence(items) = &node.value else {
        cx.expected(node, "a list of tables, `[[moved]]`");
        return BTreeMap::new();
    };
    let (mut steps, mut targets) = (BTreeMap::new(), BTreeSet::new());
    for item in items {
        let Some(Move { from, to }) = Move::decode(item, cx) else { continue };
        let wrong = if from == to {
            Some(format!("`{from}` cannot move to itself"))
        } else if !targets.insert(to.clone()) {
            Some(format!("two apps cannot both move to `{to}`"))
        } else {
            let again = steps.insert(from.clone(), to).is_some();
            again.then(|| format!("`{from}` cannot move to two apps"))
        };
        if let Some(wrong) = wrong {
            cx.error(item.at, &wrong, None);
        }
    }
    let ends: BTreeMap<AppKey, AppKey> =
        steps.keys().filter_map(|from| Some((from.clone(), end(from, &steps)?))).collect();
    if ends.len() < steps.len() {
        cx.error(node.at, "these moves lead in a circle", None);
    }
    ends
}

/// Where a chain of moves ends, or `None` for a circle.
fn end(from: &AppKey, steps: &BTreeMap<AppKey, AppKey>) -> Option<AppKey> {
    let mut at = from;
    for _ in 0..steps.len() {
        at = steps.get(at)?;
        if !steps.contains_key(at) {
            return Some(at.clone());
        }
    }
    None
}

#[cfg(test)]
mod tests;
