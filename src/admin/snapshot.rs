//! `POST /v1/apps/{team}/{name}/snapshot?name=…&content=disk&retain=7d`: somebody on this host wants a moment of an app kept.
//!
//! All that this does is to write a row that says so. The planner has every row of the kind taken, whoever wrote it, so that what is
//! asked for here waits, is refused and is retried as what is declared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::Query;
use hyper::{Response, StatusCode, Uri};
use serde::Deserialize;
use setpoint_schema::app::{Power, Retain};
use setpoint_schema::id::{Generation, SnapshotId};
use setpoint_schema::name::{AppKey, SnapshotKey, SnapshotName};
use setpoint_schema::observed::{SnapshotCause, SnapshotRecord, SnapshotState};
use setpoint_schema::snapshot::{Content, default_exclude, default_retain};
use setpoint_schema::wire::{Snapshot, SnapshotWanted};
use setpoint_state::{EventKind, NewEvent, StateError};

use super::{Admin, Caller, accept, advise, refuse, unknown};

/// What may stand behind `?`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// What it is called; the app's own name without it.
    name: Option<SnapshotName>,
    /// Memory and disk without it.
    #[serde(default)]
    content: Content,
    #[serde(default = "default_retain")]
    retain: Retain,
}

/// The rows of snapshots.
type Rows = BTreeMap<SnapshotId, Arc<SnapshotRecord>>;

/// What comes of it.
enum Answer {
    Wanted(SnapshotRecord),
    WantedAlready(SnapshotRecord),
    Refused(String),
}

impl Admin {
    pub(super) async fn keep(&self, app: &AppKey, uri: &Uri, caller: Caller) -> Result<Response<Body>, StateError> {
        let Ok(Query(Asked { name, content, retain })) = Query::<Asked>::try_from_uri(uri) else {
            let rule = "`name`, `content` and `retain` are those of a declared Snapshot";
            return Ok(refuse(StatusCode::BAD_REQUEST, rule));
        };
        let Some(known) = self.ledger.app(app) else { return Ok(unknown(app)) };
        if (known.power_here(known.last_good.spec.app.power.state), content) == (Power::Stopped, Content::Memory) {
            let why = format!("{app} is stopped and has no memory to keep");
            return Ok(advise(StatusCode::CONFLICT, why, "`--disk-only` keeps its disk alone"));
        }
        let name = name.map_or_else(|| SnapshotName::new(app.name.as_str()), Ok);
        let key = SnapshotKey::new(app.team.clone(), name.expect("a snapshot may be called as an app is"));
        let wanted = SnapshotRecord {
            id: SnapshotId(format!("{:032x}", ulid::Ulid::generate().0)),
            key,
            app: app.clone(),
            generation: Generation(1),
            cause: SnapshotCause::Asked { by: caller.user() },
            content,
            exclude: match content {
                Content::Memory => [].into(),
                Content::Disk => default_exclude(),
            },
            retain,
            moment: None,
            state: SnapshotState::Wanted { since: self.observer.now() },
        };
        Ok(match self.want(wanted, caller).await? {
            Answer::Wanted(record) => accept(&SnapshotWanted { changed: true, snapshot: Snapshot::of(&record, None) }),
            Answer::WantedAlready(record) => {
                accept(&SnapshotWanted { changed: false, snapshot: Snapshot::of(&record, None) })
            }
            Answer::Refused(why) => {
                let hint = "choose another --name; `setpoint get snapshots` lists those that there are";
                advise(StatusCode::CONFLICT, why, hint)
            }
        })
    }

    /// Writes the row, unless it would say what another one says.
    async fn want(&self, wanted: SnapshotRecord, caller: Caller) -> Result<Answer, StateError> {
        let (id, app, by) = (wanted.id.clone(), wanted.app.clone(), caller.in_full());
        let answered = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&answered);
        // Decided among the rows as they are by then: somebody else may ask at the same time.
        let add = move |rows: &Rows| {
            let answer = answer(wanted, rows);
            let added = match &answer {
                Answer::Wanted(record) => Some((record.clone(), event(record, &by))),
                Answer::WantedAlready(_) | Answer::Refused(_) => None,
            };
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
            added
        };
        self.ledger.add_snapshot(add).await?;
        let answer = answered.lock().unwrap_or_else(PoisonError::into_inner).take();
        let answer = answer.expect("the decision was made before the row was written");
        if matches!(answer, Answer::Wanted(_)) {
            tracing::info!(%app, snapshot = %id, by = caller.in_full(), "snapshot asked for");
        }
        Ok(answer)
    }
}

