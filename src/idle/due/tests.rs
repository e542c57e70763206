//! When apps are due, and how seldom their uses are written down.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use setpoint_schema::power::IdleAction;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn app() -> AppKey {
    "blog".parse().unwrap()
}

fn spec(seconds: u64) -> IdleSpec {
    IdleSpec { after: Span::secs(seconds), action: IdleAction::Pause, cpu_below: None }
}

/// An app that runs since 0 and rests after 100 s.
fn situation() -> Situation {
    let rule = Rule::new(&spec(100), &[]);
    let sandbox = SandboxId("blog-1".into());
    Situation { sandbox, rule, since: at(0), used: None, keepalive: None, work: Work::Rests }
}

fn book() -> Book {
    let mut book = Book::default();
    book.note(&app(), Some(situation()), at(0));
    book
}

fn due(book: &mut Book, now: i64) -> Vec<i64> {
    let since = |due: Due| match due.what {
        What::Rest { since, .. } => Some(since.as_second()),
        What::Measure => None,
    };
    book.take_due(at(now), |_| false).into_iter().filter_map(since).collect()
}

#[test]
fn an_app_that_nobody_ever_used_is_due_by_its_start() {
    let mut book = book();
    assert_eq!(book.next_look(), Some(at(100)));
    assert!(due(&mut book, 99).is_empty());
    assert_eq!(due(&mut book, 100), [0]);
    assert!(due(&mut book, 101).is_empty(), "it is asked for once");
    assert_eq!(due(&mut book, 110), [0], "and again if nothing comes of it");
}

#[test]
fn a_use_puts_the_rest_off_without_a_new_timer() {
    let mut book = book();
    book.touch(&app(), at(60));
    assert_eq!(book.next_look(), Some(at(100)));
    assert!(due(&mut book, 100).is_empty());
    assert_eq!(book.next_look(), Some(at(160)));
    assert_eq!(due(&mut book, 160), [60]);
}

#[test]
fn a_use_after_its_rest_was_asked_for_counts_whether_or_not_that_shows_by_then() {
    for used in [103, 105] {
        let mut book = book();
        assert_eq!(due(&mut book, 102), [0]);
        for now in [103, 104, 105] {
            match now {
                104 => drop(book.note(&app(), None, at(now))),
                now if now == used => drop(book.touch(&app(), at(now))),
                _ => {}
            }
        }
        assert!(book.was_used_since_asked(&app()), "at {used}");
        assert!(!book.was_used_since_asked(&app()), "it is told once");
    }
    let mut book = book();
    assert_eq!(due(&mut book, 102), [0]);
    book.note(&app(), None, at(104));
    assert!(!book.was_used_since_asked(&app()));
}

#[test]
fn what_is_open_when_it_is_due_is_use_until_then() {
    let mut book = book();
    assert!(book.take_due(at(100), |_| true).is_empty());
    assert_eq!(book.next_look(), Some(at(200)));
}

#[test]
fn work_is_use_and_its_end_begins_the_wait() {
    let mut book = book();
    book.note(&app(), Some(Situation { work: Work::Goes, ..situation() }), at(50));
    assert!(due(&mut book, 150).is_empty());
    book.note(&app(), Some(situation()), at(170));
    assert_eq!(book.next_look(), Some(at(270)));
}

#[test]
fn the_wait_goes_on_over_a_restart_from_what_was_written_down() {
    let mut book = Book::default();
    book.note(&app(), Some(Situation { used: Some(at(40)), ..situation() }), at(90));
    assert_eq!(book.next_look(), Some(at(140)));
}

#[test]
fn a_keepalive_counts_where_it_ends_later() {
    let mut book = Book::default();
    book.note(&app(), Some(Situation { keepalive: Some(at(300)), ..situation() }), at(0));
    assert_eq!(book.next_look(), Some(at(300)));
    book.note(&app(), Some(Situation { keepalive: Some(at(50)), ..situation() }), at(0));
    assert_eq!(book.next_look(), Some(at(100)));
}

#[test]
fn processor_time_is_measured_over_the_second_half_of_the_wait() {
    let mut book = Book::default();
    let spec = IdleSpec { cpu_below: Some("5%".parse().unwrap()), ..spec(100) };
    let situation = Situation { rule: Rule::new(&spec, &[]), ..situation() };
    book.note(&app(), Some(situation), at(0));
    assert_eq!(book.next_look(), Some(at(50)));
    let what =
        |book: &mut Book, now| book.take_due(at(now), |_| false).into_iter().map(|due| due.what).collect::<Vec<_>>();
    assert_eq!(what(&mut book, 50), [What::Measure]);
    let measured = Measured { at: at(50), taken: Some(Duration::from_secs(7)) };
    book.measured(&app(), measured);
    assert_eq!(book.next_look(), Some(at(100)));
    assert_eq!(what(&mut book, 100), [What::Rest { since: at(0), measured: Some(measured) }]);
    book.touch(&app(), at(100));
    assert_eq!(what(&mut book, 150), [What::Measure], "what was measured before a use does not count");
}

#[test]
fn uses_are_written_down_once_in_a_tenth_of_the_wait() {
    let mut book = book();
    assert!(book.touch(&app(), at(1)));
    assert_eq!(book.take_unwritten(), [(app(), at(1))]);
    assert!(!(2..11).any(|second| book.touch(&app(), at(second))));
    assert!(book.touch(&app(), at(11)) && !book.touch(&app(), at(12)));
    assert_eq!(book.take_unwritten(), [(app(), at(12))], "as of the newest use");
    assert!(book.take_unwritten().is_empty());
    book.touch(&app(), at(15));
    assert_eq!(book.take_all_unwritten(|_| false, at(16)), [(app(), at(15))], "an end leaves nothing out");
}

#[test]
fn an_app_that_does_not_rest_by_itself_leaves_nothing_behind() {
    let mut book = book();
    book.touch(&app(), at(20));
    book.note(&app(), None, at(21));
    assert!(book.watched.is_empty() && book.looks.is_empty() && book.unwritten.is_empty());
    assert!(!book.touch(&app(), at(22)));
    assert!(book.watched.is_empty());
}

#[test]
fn each_wake_too_many_doubles_the_wait() {
    let wakes = |count: i64| (0..count).map(|n| at(n * 60)).collect::<Vec<_>>();
    let minutes = |count| patience(Span::secs(60), &wakes(count)).as_secs() / 60;
    assert_eq!([0, 6, 7, 8, 10].map(minutes), [1, 1, 2, 4, 16]);
    assert!(!wakes_often(&wakes(6)) && wakes_often(&wakes(7)));
    let seldom: Vec<_> = (0..20).map(|n| at(n * 1200)).collect();
    assert!(!wakes_often(&seldom), "three an hour are no loop");
    assert_eq!(patience(Span::secs(60), &vec![at(0); 1000]), LONGEST);
    assert_eq!(patience(Span::secs(2 * 86_400), &vec![at(0); 1000]).as_hours(), 48, "as declared at least");
}

#[test]
fn old_wakes_are_forgotten() {
    let mut wakes: Vec<_> = (0..100).map(|n| at(n * 120)).collect();
    remembered(&mut wakes, at(99 * 120));
    assert_eq!((wakes.len(), wakes.last()), (2 * LOOP_WAKES, Some(&at(99 * 120))));
    remembered(&mut wakes, at(99 * 120 + 3601));
    assert!(wakes.is_empty());
}
