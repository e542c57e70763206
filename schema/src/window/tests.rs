//! When windows are open, also across midnight and changes of clocks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;
use crate::diagnostic::{Lines, SourceText};
use crate::name::RepoPath;

fn decode(text: &str) -> (Option<Windows>, Vec<String>) {
    let path = RepoPath::new("app.yaml").unwrap();
    let lines = Lines::new(SourceText { path: &path, text });
    let mut cx = Decoder::new(&lines);
    let windows = Windows::decode(&crate::yaml::read(text)[0].root, &mut cx);
    (windows, cx.finish().iter().map(ToString::to_string).collect())
}

fn windows(text: &str) -> Windows {
    let (windows, mistakes) = decode(text);
    assert_eq!(mistakes, Vec::<String>::new());
    windows.unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn is_open(windows: &Windows, now: &str) -> bool {
    windows.at(time(now)) == Opening::Open
}

fn opens(windows: &Windows, now: &str) -> String {
    match windows.at(time(now)) {
        Opening::Open => "open".to_owned(),
        Opening::Closed { until: None } => "never".to_owned(),
        Opening::Closed { until: Some(until) } => until.to_string(),
    }
}

#[test]
fn without_a_window_everything_is_allowed_always() {
    assert!(is_open(&Windows::default(), "2026-11-22T05:00:00Z"));
}

#[test]
fn a_window_is_open_from_its_beginning_until_just_before_its_end() {
    let night = windows("[{kind: allow, from: 02:00, to: 04:30}]");
    assert_eq!(opens(&night, "2026-11-22T01:59:59Z"), "2026-11-22T02:00:00Z");
    assert!(is_open(&night, "2026-11-22T02:00:00Z"));
    assert!(is_open(&night, "2026-11-22T04:29:59.999Z"));
    assert_eq!(opens(&night, "2026-11-22T04:30:00Z"), "2026-11-23T02:00:00Z");
}

#[test]
fn a_window_across_midnight_belongs_to_the_day_on_which_it_begins() {
    // The 21st of November 2026 is a Saturday.
    let weekend = windows("[{kind: allow, days: [sat], from: 22:00, to: 06:00}]");
    assert_eq!(opens(&weekend, "2026-11-21T05:00:00Z"), "2026-11-21T22:00:00Z");
    assert!(is_open(&weekend, "2026-11-22T05:59:00Z"), "the night from Saturday to Sunday");
    assert_eq!(opens(&weekend, "2026-11-22T22:30:00Z"), "2026-11-28T22:00:00Z");
}

#[test]
fn an_end_that_is_the_beginning_means_the_whole_day() {
    let sunday = windows("[{kind: allow, days: [sun]}]");
    assert!(is_open(&sunday, "2026-11-22T00:00:00Z") && is_open(&sunday, "2026-11-22T23:59:59Z"));
    assert_eq!(opens(&sunday, "2026-11-23T00:00:00Z"), "2026-11-29T00:00:00Z");
}

#[test]
fn what_denies_wins_over_what_allows() {
    let both = windows("[{kind: allow, from: 00:00, to: 08:00}, {kind: deny, from: 02:00, to: 03:00}]");
    assert!(is_open(&both, "2026-11-22T01:00:00Z"));
    assert_eq!(opens(&both, "2026-11-22T02:30:00Z"), "2026-11-22T03:00:00Z");
    let only_deny = windows("[{kind: deny, days: [fri], from: 12:00, to: 00:00}]");
    assert!(is_open(&only_deny, "2026-11-22T12:00:00Z"), "nothing but what is denied is closed");
    assert_eq!(opens(&only_deny, "2026-11-27T15:00:00Z"), "2026-11-28T00:00:00Z");
}

#[test]
fn windows_that_exclude_each_other_never_open_and_say_so() {
    let never = windows("[{kind: allow, from: 02:00, to: 03:00}, {kind: deny}]");
    assert_eq!(opens(&never, "2026-11-22T02:30:00Z"), "never");
}

#[test]
fn the_clocks_of_the_time_zone_count() {
    let berlin = windows("[{kind: allow, from: 02:00, to: 04:00, timezone: europe/berlin}]");
    assert_eq!(berlin.0[0].timezone, "Europe/Berlin".parse().unwrap(), "whatever the case");
    assert_eq!(opens(&berlin, "2026-07-01T12:00:00Z"), "2026-07-02T00:00:00Z", "summer time");
    assert_eq!(opens(&berlin, "2026-12-01T12:00:00Z"), "2026-12-02T01:00:00Z", "winter time");
}

#[test]
fn a_time_that_is_skipped_is_no_opening() {
    // In Berlin, 02:00 became 03:00 on the 29th of March 2026, at 01:00 UTC.
    let within = windows("[{kind: allow, from: 02:10, to: 02:50, timezone: Europe/Berlin}]");
    assert_eq!(opens(&within, "2026-03-29T00:30:00Z"), "2026-03-30T00:10:00Z");
    let into = windows("[{kind: allow, from: 02:30, to: 03:30, timezone: Europe/Berlin}]");
    assert_eq!(opens(&into, "2026-03-29T00:30:00Z"), "2026-03-29T01:00:00Z", "what is left of it opens at the change");
}

#[test]
fn a_time_that_comes_twice_opens_twice() {
    // In Berlin, 03:00 became 02:00 on the 25th of October 2026, at 01:00 UTC.
    let window = windows("[{kind: allow, from: 02:15, to: 02:45, timezone: Europe/Berlin}]");
    assert!(is_open(&window, "2026-10-25T00:20:00Z"), "02:20 for the first time");
    assert_eq!(opens(&window, "2026-10-25T00:50:00Z"), "2026-10-25T01:15:00Z", "02:15 for the second time");
    assert!(is_open(&window, "2026-10-25T01:20:00Z"), "02:20 for the second time");
}

#[test]
fn every_mistake_in_a_window_is_reported() {
    let (_, mistakes) = decode("[{days: [mon, mon, monday], from: 24:00, to: 7, timezone: Europe/Bern, kinds: allow}]");
    assert_eq!(mistakes.len(), 7, "{mistakes:#?}");
    for words in
        ["`kind` is missing", "unknown field", "a second time", "`monday`", "`24:00`", "the number 7", "`Europe/Bern`"]
    {
        assert!(mistakes.iter().any(|mistake| mistake.contains(words)), "{words}: {mistakes:#?}");
    }
}

#[test]
fn windows_are_kept_as_they_were_declared() {
    let declared =
        windows("[{kind: deny, days: [sun, mon], from: 22:05, to: 06:00, timezone: America/New_York}, {kind: allow}]");
    let text = serde_json::to_string(&declared).unwrap();
    assert!(text.contains(r#""from":"22:05","to":"06:00""#), "{text}");
    assert_eq!(serde_json::from_str::<Windows>(&text).unwrap(), declared);
}

fn window() -> impl Strategy<Value = Window> {
    let zones =
        prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]);
    let days = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];
    let days = prop::collection::btree_set(prop::sample::select(days.to_vec()), 0..4);
    let time = (0..24_i8, 0..4_i8).prop_map(|(hour, quarter)| TimeOfDay { hour, minute: quarter * 15 });
    (prop::bool::ANY, days, time.clone(), time, zones).prop_map(|(allows, days, from, to, zone)| Window {
        kind: if allows { WindowKind::Allow } else { WindowKind::Deny },
        days,
        from,
        to,
        timezone: zone.parse().unwrap(),
    })
}

