//! The append-only parts: events, the step journal, revisions and plans.

use jiff::{SignedDuration, Timestamp};
use setpoint_schema::id::CommitId;
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_state::{
    Batch, Disks, EVENT_TEXT_LIMIT, EventKind, JournalEntry, JournalEvent, NewEvent, Options, Outcome, PlanAction,
    PlanRecord, PlanRef, RevisionOutcome, RevisionRecord, Rows, SourceMarker, Store, Turn,
};

use crate::fixture::{app, disk, options};

fn event(message: &str) -> NewEvent {
    NewEvent::new(EventKind::Ready, "probe", message)
}

#[test]
fn event_ids_grow_across_restarts_and_a_clock_that_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::now();
    let mut last = None;
    for hours in [0, -5, -5, 1, -300, 2] {
        let store = Store::open_with(dir.path(), options()).unwrap();
        let at = now + SignedDuration::from_hours(hours);
        let appended = store.append_event_at(at, event("x")).unwrap();
        assert!(Some(appended.id) > last, "{hours}");
        assert_eq!(appended.at, at, "the time is told as it was");
        last = Some(appended.id);
    }
}

#[test]
fn the_times_of_events_follow_each_other_as_their_ids_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    // Whoever prepares an event first may record it last.
    let mut prepared = Batch::new();
    prepared.event(event("prepared"));
    let between = store.append_event(event("between")).unwrap();
    store.commit(prepared).unwrap();
    let several = |writer: usize| {
        for _ in 0..20 {
            let mut batch = Batch::new();
            batch.event(event(&writer.to_string())).event(event(&writer.to_string()));
            store.commit(batch).unwrap();
        }
    };
    std::thread::scope(|scope| (0..6).for_each(|writer| drop(scope.spawn(move || several(writer)))));
    let events = store.events_after(None, 1000).unwrap();
    assert_eq!(events[0], between);
    assert!(events.is_sorted_by(|a, b| a.id < b.id));
    assert!(events.is_sorted_by(|a, b| a.at <= b.at), "{events:#?}");
}

#[test]
fn event_ids_grow_even_when_retention_has_removed_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { event_age: Span::secs(60), ..options() };
    let now = Timestamp::now();
    let store = Store::open_with(dir.path(), options.clone()).unwrap();
    store.append_event_at(now - SignedDuration::from_hours(2), event("old")).unwrap();
    let newest = store.append_event_at(now, event("new")).unwrap();
    assert_eq!(store.latest_events(10).unwrap(), std::slice::from_ref(&newest), "age trims as it goes");
    drop(store);
    let store = Store::open_with(dir.path(), options).unwrap();
    assert!(store.append_event_at(now - SignedDuration::from_hours(9), event("back")).unwrap().id > newest.id);
}

#[test]
fn events_page_forward_from_a_cursor_and_back_from_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), Options { events: 6, ..options() }).unwrap();
    let all: Vec<_> = (0..9).map(|i| store.append_event(event(&i.to_string())).unwrap()).collect();
    let kept = &all[3..];
    assert_eq!(store.events_after(None, 100).unwrap(), kept, "the cap keeps the newest");
    assert_eq!(store.events_after(Some(&kept[1].id), 2).unwrap(), kept[2..4]);
    assert_eq!(store.events_after(Some(&all[0].id), 2).unwrap(), kept[..2], "a trimmed cursor starts at the oldest");
    assert_eq!(store.events_after(Some(&kept[5].id), 2).unwrap(), []);
    assert_eq!(store.latest_events(2).unwrap(), kept[4..]);
    let back = store.events_before(Some(&kept[4].id), 2).unwrap();
    assert_eq!(back, [kept[3].clone(), kept[2].clone()]);
}

#[test]
fn what_a_guest_says_is_cut_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let stored = store.append_event(event(&"🦀".repeat(1 << 20))).unwrap();
    assert!(stored.message.len() <= EVENT_TEXT_LIMIT);
    assert_eq!(store.latest_events(1).unwrap(), [stored]);
}

#[test]
fn steps_begun_and_not_ended_are_found_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let plan = PlanRef("p".to_owned());
    let store = Store::open_with(dir.path(), options()).unwrap();
    let first = store.journal_begin(&app("blog"), &plan, 0, "ensureDisk").unwrap();
    let second = store.journal_begin(&app("blog"), &plan, 1, "launch").unwrap();
    store.journal_end(first, Outcome::Done).unwrap();
    drop(store);
    let store = Store::open_with(dir.path(), options()).unwrap();
    assert_eq!(store.unfinished().unwrap(), std::slice::from_ref(&second));
    store.journal_end(second.clone(), Outcome::Interrupted).unwrap();
    assert_eq!(store.unfinished().unwrap(), []);
    let last = store.journal(1).unwrap().pop().unwrap().1.event;
    assert_eq!(last, JournalEvent::Ended { begun: second.seq, outcome: Outcome::Interrupted });
}