fn answer(wanted: SnapshotRecord, rows: &Rows) -> Answer {
    let namesakes = || rows.values().filter(|row| row.key == wanted.key);
    if let Some(other) = namesakes().find(|row| row.app != wanted.app) {
        return Answer::Refused(format!("snapshot {} is one of {}", wanted.key, other.app));
    }
    let waits = |row: &&Arc<SnapshotRecord>| match (&row.state, &row.cause) {
        (SnapshotState::Wanted { .. }, SnapshotCause::Asked { .. }) => row.content == wanted.content,
        (SnapshotState::Wanted { .. } | SnapshotState::Failed { .. }, _)
        | (SnapshotState::Kept(_) | SnapshotState::Retained { .. } | SnapshotState::Leaving, _) => false,
    };
    if let Some(row) = namesakes().find(waits) {
        return Answer::WantedAlready(SnapshotRecord::clone(row));
    }
    let newest = namesakes().map(|row| row.generation.0).max().unwrap_or_default();
    Answer::Wanted(SnapshotRecord { generation: Generation(newest + 1), ..wanted })
}

fn event(record: &SnapshotRecord, by: &str) -> NewEvent {
    let what = match record.content {
        Content::Memory => "memory and disk are",
        Content::Disk => "the disk is",
    };
    let sentence = format!("{what} to be kept as {}@{}: asked for here by {by}", record.key, record.generation);
    NewEvent::new(EventKind::SnapshotAsked, "Asked", sentence).app(&record.app)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use jiff::Timestamp;
    use setpoint_schema::observed::Kept;
    use setpoint_schema::quantity::ByteSize;

    use super::*;

    fn record(id: &str, app: &str, generation: u64, state: SnapshotState) -> SnapshotRecord {
        SnapshotRecord {
            id: SnapshotId(id.to_owned()),
            key: "nightly".parse().unwrap(),
            app: app.parse().unwrap(),
            generation: Generation(generation),
            cause: SnapshotCause::Asked { by: "uid 0".to_owned() },
            content: Content::Memory,
            exclude: [].into(),
            retain: Retain::None,
            moment: None,
            state,
        }
    }

    fn wanted() -> SnapshotState {
        SnapshotState::Wanted { since: Timestamp::UNIX_EPOCH }
    }

    fn rows(records: impl IntoIterator<Item = SnapshotRecord>) -> Rows {
        records.into_iter().map(|record| (record.id.clone(), Arc::new(record))).collect()
    }

    #[test]
    fn each_asking_is_a_generation_and_asking_again_before_it_is_taken_is_as_good_as_once() {
        let kept = SnapshotState::Kept(Kept { at: Timestamp::UNIX_EPOCH, bytes: ByteSize::mib(1), stopped_ms: 3 });
        let before = rows([record("a", "blog", 1, kept.clone()), record("b", "blog", 4, kept)]);
        let Answer::Wanted(new) = answer(record("c", "blog", 1, wanted()), &before) else { panic!() };
        assert_eq!(new.generation, Generation(5));
        let with_it = rows([new.clone()]);
        assert!(matches!(answer(record("d", "blog", 1, wanted()), &with_it), Answer::WantedAlready(row) if row == new));
        let disk = SnapshotRecord { content: Content::Disk, ..record("d", "blog", 1, wanted()) };
        assert!(matches!(answer(disk, &with_it), Answer::Wanted(_)));
    }

    #[test]
    fn a_name_belongs_to_the_snapshots_of_one_app() {
        let taken = rows([record("a", "shop", 1, wanted())]);
        assert!(
            matches!(answer(record("b", "blog", 1, wanted()), &taken), Answer::Refused(why) if why.contains("shop"))
        );
    }
}
