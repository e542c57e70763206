//! What a snapshot looks like in a table.

use jiff::Timestamp;
use setpoint_schema::name::AppKey;
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::snapshot::Content;
use setpoint_schema::wire::{self, SnapshotCause, SnapshotState};

use super::Wanted;
use super::kinds::{Resource, any_team};
use crate::cli::age::{self, age};
use crate::cli::follow::Query;
use crate::cli::select::Traits;
use crate::cli::style::Tone;
use crate::cli::table::{Cell, Column};

impl Resource for wire::Snapshot {
    const PATH: &'static str = "/v1/snapshots";
    const ONE: &'static str = "snapshot";
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME"),
        Column::new("STATE").at_least("retained".len()),
        Column::new("APP"),
        Column::new("CONTENT"),
        Column::new("AGE").at_least(age::WIDTH),
        Column::new("SIZE").at_least("1000Mi".len()),
        Column::new("COMMIT"),
        Column::new("WANTED-BY"),
        Column::wide("STOPPED"),
        Column::wide("SOURCE"),
        Column::wide("SANDBOX"),
        Column::wide("RETAIN"),
        Column::wide("ID"),
        Column::new("MESSAGE"),
    ];

    /// The generation tells those of one name apart.
    fn name(&self) -> String {
        format!("{}@{}", self.key(), self.generation)
    }

    /// Its name with or without the generation, its id, or the app that it is of.
    fn answers_to(&self, name: &str) -> bool {
        self.name() == name
            || self.id.as_str() == name
            || name.parse().is_ok_and(|key| self.key() == key)
            || name.parse().is_ok_and(|key: AppKey| self.app == key)
    }

    fn query(wanted: &Wanted) -> Query {
        wanted.selection.query()
    }

    fn traits(&self) -> Traits<'_> {
        Traits { team: Some(&self.team), ..Traits::default() }
    }

    fn kind_traits() -> Traits<'static> {
        Traits { team: Some(any_team()), ..Traits::default() }
    }

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let since = self.taken_at.or(self.since);
        let source: Option<String> = self.tree.as_ref().map(|tree| tree.as_str().chars().take(10).collect());
        vec![
            Cell::new(self.name()),
            Cell::new(self.state.as_str()).tone(tone(self.state)),
            Cell::new(self.app.to_string()),
            Cell::new(content(self.content)),
            Cell::or_dash(since.map(|since| age(since, now))),
            Cell::or_dash(self.size.map(size)),
            Cell::or_dash(self.revision.as_ref().map(|commit| commit.short())),
            Cell::new(cause(&self.cause)),
            Cell::or_dash(self.stopped_ms.map(age::milliseconds)),
            Cell::or_dash(source),
            Cell::or_dash(self.sandbox.as_ref().map(ToString::to_string)),
            Cell::new(self.retain.to_string()),
            Cell::new(self.id.as_str()),
            Cell::new(&self.message),
        ]
    }
}

/// What is kept, in a word.
#[must_use]
pub const fn content(content: Content) -> &'static str {
    match content {
        Content::Memory => "memory",
        Content::Disk => "disk",
    }
}

/// A size on the disk, to the next mebibyte.
#[must_use]
pub fn size(size: ByteSize) -> String {
    ByteSize::mib(size.as_mib()).to_string()
}

/// Who or what wants a snapshot, in a few words.
#[must_use]
pub fn cause(cause: &SnapshotCause) -> String {
    match cause {
        SnapshotCause::Declared => "git".to_owned(),
        SnapshotCause::Asked { by } => by.clone(),
        SnapshotCause::Fork { to } => format!("fork {to}"),
        SnapshotCause::Restore { token } => format!("restore {token}"),
    }
}

/// How a state is coloured.
#[must_use]
pub const fn tone(state: SnapshotState) -> Tone {
    match state {
        SnapshotState::Kept => Tone::Good,
        SnapshotState::Wanted | SnapshotState::Leaving => Tone::Busy,
        SnapshotState::Failed => Tone::Bad,
        SnapshotState::Retained => Tone::Quiet,
    }
}