#[test]
fn a_trimmed_journal_still_verifies_and_still_knows_what_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { journal: 7, ..options() };
    let plan = PlanRef("p".to_owned());
    let store = Store::open_with(dir.path(), options.clone()).unwrap();
    let open = store.journal_begin(&app("blog"), &plan, 0, "long").unwrap();
    for i in 0..20 {
        let entry = store.journal_begin(&app("blog"), &plan, i, "short").unwrap();
        store.journal_end(entry, Outcome::Failed("why".to_owned())).unwrap();
    }
    for _ in 0..2 {
        assert_eq!(store.journal(100).unwrap().len(), 7);
    }
    drop(store);
    let store = Store::open_with(dir.path(), options).unwrap();
    assert_eq!(store.unfinished().unwrap(), [open]);
    assert_eq!(
        store.journal(100).unwrap().iter().map(|(seq, _)| *seq).collect::<Vec<_>>(),
        [35, 36, 37, 38, 39, 40, 41]
    );
}

#[test]
fn a_revision_is_updated_in_place_and_last_applied_outlives_failures() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), Options { revisions: 3, ..options() }).unwrap();
    let good = revision("good", 0);
    store.record_revision(&good).unwrap();
    let good = RevisionRecord { applied_at: Some(good.attempted_at), outcome: RevisionOutcome::Applied, ..good };
    store.record_revision(&good).unwrap();
    assert_eq!(store.revisions(None, 10).unwrap(), [(1, good)]);
    for i in 1..=5 {
        let failed = RevisionRecord { outcome: RevisionOutcome::Failed("no".to_owned()), ..revision("bad", i) };
        store.record_revision(&failed).unwrap();
    }
    let numbers: Vec<u64> = store.revisions(None, 10).unwrap().into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, [6, 5, 4], "newest first, capped");
    assert_eq!(store.revisions(Some(5), 10).unwrap().len(), 1);
    let meta = store.meta().unwrap();
    assert_eq!(meta.last_attempted, Some(commit("bad")));
    assert_eq!(meta.last_applied, Some(commit("good")));
}

#[test]
fn the_source_marker_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let marker = SourceMarker {
        url: "file:///apps".to_owned(),
        branch: "main".to_owned(),
        commit: commit("tip"),
        at: Timestamp::now(),
    };
    let store = Store::open_with(dir.path(), options()).unwrap();
    store.update_meta(|meta| meta.source = Some(marker.clone())).unwrap();
    drop(store);
    let store = Store::open_with(dir.path(), options()).unwrap();
    assert_eq!(store.meta().unwrap().source, Some(marker));
}

#[test]
fn plans_are_capped_with_their_files_and_a_changed_file_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), Options { plans: 3, ..options() }).unwrap();
    let body = vec![b'x'; 300_000];
    for i in 1..=5 {
        assert_eq!(store.save_plan(&plan(&i.to_string()), &body).unwrap(), i);
    }
    let files = || std::fs::read_dir(dir.path().join("plans")).unwrap().count();
    assert_eq!(store.plans(None, 10).unwrap().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [5, 4, 3]);
    assert_eq!(files(), 3);
    assert_eq!(store.plan_body(5).unwrap(), Some(body));
    assert_eq!(store.plan_body(1).unwrap(), None);
    std::fs::write(dir.path().join("plans/5.json"), "other").unwrap();
    assert!(store.plan_body(5).is_err());
    drop(store);
    std::fs::write(dir.path().join("plans/99.json"), "left by a crash").unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    assert_eq!((store.plans(None, 10).unwrap().len(), files()), (3, 3), "what no record names is swept");
}

#[test]
fn the_full_texts_of_plans_take_up_so_much_and_the_newest_is_always_there() {
    let dir = tempfile::tempdir().unwrap();
    let cramped = || Options { plan_bytes: ByteSize::bytes(100 << 10), ..options() };
    let store = Store::open_with(dir.path(), cramped()).unwrap();
    let save = |store: &Store, name: &str, kib: usize| store.save_plan(&plan(name), &vec![b'x'; kib << 10]).unwrap();
    let kept = |store: &Store, last: u64| {
        (1..=last).filter(|number| store.plan_body(*number).unwrap().is_some()).collect::<Vec<_>>()
    };
    for kib in [40, 40, 40] {
        save(&store, "small", kib);
    }
    assert_eq!(kept(&store, 3), [2, 3]);
    drop(store);
    let store = Store::open_with(dir.path(), cramped()).unwrap();
    save(&store, "large", 500);
    assert_eq!(kept(&store, 4), [4]);
    save(&store, "small", 10);
    assert_eq!(kept(&store, 5), [5]);
    assert_eq!(store.plans(None, 10).unwrap().len(), 5, "what was done is remembered longer than its text");
    assert_eq!(std::fs::read_dir(dir.path().join("plans")).unwrap().count(), 1);
    drop(store);
    assert_eq!(Store::open_with(dir.path(), cramped()).unwrap().plans(None, 10).unwrap().len(), 5);
}

