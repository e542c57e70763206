//! Query parameters: each is known, given once and in range, or the request is refused with the parameter's name.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::extract::Query;
use hyper::Uri;

use super::backend::Follow;
use super::refusal::Refusal;

/// Items on a page, unless `limit` says otherwise.
const DEFAULT_LIMIT: usize = 100;
/// The most items on a page: the largest app is a few KiB, so that a page stays at a few MiB.
const MAX_LIMIT: usize = 1000;
/// Lines of a log, unless `tail` says otherwise.
const DEFAULT_TAIL: u32 = 100;
/// The most lines of a log. A guest keeps no more than some MiB of each.
const MAX_TAIL: u32 = 100_000;

/// The parameters of one request that nobody has taken yet.
pub(super) struct Params(BTreeMap<String, String>);

/// Which part of a list.
pub(super) struct Page {
    /// The last item of the page before.
    pub(super) cursor: Option<String>,
    /// The most items.
    pub(super) limit: usize,
}

impl Params {
    pub(super) fn of(uri: &Uri) -> Result<Self, Refusal> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)?;
        let mut params = BTreeMap::new();
        for (name, value) in pairs {
            if params.contains_key(&name) {
                return Err(Refusal::parameter(&name, format!("`{name}` is given more than once")));
            }
            params.insert(name, value);
        }
        Ok(Self(params))
    }

    pub(super) fn page(&mut self) -> Result<Page, Refusal> {
        let limit = self.number("limit", DEFAULT_LIMIT, 1, MAX_LIMIT)?;
        Ok(Page { cursor: self.text("cursor"), limit })
    }

    pub(super) fn tail(&mut self) -> Result<u32, Refusal> {
        self.number("tail", DEFAULT_TAIL, 0, MAX_TAIL)
    }

    pub(super) fn follow(&mut self) -> Result<Follow, Refusal> {
        match self.text("follow").as_deref() {
            None | Some("false" | "0") => Ok(Follow::No),
            Some("" | "true" | "1") => Ok(Follow::Yes),
            Some(_) => Err(Refusal::parameter("follow", "`follow` must be `true` or `false`")),
        }
    }

    pub(super) fn rev(&mut self) -> Result<Option<String>, Refusal> {
        let rev = self.text("rev");
        let plain = |rev: &String| (1..=256).contains(&rev.len()) && !rev.chars().any(char::is_control);
        if rev.as_ref().is_none_or(plain) {
            Ok(rev)
        } else {
            Err(Refusal::parameter("rev", "`rev` must be a commit, a branch or a tag"))
        }
    }

    /// Refuses what is left, so that a misspelt parameter is not taken for its default.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(Refusal::parameter(&name, format!("`{name}` is not a parameter here"))),
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn number<N>(&mut self, name: &str, default: N, min: N, max: N) -> Result<N, Refusal>
    where
        N: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.text(name) else { return Ok(default) };
        match text.parse() {
            Ok(number) if (&min..=&max).contains(&&number) => Ok(number),
            Ok(_) | Err(_) => {
                Err(Refusal::parameter(name, format!("`{name}` must be a whole number from {min} to {max}")))
            }
        }
    }
}
