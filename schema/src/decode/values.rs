//! [`Decode`] of single values, lists and maps.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use super::{Decode, Decoder};
use crate::app::{DiskSize, Power, Prune, Retain, Shrink};
use crate::name::{
    AppKey, AppName, DirName, EnvName, HostName, RepoPath, SnapshotName, Team, TemplateName, Uid, WorkerName,
};
use crate::node::{Node, Scalar, ScalarKind, Value, shorten};
use crate::power::{CpuShare, IdleAction, OnResumeFailure, WakeOn};
use crate::quantity::{ByteSize, Span};
use crate::shared::SmallMap;
use crate::snapshot::{Beginning, Content, Restore, SnapshotRef};

/// Decodes from text through `FromStr`, whose error says the rule.
macro_rules! from_text {
    ($($name:ident: $what:literal),* $(,)?) => {$(
        impl Decode for $name {
            fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
                cx.parsed(node, $what)
            }
        }
    )*};
}
from_text! {
    ByteSize: "a size such as `512Mi`",
    Span: "a time such as `90s`",
    CpuShare: "a share of a processor such as `5%`",
    AppName: "the name of an app",
    SnapshotName: "the name of a snapshot",
    DirName: "the name of a directory such as `node_modules`",
    Team: "the name of a team",
    TemplateName: "the name of a template",
    WorkerName: "the name of a worker",
    Uid: "an identity such as `blog-7f3a`",
    HostName: "a host name such as `blog.example.org`",
    RepoPath: "a path in the repository such as `apps/blog/src`",
}

/// Decodes one of a few words.
macro_rules! from_word {
    ($($name:ident { $($word:literal: $variant:ident),* }),* $(,)?) => {$(
        impl Decode for $name {
            fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
                cx.choice(node, &[$(($word, Self::$variant)),*])
            }
        }
    )*};
}
from_word! {
    Power { "running": Running, "paused": Paused, "stopped": Stopped },
    Prune { "enabled": Enabled, "disabled": Disabled },
    Shrink { "refuse": Refuse, "replace": Replace },
    IdleAction { "pause": Pause, "stop": Stop },
    OnResumeFailure { "boot": Boot, "alert": Alert },
    WakeOn { "request": Request, "manual": Manual },
    Content { "memory": Memory, "disk": Disk },
}

impl Decode for bool {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        match &node.value {
            Value::Scalar(Scalar { text, kind: ScalarKind::Bool }) if text == "true" => Some(true),
            Value::Scalar(Scalar { text, kind: ScalarKind::Bool }) if text == "false" => Some(false),
            Value::Scalar(_) | Value::Sequence(_) | Value::Mapping(_) => {
                cx.expected(node, "`true` or `false`");
                None
            }
        }
    }
}

impl Decode for u16 {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.integer(node, "a whole number from 1 to 65535")
    }
}

impl Decode for u32 {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.integer(node, "a whole number")
    }
}

impl Decode for String {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.text(node, "text").map(str::to_owned)
    }
}

impl Decode for DiskSize {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        ByteSize::decode(node, cx).map(Self)
    }
}

impl Decode for Retain {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let text = cx.text(node, "`none` or a time such as `7d`")?;
        let retain = text.parse::<Self>();
        let report =
            |rule| cx.error(node.at, &format!("`{}` {rule}", shorten(text)), Some("write `none` to keep nothing"));
        retain.map_err(report).ok()
    }
}

/// `team/name`, or `name` in the team of the app that says it.
impl Decode for AppKey {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let text = cx.text(node, "an app as `name` or `team/name`")?;
        match AppKey::within(text, cx.team()) {
            Ok(key) => Some(key),
            Err(rule) => {
                cx.error(node.at, &format!("`{}` is no app name: a name {rule}", shorten(text)), None);
                None
            }
        }
    }
}

/// What copies share.
impl<T: Decode + Clone> Decode for Arc<T> {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        T::decode(node, cx).map(Self::new)
    }

    fn overlay(&mut self, node: &Node<'_>, cx: &mut Decoder<'_>) {
        Self::make_mut(self).overlay(node, cx);
    }
}