#[test]
fn a_plan_with_ten_thousand_actions_fits_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let longest = app(&format!("{0}/{0}", "a".repeat(40)));
    let action = PlanAction { app: longest, action: "update (process)".to_owned() };
    let plan = PlanRecord { actions: vec![action; 10_000], total_actions: 10_000, ..plan("large") };
    store.save_plan(&plan, b"{}").unwrap();
    let kept = store.plans(None, 1).unwrap().pop().unwrap().1;
    assert_eq!((kept.actions.len(), kept.total_actions), (PlanRecord::ACTIONS, 10_000));
}

fn commit(name: &str) -> CommitId {
    CommitId(name.into())
}

fn revision(name: &str, second: i64) -> RevisionRecord {
    RevisionRecord {
        commit: commit(name),
        attempted_at: Timestamp::from_second(second).unwrap(),
        applied_at: None,
        outcome: RevisionOutcome::Applying,
        duration_ms: 0,
        summary: String::new(),
        done: std::collections::BTreeMap::new(),
    }
}

fn plan(id: &str) -> PlanRecord {
    PlanRecord {
        id: PlanRef(id.to_owned()),
        parent: None,
        revision: commit("tip"),
        made_at: Timestamp::now(),
        actions: Vec::new(),
        total_actions: 0,
    }
}

/// Writes a turn of a plan's action for `blog`, and waits for it.
fn turn(store: &Store, turn: Turn) -> Option<JournalEntry> {
    let (then, answer) = std::sync::mpsc::channel();
    store.journal_turn_then(&app("blog"), &PlanRef("p".to_owned()), turn, move |entry| then.send(entry).unwrap());
    answer.recv().unwrap().unwrap()
}

#[test]
fn a_step_that_is_done_and_the_next_one_are_one_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let first = store.journal_begin(&app("blog"), &PlanRef("p".to_owned()), 0, "record").unwrap();
    let commits = store.stats().unwrap().generation;
    let next = Some((1, "launch"));
    let second = turn(&store, Turn { done: Some(first.clone()), next, ..Turn::default() }).unwrap();
    assert_eq!((second.step.as_str(), second.step_index, &second.app), ("launch", 1, &first.app));
    assert_eq!(store.stats().unwrap().generation, commits + 1);
    assert_eq!(store.unfinished().unwrap(), std::slice::from_ref(&second));
    let told: Vec<_> = store.journal(2).unwrap().into_iter().map(|(_, record)| record.event).collect();
    let ended = JournalEvent::Ended { begun: first.seq, outcome: Outcome::Done };
    assert_eq!(told, [ended, JournalEvent::Begun(second)]);
}

#[test]
fn a_step_that_is_nothing_but_a_row_is_one_write_with_it_and_with_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let commits = store.stats().unwrap().generation;
    let mut rows = Rows::default();
    let disk = disk("data", 1);
    rows.put::<Disks>(&disk.id, &disk).unwrap();
    let with_it = vec![(0, "record"), (1, "ensure-template")];
    let launch = turn(&store, Turn { with_it, next: Some((2, "launch")), rows, done: None }).unwrap();
    assert_eq!(store.stats().unwrap().generation, commits + 1);
    assert_eq!(store.unfinished().unwrap(), std::slice::from_ref(&launch));
    assert_eq!(store.get::<Disks>(&disk.id).unwrap(), Some(disk));
    let steps = |event| match event {
        JournalEvent::Begun(entry) => entry.step,
        JournalEvent::Ended { begun, outcome } => format!("{begun} {outcome:?}"),
    };
    let told: Vec<_> = store.journal(9).unwrap().into_iter().map(|(_, record)| steps(record.event)).collect();
    assert_eq!(told, ["record", "1 Done", "ensure-template", "3 Done", "launch"]);
    let last = Turn { done: Some(launch), with_it: vec![(3, "record-applied")], ..Turn::default() };
    assert_eq!(turn(&store, last), None);
    assert_eq!(store.unfinished().unwrap(), []);
}

#[test]
fn a_revision_and_the_events_that_tell_of_it_are_one_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let commits = store.stats().unwrap().generation;
    let event = NewEvent::new(EventKind::RevisionAttempted, "NewRevision", "one app");
    store.record_revision_with(&revision("one", 0), vec![event]).unwrap();
    assert_eq!(store.stats().unwrap().generation, commits + 1);
    assert_eq!(store.events_after(None, 9).unwrap().len(), 1);
    assert_eq!(store.revisions(None, 9).unwrap().len(), 1);
}
