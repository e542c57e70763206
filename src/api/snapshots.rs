//! The snapshots that the daemon keeps, as a list and one by one. Not to be taken for [`super::snapshot`], the state that is served.

use std::cmp::Reverse;
use std::fmt;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

use axum::response::Response;
use setpoint_schema::id::{Generation, SnapshotId};
use setpoint_schema::name::{AppKey, SnapshotKey, Team};
use setpoint_schema::observed::SnapshotRecord;
use setpoint_schema::wire;

use super::ask::Ask;
use super::lists::{List, object};
use super::params::Parameter;
use super::poll::{self, OfSnapshot};
use super::refusal::Refusal;
use super::routes::Sources;
use super::snapshot::Snapshot;

/// Where a snapshot stands among all: by team and name, of each name the newest generation first. Written `team/name@generation@id`,
/// which serves as a cursor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    key: SnapshotKey,
    generation: Reverse<Generation>,
    id: SnapshotId,
}

impl Place {
    /// That of a record.
    #[must_use]
    pub fn of(record: &SnapshotRecord) -> Self {
        Self { key: record.key.clone(), generation: Reverse(record.generation), id: record.id.clone() }
    }

    /// Which snapshot stands there.
    #[must_use]
    pub fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// Before every generation of a name.
    fn before(key: SnapshotKey) -> Self {
        Self { key, generation: Reverse(Generation(u64::MAX)), id: SnapshotId(String::new()) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key: SnapshotKey { team, name }, generation: Reverse(generation), id } = self;
        write!(f, "{team}/{name}@{generation}@{id}")
    }
}

/// Not the place of any snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;
    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (key, rest) = text.split_once('@').ok_or(NoPlace)?;
        let (generation, id) = rest.split_once('@').ok_or(NoPlace)?;
        let key = key.parse().map_err(|_| NoPlace)?;
        let generation = Reverse(Generation(generation.parse().map_err(|_| NoPlace)?));
        Ok(Self { key, generation, id: SnapshotId(id.to_owned()) })
    }
}

pub(super) async fn list(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let team: Option<Team> = ask.params.parsed(Parameter::Team)?;
    let app: Option<AppKey> = ask.params.parsed(Parameter::App)?;
    let wanted = move |snapshot: &wire::Snapshot| {
        team.as_ref().is_none_or(|team| snapshot.team == *team) && app.as_ref().is_none_or(|app| snapshot.app == *app)
    };
    let list: List<Place, _> = List::of(&sources, &ask, "Snapshot", Box::new(wanted))?;
    let look = move |snapshot: &Snapshot| Ok(list.page(&snapshot.snapshots));
    poll::answer(&sources, ask, OfSnapshot::new(&sources, look), "snapshots").await
}

pub(super) async fn newest(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let (cache, uri, fields) = (Arc::clone(&sources.cache), ask.uri.clone(), ask.fields("Snapshot")?);
    let key = ask.snapshot()?;
    let before = Place::before(key.clone());
    let look = move |snapshot: &Snapshot| {
        let newest = snapshot.snapshots.range(Bound::Included(&before)).first();
        let newest = newest.filter(|newest| newest.key().key == key).ok_or_else(|| Refusal::no_snapshot(&key))?;
        Ok(object(&cache, &uri, fields.as_ref(), newest))
    };
    poll::answer(&sources, ask, OfSnapshot::new(&sources, look), "snapshot").await
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    fn place(key: &str, generation: u64, id: &str) -> Place {
        let (generation, id) = (Reverse(Generation(generation)), SnapshotId(id.to_owned()));
        Place { key: key.parse().unwrap(), generation, id }
    }

    #[test]
    fn of_one_name_the_newest_generation_stands_first_and_a_place_is_a_cursor() {
        let mut places = [place("b", 1, "x"), place("a", 1, "x"), place("a", 10, "x"), place("ops/a", 1, "x")];
        places.sort();
        let written: Vec<_> = places.iter().map(ToString::to_string).collect();
        assert_eq!(written, ["default/a@10@x", "default/a@1@x", "default/b@1@x", "ops/a@1@x"]);
        for place in places {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        assert!(Place::before("a".parse().unwrap()) < place("a", 10, "x"));
        for wrong in ["", "a", "a@1", "a@x@y", "A@1@x", "@1@x"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