/// `team/name`, or `name` in the team of the app that says it, or an id.
impl Decode for SnapshotRef {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let text = cx.text(node, "a snapshot as `name` or `team/name`, or its id")?;
        match Self::within(text, cx.team()) {
            Ok(snapshot) => Some(snapshot),
            Err(rule) => {
                cx.error(node.at, &format!("`{}` is no name of a snapshot: a name {rule}", shorten(text)), None);
                None
            }
        }
    }
}

/// `snapshot` or `app`, and one of them.
impl Decode for Beginning {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let entries = cx.fields(node, "From", &["snapshot", "app"]);
        if entries.is_empty() && matches!(node.value, Value::Mapping(_)) || entries.len() > 1 {
            cx.error(node.at, "expected one of `snapshot` and `app`", None);
            return None;
        }
        let snapshot = cx.optional(node, "snapshot", crate::check::anything).map(Self::Snapshot);
        snapshot.or_else(|| cx.optional(node, "app", crate::check::anything).map(Self::App))
    }
}

impl Decode for Restore {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.fields(node, "Restore", &["snapshot", "token"]);
        let snapshot = cx.required(node, "snapshot", crate::check::anything);
        let token = cx.required(node, "token", crate::check::restore_token);
        Some(Self { snapshot: snapshot?, token: token? })
    }
}

/// What may be absent; where it is written, it has a value.
impl<T: Decode> Decode for Option<T> {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        T::decode(node, cx).map(Some)
    }

    fn overlay(&mut self, node: &Node<'_>, cx: &mut Decoder<'_>) {
        match self {
            Some(value) => value.overlay(node, cx),
            None => *self = T::decode(node, cx),
        }
    }
}

/// A list replaces the list that was there.
impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let Value::Sequence(items) = &node.value else {
            cx.expected(node, "a list");
            return None;
        };
        Some(items.iter().filter_map(|item| T::decode(item, cx)).collect())
    }
}

/// A list whose items may stand in it once.
impl<T: Decode + Ord> Decode for BTreeSet<T> {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let Value::Sequence(items) = &node.value else {
            cx.expected(node, "a list");
            return None;
        };
        let mut set = Self::new();
        for item in items {
            if let Some(value) = T::decode(item, cx)
                && !set.insert(value)
            {
                cx.error(item.at, &format!("{} stands in this list a second time", item.describe()), None);
            }
        }
        Some(set)
    }
}

/// A map merges with the map that was there.
impl<K: MapKey, V: Decode> Decode for BTreeMap<K, V> {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let mut map = Self::new();
        map.overlay(node, cx);
        Some(map)
    }

    fn overlay(&mut self, node: &Node<'_>, cx: &mut Decoder<'_>) {
        entries_of(node, cx, |key, value| drop(self.insert(key, value)));
    }
}

/// Gives every entry without a mistake to `insert`.
fn entries_of<K: MapKey, V: Decode>(node: &Node<'_>, cx: &mut Decoder<'_>, mut insert: impl FnMut(K, V)) {
    for entry in cx.entries(node) {
        let key = match entry.key.parse::<K>() {
            Ok(key) => Some(key),
            Err(rule) => {
                cx.error(entry.key_at, &format!("the name `{}` {rule}", shorten(&entry.key)), None);
                None
            }
        };
        let value = cx.within(&entry.key, |cx| cx.has_value(entry).then(|| V::decode(&entry.value, cx)).flatten());
        if let (Some(key), Some(value)) = (key, value) {
            insert(key, value);
        }
    }
}

/// The same, for one that is then not changed any more.
impl<K: MapKey + Clone, V: Decode + Clone> Decode for SmallMap<K, V> {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let mut map = Self::new();
        map.overlay(node, cx);
        Some(map)
    }

    fn overlay(&mut self, node: &Node<'_>, cx: &mut Decoder<'_>) {
        let mut news = Vec::with_capacity(node.entries().len());
        entries_of(node, cx, |key, value| news.push((key, value)));
        *self = self.with(news);
    }
}

/// A key of a map in a declaration.
pub trait MapKey: Ord + FromStr<Err: std::fmt::Display> {}

impl MapKey for EnvName {}
impl MapKey for String {}
