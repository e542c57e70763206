//! Revisions and plans: the capped histories, and the one record of what was attempted and applied last.
//!
//! A plan can be larger than a record may be, so its full text is a file `plans/<number>.json`, written and synced before the
//! record that names its checksum. A file that no record names is left from a crash and is swept when the state is opened.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use setpoint_schema::quantity::ByteSize;

use crate::envelope::Checksum;
use crate::error::{Result, StateError};
use jiff::Timestamp;

use crate::record::{Meta, NewEvent, PlanRecord, RevisionRecord};
use crate::store::batch::{put, remove};
use crate::store::{Store, sync_dir};
use crate::table::{Metas, Only, PlanFiles, Plans, Revisions};

/// What the file of a plan holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanFile {
    pub(crate) bytes: u64,
    pub(crate) checksum: Checksum,
}

impl Store {
    /// Records how a revision stands: a new attempt, or the attempt that was recorded last when the commit is the same and
    /// neither is over. Last attempted and last applied follow.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn record_revision(&self, revision: &RevisionRecord) -> Result<()> {
        self.record_revision_with(revision, Vec::new())
    }

    /// The same with events that tell of it, all of it or nothing.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn record_revision_with(&self, revision: &RevisionRecord, events: Vec<NewEvent>) -> Result<()> {
        self.submit(|sequence| {
            let same =
                |last: &RevisionRecord| last.commit == revision.commit && last.attempted_at == revision.attempted_at;
            let mut next = sequence.revisions.clone();
            let (number, trimmed) = match next.last().filter(|_| sequence.last_revision.as_ref().is_some_and(same)) {
                Some(last) => (last, 0..0),
                None => next.append(sequence.options.revisions),
            };
            let mut meta = sequence.meta.clone();
            meta.last_attempted = Some(revision.commit.clone());
            if revision.applied_at.is_some() {
                meta.last_applied = Some(revision.commit.clone());
            }
            let mut writes = vec![put::<Revisions>(&number, revision)?, put::<Metas>(&Only, &meta)?];
            writes.extend(trimmed.map(|number| remove::<Revisions>(&number)));
            for event in events {
                writes.extend(sequence.event(Timestamp::now(), event)?.1);
            }
            sequence.revisions = next;
            sequence.last_revision = Some(revision.clone());
            sequence.meta = meta;
            Ok(((), writes))
        })?;
        self.history_changed();
        Ok(())
    }

    /// Changes what there is one of.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn update_meta(&self, change: impl FnOnce(&mut Meta)) -> Result<()> {
        self.submit(|sequence| {
            let mut meta = sequence.meta.clone();
            change(&mut meta);
            let writes = vec![put::<Metas>(&Only, &meta)?];
            sequence.meta = meta;
            Ok(((), writes))
        })
    }

    /// Adds a plan to the history, with its full text; returns its number there.
    ///
    /// # Errors
    /// See [`Store::commit`], and what writing the file can meet.
    pub fn save_plan(&self, plan: &PlanRecord, body: &[u8]) -> Result<u64> {
        self.check_room()?;
        let mut plan = plan.clone();
        plan.actions.truncate(PlanRecord::ACTIONS);
        // One plan at a time: the file must be complete under its number before the record is queued.
        let _saving = self.saving_plans();
        let number = self.next_plan();
        write_plan(self.dir(), number, body)?;
        let file = PlanFile { bytes: body.len() as u64, checksum: Checksum::of(body) };
        let dropped = self.submit(|sequence| {
            let mut next = sequence.plans.clone();
            let (number, trimmed) = next.append(sequence.options.plans);
            let mut texts = sequence.plan_texts.clone();
            texts.push_back((number, file.bytes));
            let dropped = drop_texts(&mut texts, next.first, sequence.options.plan_bytes);
            let mut writes = vec![put::<Plans>(&number, &plan)?, put::<PlanFiles>(&number, &file)?];
            writes.extend(trimmed.map(|old| remove::<Plans>(&old)));
            writes.extend(dropped.iter().map(remove::<PlanFiles>));
            (sequence.plans, sequence.plan_texts) = (next, texts);
            Ok((dropped, writes))
        })?;
        for old in dropped {
            // What stays behind is swept at the next start.
            let _ = std::fs::remove_file(plan_path(self.dir(), old));
        }
        Ok(number)
    }
}

/// Gives up the texts of plans before `first`, and of the oldest beyond what all of them may take up; never the newest.
fn drop_texts(texts: &mut VecDeque<(u64, u64)>, first: u64, most: ByteSize) -> Vec<u64> {
    let mut dropped = Vec::new();
    let mut bytes: u64 = texts.iter().map(|(_, bytes)| bytes).sum();
    while let Some((oldest, size)) = texts.front().copied()
        && texts.len() > 1
        && (oldest < first || bytes > most.as_bytes())
    {
        texts.pop_front();
        bytes -= size;
        dropped.push(oldest);
    }
    dropped
}

/// The file of a plan's full text.
pub(crate) fn plan_path(dir: &Path, number: u64) -> PathBuf {
    plans_dir(dir).join(format!("{number}.json"))
}

/// Removes what an interrupted save or trim left behind.
pub(crate) fn sweep_plans(dir: &Path, known: impl Fn(u64) -> bool) -> io::Result<()> {
    let entries = match std::fs::read_dir(plans_dir(dir)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|name| name.parse().ok());
        if !number.is_some_and(&known) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn plans_dir(dir: &Path) -> PathBuf {
    dir.join("plans")
}

fn write_plan(dir: &Path, number: u64, body: &[u8]) -> Result<()> {
    let path = plan_path(dir, number);
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(plans_dir(dir))?;
        let mut file = File::create(&path)?;
        file.write_all(body)?;
        file.sync_all()?;
        sync_dir(&plans_dir(dir))
    };
    write().map_err(|e| StateError::io(dir, "write", &path, e))
}
