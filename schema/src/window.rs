//! Maintenance windows: when an app may be disturbed by changes that are not urgent.
//!
//! A window is open while the clocks of its time zone show a time in it. That rule alone says what happens when clocks change: a
//! time that is skipped is never shown, so a window within it does not open that day, and a time that is shown twice counts twice.
//! A window whose end is not after its beginning reaches into the next day, and belongs to the day on which it begins.
//!
//! The time zones are those that come with this program, so that the same declarations mean the same on every machine.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};

use crate::check;
use crate::decode::{Decode, Decoder, nearest};
use crate::name::NameError;
use crate::node::{Node, shorten};

/// All windows of an app: open while one that allows is open, or there is none that allows, and none that denies is open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Windows(pub Vec<Window>);

/// One window.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Whether it allows changes or denies them.
    pub kind: WindowKind,
    /// The days on which it begins; none means every day.
    #[serde(default)]
    pub days: BTreeSet<Day>,
    /// When it begins.
    #[serde(default)]
    pub from: TimeOfDay,
    /// When it ends, on the next day where that is not after `from`.
    #[serde(default)]
    pub to: TimeOfDay,
    /// Whose clocks count, as `Europe/Berlin`.
    #[serde(default)]
    pub timezone: ZoneName,
}

/// What a window means for changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WindowKind {
    /// They may be carried out while it is open.
    Allow,
    /// They may not while it is open, whatever else allows them.
    Deny,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "days need no explanation")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// A time of the day, to the minute, as `22:30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
pub struct TimeOfDay {
    hour: i8,
    minute: i8,
}

/// The name of a time zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ZoneName(String);

/// Whether changes may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// They may.
    Open,
    /// They may not before then; absent where no window opens in the foreseeable future.
    Closed {
        /// When they may again.
        until: Option<Timestamp>,
    },
}

/// How far ahead an opening is looked for. Windows repeat every week, and a change of clocks can swallow one of them.
const FORESEEABLE_DAYS: i64 = 15;

impl Windows {
    /// Whether changes may be carried out at `now`, and if not, from when on.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> Opening {
        if self.is_open(now) { Opening::Open } else { Opening::Closed { until: self.next_opening(now) } }
    }

    fn is_open(&self, now: Timestamp) -> bool {
        let denies = |window: &Window| window.kind == WindowKind::Deny;
        let denied = self.0.iter().any(|window| denies(window) && window.shows(now));
        let mut allowing = self.0.iter().filter(|window| !denies(window)).peekable();
        !denied && (allowing.peek().is_none() || allowing.any(|window| window.shows(now)))
    }

    /// When changes may be carried out no more, if they may at `now` and not for ever.
    #[must_use]
    pub fn closes(&self, now: Timestamp) -> Option<Timestamp> {
        self.is_open(now).then(|| self.turns(now).into_iter().find(|at| !self.is_open(*at)))?
    }

    fn next_opening(&self, now: Timestamp) -> Option<Timestamp> {
        self.turns(now).into_iter().find(|at| self.is_open(*at))
    }

    /// The times after `now` at which anything can change: windows begin or end, or clocks are changed.
    fn turns(&self, now: Timestamp) -> BTreeSet<Timestamp> {
        let horizon = now.checked_add(SignedDuration::from_hours(24 * FORESEEABLE_DAYS)).unwrap_or(Timestamp::MAX);
        self.0.iter().flat_map(|window| window.turns(now, horizon)).collect()
    }
}

impl Window {
    /// Whether the clocks show a time in it.
    fn shows(&self, now: Timestamp) -> bool {
        let shown = self.timezone.zone().to_datetime(now);
        let time = TimeOfDay { hour: shown.hour(), minute: shown.minute() };
        let today = || self.is_on(shown.date());
        let since_yesterday = || shown.date().yesterday().is_ok_and(|date| self.is_on(date));
        if self.from < self.to {
            self.from <= time && time < self.to && today()
        } else {
            (self.from <= time && today()) || (time < self.to && since_yesterday())
        }
    }

    fn is_on(&self, date: Date) -> bool {
        self.days.is_empty() || self.days.contains(&Day::of(date.weekday()))
    }

    /// The times after `now` at which it may begin or end.
    fn turns(&self, now: Timestamp, horizon: Timestamp) -> Vec<Timestamp> {
        let zone = self.timezone.zone();
        let today = zone.to_datetime(now).date();
        let days = (0..=FORESEEABLE_DAYS).filter_map(|day| today.checked_add(day.days()).ok());
        let shown = days.flat_map(|day| [self.from, self.to].map(|time| day.at(time.hour, time.minute, 0, 0)));
        let by_the_clock = shown.flat_map(|shown| moments(&zone, shown));
        let clock_changes = zone.following(now).map(|change| change.timestamp()).take_while(|at| *at <= horizon);
        by_the_clock.chain(clock_changes).filter(|at| *at > now).collect()
    }
}