proptest! {
    /// Both are what somebody finds who looks at the clock every quarter of an hour, when all these windows begin and end.
    #[test]
    fn the_next_opening_and_closing_are_the_first_moments_that_are_so(
        windows in prop::collection::vec(window(), 0..4).prop_map(Windows),
        // Around changes of clocks as well as far from them.
        quarters in 0..(366 * 96_i64),
    ) {
        let now = time("2026-01-01T00:00:00Z").checked_add(SignedDuration::from_mins(15 * quarters)).unwrap();
        let later = |steps: i64| now.checked_add(SignedDuration::from_mins(15 * steps)).unwrap();
        let first = (1..=FORESEEABLE_DAYS * 96).map(later).find(|at| windows.is_open(*at));
        match windows.at(now) {
            Opening::Open => {
                let end = (1..=FORESEEABLE_DAYS * 96).map(later).find(|at| !windows.is_open(*at));
                prop_assert_eq!(windows.closes(now), end);
            }
            Opening::Closed { until } => prop_assert_eq!(until, first),
        }
    }
}

/// Whether changes may be carried out, as somebody finds out who lays each window onto the calendar.
fn may_by_the_calendar(windows: &Windows, at: Timestamp) -> bool {
    let is_within = |window: &Window| {
        let shown = jiff::tz::TimeZoneDatabase::bundled().get(&window.timezone.0).unwrap().to_datetime(at);
        let laid_onto = |day: Date| {
            const WEEK: [Day; 7] = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];
            let weekday = WEEK[usize::try_from(day.weekday().to_monday_zero_offset()).unwrap()];
            let last = if window.to > window.from { day } else { day.tomorrow().unwrap() };
            let (from, to) = (window.from, window.to);
            let span = day.at(from.hour, from.minute, 0, 0)..last.at(to.hour, to.minute, 0, 0);
            (window.days.is_empty() || window.days.contains(&weekday)) && span.contains(&shown)
        };
        laid_onto(shown.date()) || laid_onto(shown.date().yesterday().unwrap())
    };
    let (allow, deny): (Vec<_>, Vec<_>) = windows.0.iter().partition(|window| window.kind == WindowKind::Allow);
    (allow.is_empty() || allow.into_iter().any(is_within)) && !deny.into_iter().any(is_within)
}

