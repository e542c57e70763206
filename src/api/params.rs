//! Query parameters: each is known to its route, given once and in range, or the request is refused with the parameter's name.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::Query;
use hyper::Uri;

use super::backend::Follow;
use super::refusal::Refusal;

/// Items on a page, unless `limit` says otherwise.
pub(super) const DEFAULT_LIMIT: usize = 100;
/// The most items on a page: the largest app is a few KiB, so that a page stays at a few MiB.
pub(super) const MAX_LIMIT: usize = 1000;
/// Lines of a log, unless `tail` says otherwise.
pub(super) const DEFAULT_TAIL: u32 = 100;
/// The most lines of a log. A guest keeps no more than some MiB of each.
pub(super) const MAX_TAIL: u32 = 100_000;
/// The longest wait: shorter than the idle times of common proxies is the client's affair, longer helps nobody.
pub(super) const MAX_WAIT_SECONDS: u32 = 300;
/// The longest text of any parameter but `fields`; names and keys are far shorter.
pub(super) const MAX_TEXT: usize = 256;

/// Everything that a request can say behind its `?`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Parameter {
    App,
    Cursor,
    Fields,
    Follow,
    Label,
    Limit,
    Phase,
    Rev,
    Tail,
    Team,
    Wait,
}

impl Parameter {
    /// As it is written.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Cursor => "cursor",
            Self::Fields => "fields",
            Self::Follow => "follow",
            Self::Label => "label",
            Self::Limit => "limit",
            Self::Phase => "phase",
            Self::Rev => "rev",
            Self::Tail => "tail",
            Self::Team => "team",
            Self::Wait => "wait",
        }
    }

    /// How often it may stand in one request.
    pub(super) const fn occurs(self) -> Occurs {
        match self {
            Self::Label => Occurs::Often,
            Self::App
            | Self::Cursor
            | Self::Fields
            | Self::Follow
            | Self::Limit
            | Self::Phase
            | Self::Rev
            | Self::Tail
            | Self::Team
            | Self::Wait => Occurs::Once,
        }
    }
}

/// How often a parameter may stand in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occurs {
    Once,
    Often,
}

/// The parameters of one request, all of them known to its route.
#[derive(Debug)]
pub(super) struct Params(BTreeMap<Parameter, Vec<String>>);

/// Which part of a list.
pub(super) struct Page {
    /// The last item of the page before.
    pub(super) cursor: Option<String>,
    /// The most items.
    pub(super) limit: usize,
}

impl Params {
    /// Refuses what the route does not know, so that a misspelt parameter is not taken for its default.
    pub(super) fn of(uri: &Uri, known: &[Parameter]) -> Result<Self, Refusal> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)?;
        let mut params: BTreeMap<Parameter, Vec<String>> = BTreeMap::new();
        for (name, value) in pairs {
            let Some(parameter) = known.iter().copied().find(|parameter| parameter.name() == name) else {
                return Err(Refusal::parameter(&name, format!("`{name}` is not a parameter here")));
            };
            let values = params.entry(parameter).or_default();
            if parameter.occurs() == Occurs::Once && !values.is_empty() {
                return Err(Refusal::parameter(&name, format!("`{name}` is given more than once")));
            }
            values.push(value);
        }
        Ok(Self(params))
    }

    pub(super) fn page(&self) -> Result<Page, Refusal> {
        let limit = self.number(Parameter::Limit, DEFAULT_LIMIT, 1, MAX_LIMIT)?;
        Ok(Page { cursor: self.text(Parameter::Cursor).map(str::to_owned), limit })
    }

    pub(super) fn tail(&self) -> Result<u32, Refusal> {
        self.number(Parameter::Tail, DEFAULT_TAIL, 0, MAX_TAIL)
    }

    pub(super) fn follow(&self) -> Result<Follow, Refusal> {
        match self.text(Parameter::Follow) {
            None | Some("false") => Ok(Follow::No),
            Some("true") => Ok(Follow::Yes),
            Some(_) => Err(Refusal::parameter("follow", "`follow` must be `true` or `false`")),
        }
    }

    pub(super) fn rev(&self) -> Result<Option<&str>, Refusal> {
        let rev = self.text(Parameter::Rev);
        let plain = |rev: &str| (1..=MAX_TEXT).contains(&rev.len()) && !rev.chars().any(char::is_control);
        if rev.is_none_or(plain) {
            Ok(rev)
        } else {
            Err(Refusal::parameter("rev", "`rev` must be a commit, a branch or a tag"))
        }
    }

    /// How long to hold an answer that would say nothing new.
    pub(super) fn wait(&self) -> Result<Option<Duration>, Refusal> {
        let Some(text) = self.text(Parameter::Wait) else { return Ok(None) };
        let seconds = match text.split_at_checked(text.len().saturating_sub(1)) {
            Some((number, "s")) => whole::<u32>(number),
            Some((number, "m")) => whole::<u32>(number).and_then(|minutes| minutes.checked_mul(60)),
            Some(_) | None => None,
        };
        match seconds.filter(|seconds| (1..=MAX_WAIT_SECONDS).contains(seconds)) {
            Some(seconds) => Ok(Some(Duration::from_secs(seconds.into()))),
            None => Err(Refusal::parameter("wait", "`wait` must be from `1s` to `5m`, in whole seconds or minutes")),
        }
    }

    /// A parameter that is a name, or another text with rules of its own.
    pub(super) fn parsed<T>(&self, parameter: Parameter) -> Result<Option<T>, Refusal>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let parse = |text: &str| {
            let bad = |error| Refusal::parameter(parameter.name(), format!("`{}` {error}", parameter.name()));
            text.parse().map_err(bad)
        };
        self.text(parameter).map(parse).transpose()
    }

    /// `label=key=value`, as often as there are labels to ask for.
    pub(super) fn labels(&self) -> Result<Vec<(String, String)>, Refusal> {
        let bad = || Refusal::parameter("label", "`label` must be `key=value`");
        let pair = |text: &String| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            Some(_) | None => Err(bad()),
        };
        self.0.get(&Parameter::Label).into_iter().flatten().map(pair).collect()
    }

    /// A parameter as it is written.
    pub(super) fn text(&self, parameter: Parameter) -> Option<&str> {
        self.0.get(&parameter)?.first().map(String::as_str)
    }

    fn number<N>(&self, parameter: Parameter, default: N, min: N, max: N) -> Result<N, Refusal>
    where
        N: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.text(parameter) else { return Ok(default) };
        let name = parameter.name();
        whole(text)
            .filter(|number| (&min..=&max).contains(&number))
            .ok_or_else(|| Refusal::parameter(name, format!("`{name}` must be a whole number from {min} to {max}")))
    }
}

/// Digits and nothing else: Rust's own parser would take `+5`, too.
fn whole<N: FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