/// When clocks show this time: twice where they are put back, and nearly where they are put forward.
fn moments(zone: &TimeZone, shown: DateTime) -> impl Iterator<Item = Timestamp> {
    let moment = zone.to_ambiguous_timestamp(shown);
    [moment.earlier(), moment.later()].into_iter().flatten()
}

impl Day {
    fn of(day: Weekday) -> Self {
        match day {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        }
    }
}

impl ZoneName {
    /// The time zone. The name was checked when it was read.
    fn zone(&self) -> TimeZone {
        zones().get(&self.0).unwrap_or(TimeZone::UTC)
    }
}

/// The time zones that come with this program: data that never changes while it runs.
fn zones() -> &'static TimeZoneDatabase {
    static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
    &ZONES
}

impl Default for ZoneName {
    fn default() -> Self {
        Self("UTC".to_owned())
    }
}

impl FromStr for TimeOfDay {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        const RULE: NameError = NameError { rule: "must be a time from `00:00` to `23:59`" };
        let (hour, minute) = text.split_once(':').ok_or(RULE)?;
        let number = |digits: &str, end: i8| {
            let plain = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit());
            digits.parse().ok().filter(|number| plain && *number < end).ok_or(RULE)
        };
        Ok(Self { hour: number(hour, 24)?, minute: number(minute, 60)? })
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

impl FromStr for ZoneName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        const RULE: NameError = NameError { rule: "must be the name of a time zone, such as `Europe/Berlin` or `UTC`" };
        let zone = zones().get(text).map_err(|_| RULE)?;
        // Names are found whatever their case; one spelling keeps plans free of changes that are none.
        Ok(Self(zone.iana_name().unwrap_or(text).to_owned()))
    }
}

/// Text in records and on the wire, by the same rules as in declarations.
macro_rules! as_text {
    ($($name:ident: $into:expr),* $(,)?) => {$(
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                $into(value)
            }
        }
    )*};
}
as_text! {
    TimeOfDay: |time: TimeOfDay| time.to_string(),
    ZoneName: |zone: ZoneName| zone.0,
}

impl Decode for Windows {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        Vec::decode(node, cx).map(Self)
    }
}

impl Window {
    /// The names of its fields, as declarations write them.
    pub const FIELDS: &'static [&'static str] = &["kind", "days", "from", "to", "timezone"];
}

impl Decode for Window {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.fields(node, "Window", Self::FIELDS);
        let kind = cx.required(node, "kind", check::anything);
        Some(Self {
            days: cx.optional(node, "days", check::days).unwrap_or_default(),
            from: cx.optional(node, "from", check::anything).unwrap_or_default(),
            to: cx.optional(node, "to", check::anything).unwrap_or_default(),
            timezone: cx.optional(node, "timezone", check::anything).unwrap_or_default(),
            kind: kind?,
        })
    }
}

impl Decode for WindowKind {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.choice(node, &[("allow", Self::Allow), ("deny", Self::Deny)])
    }
}

impl Decode for Day {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let days = [
            ("mon", Self::Mon),
            ("tue", Self::Tue),
            ("wed", Self::Wed),
            ("thu", Self::Thu),
            ("fri", Self::Fri),
            ("sat", Self::Sat),
            ("sun", Self::Sun),
        ];
        cx.choice(node, &days)
    }
}

impl Decode for TimeOfDay {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.parsed(node, "a time such as `22:30`")
    }
}

impl Decode for ZoneName {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let text = cx.text(node, "a time zone such as `Europe/Berlin`")?;
        let report = |rule: NameError| {
            let hint = zone_meant(text).map(|zone| format!("did you mean `{zone}`?"));
            cx.error(node.at, &format!("`{}` {rule}", shorten(text)), hint.as_deref());
        };
        text.parse().map_err(report).ok()
    }
}

/// The zone that somebody may have misspelt, or named by its city alone.
fn zone_meant(text: &str) -> Option<String> {
    let all: Vec<String> = zones().available().map(|zone| zone.to_string()).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let of_city = |zone: &&str| zone.rsplit('/').next().is_some_and(|city| city.eq_ignore_ascii_case(text));
    let city = all.iter().copied().find(of_city);
    city.or_else(|| nearest(text, &all)).map(str::to_owned)
}

#[cfg(test)]
mod tests;
