//! What is checked when a state is opened: every record against its checksum, all of them against the summary, the summary
//! against the generation mark, and the journal's chain. What does not hold is damage; nothing is repaired by guessing.

use std::path::Path;

use crate::envelope::{Checksum, Corrupt, check, decode};
use crate::error::{Result, StateError};
use crate::store::engine::{Engine, Row};
use crate::store::mark::Mark;
use crate::store::summary::{self, FORMAT, Summary};
use crate::table::{Journal, JournalBases, Key as _, Only, full_key, known_tables, prefix, split_key};

/// What a checked state consists of.
#[derive(Debug)]
pub(crate) struct Verified {
    /// The summary; `None` in a state in which nothing was ever written.
    pub(crate) summary: Option<Summary>,
    /// The checksum of the newest journal entry, or of the last that was trimmed.
    pub(crate) journal_head: Checksum,
}

/// Checks the open engine against the mark in `dir`. Errors name `shown`.
pub(crate) fn verify(engine: &Engine, dir: &Path, shown: &Path) -> Result<Verified> {
    let damaged = |what: String| StateError::damaged(shown, what);
    let mark = Mark::read(dir)?;
    let rows = engine.everything()?;
    let Some((_, summary)) = rows.iter().find(|(key, _)| key == summary::KEY) else {
        return match (rows.len(), mark) {
            (0, None) => Ok(Verified { summary: None, journal_head: Checksum::default() }),
            (0, Some(generation)) => Err(damaged(format!("it is empty, though generation {generation} was recorded"))),
            (records, _) => Err(damaged(format!("it holds {records} records and no summary"))),
        };
    };
    let summary = Summary::parse(summary).map_err(|why| damaged(format!("the summary {why}")))?;
    if summary.format > FORMAT {
        return Err(too_new(shown, summary.format.to_string(), FORMAT));
    }
    check_generation(&summary, mark).map_err(damaged)?;
    check_records(&rows, &summary, shown)?;
    let journal_head = check_journal(&rows).map_err(damaged)?;
    Ok(Verified { summary: Some(summary), journal_head })
}

fn check_generation(summary: &Summary, mark: Option<u64>) -> std::result::Result<(), String> {
    let generation = summary.generation;
    match mark {
        Some(mark) if mark > generation => {
            Err(format!("it has gone back to generation {generation}, though generation {mark} was recorded"))
        }
        // Only the first commit comes before the mark's file.
        None if generation > 1 => {
            Err(format!("its generation mark is missing; its records are of generation {generation}"))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_records(rows: &[Row], summary: &Summary, shown: &Path) -> Result<()> {
    let damaged = |what: String| StateError::damaged(shown, what);
    let tables = known_tables();
    let mut found = Summary::empty(summary.generation);
    for (key, bytes) in rows.iter().filter(|(key, _)| key != summary::KEY) {
        let name = String::from_utf8_lossy(key).replace('\0', "/");
        let known = split_key(key).and_then(|(table, _)| tables.iter().find(|(known, _)| *known == table));
        let Some((table, newest)) = known else {
            return Err(damaged(format!("record {name} is of no known table")));
        };
        let (version, checksum) = check(key, bytes).map_err(|why| damaged(format!("record {name} {why}")))?;
        if version > *newest {
            return Err(too_new(shown, format!("{version} of {table}"), u32::from(*newest)));
        }
        found.replace(None, Some(checksum));
    }
    if (found.records, found.sum) != (summary.records, summary.sum) {
        return Err(damaged(format!(
            "it holds {} records that are not the {} which were last written",
            found.records, summary.records
        )));
    }
    Ok(())
}

fn check_journal(rows: &[Row]) -> std::result::Result<Checksum, String> {
    let base_key = full_key::<JournalBases>(&Only);
    let base = match rows.iter().find(|(key, _)| *key == base_key) {
        Some((key, bytes)) => {
            Some(decode::<JournalBases>(key, bytes).map_err(|why| format!("the journal's base {why}"))?)
        }
        None => None,
    };
    let (mut next, mut head) = base.map_or((1, Checksum::default()), |base| (base.first, base.previous));
    let prefix = prefix::<Journal>();
    for (key, bytes) in rows.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let record = decode::<Journal>(key, bytes).map_err(|why| format!("journal entry {next} {why}"))?;
        if u64::from_bytes(&key[prefix.len()..]) != Some(next) || record.previous != head {
            return Err(format!("the journal's chain breaks at entry {next}"));
        }
        (_, head) = check(key, bytes).map_err(|why: Corrupt| format!("journal entry {next} {why}"))?;
        next += 1;
    }
    Ok(head)
}

fn too_new(dir: &Path, found: String, known: u32) -> StateError {
    StateError::TooNew { dir: dir.to_owned(), found, known }
}