const ZONES: [&str; 8] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    // Where clocks change by half an hour, by two hours, and for one month of the year.
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Africa/Casablanca",
    "Asia/Kathmandu",
];

/// To the minute, and mostly at night, when clocks are changed.
fn window_to_the_minute() -> impl Strategy<Value = Window> {
    let time = || {
        let hour = prop_oneof![3 => 0..4_i8, 1 => 0..24_i8];
        (hour, 0..60_i8).prop_map(|(hour, minute)| TimeOfDay { hour, minute })
    };
    let zone = prop::sample::select(ZONES.to_vec());
    (window(), time(), time(), zone).prop_map(|(window, from, to, zone)| Window {
        from,
        to,
        timezone: zone.parse().unwrap(),
        ..window
    })
}

/// Any second of a year, or one around a change of clocks.
fn moment() -> impl Strategy<Value = Timestamp> {
    let year = time("2026-01-01T00:00:00Z");
    let anywhere = (0..365 * 86_400_i64).prop_map(move |seconds| year + SignedDuration::from_secs(seconds));
    let around = (prop::sample::select(ZONES.to_vec()), 0..4_usize, -200_000..200_000_i64);
    let around = around.prop_map(move |(zone, change, seconds)| {
        let zone: ZoneName = zone.parse().unwrap();
        let change = zone.zone().following(year).nth(change).map_or(year, |change| change.timestamp());
        change + SignedDuration::from_secs(seconds)
    });
    prop_oneof![1 => anywhere, 2 => around]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Nothing of what is tested is asked: neither whether a window is open, nor when anything may change.
    #[test]
    fn windows_are_what_a_look_at_the_calendar_finds_every_minute(
        windows in prop::collection::vec(window_to_the_minute(), 0..4).prop_map(Windows),
        now in moment(),
    ) {
        let minute = now.as_second().div_euclid(60) * 60;
        let minutes = (1..=FORESEEABLE_DAYS * 1440).map(|later| Timestamp::from_second(minute + 60 * later).unwrap());
        let is_open = may_by_the_calendar(&windows, now);
        let turn = { minutes }.find(|at| may_by_the_calendar(&windows, *at) != is_open);
        match windows.at(now) {
            Opening::Open => {
                prop_assert!(is_open);
                prop_assert_eq!(windows.closes(now), turn);
            }
            Opening::Closed { until } => {
                prop_assert!(!is_open);
                prop_assert_eq!(until, turn);
            }
        }
    }
}
