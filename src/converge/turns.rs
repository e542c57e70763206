//! Whose turn it is: which of the actions that could begin begins next.
//!
//! Beside those that have a place (see [`super::places`]) as many again may be on their way, being prepared for one or finished
//! after it. Only creations begin ahead of their place: what disturbs something that runs has its place from the beginning, so that
//! it does not wait in the midst, and maybe beyond a window that it was to keep.
//!
//! First tries come before retries, so that what works is not kept waiting by what fails again and again; and retries never take
//! all places, because a boot that never answers holds its place for minutes. Among equals the team begins that has the fewest
//! actions on their way, and within a team the plan's order counts.

use std::collections::{BTreeMap, VecDeque};

use setpoint_plan::model::{Action, ActionKind};
use setpoint_schema::name::{AppKey, Team};

/// Whether an app's last action failed, or had to be done over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Try {
    /// It did not.
    First,
    /// It did.
    Again,
}

/// The actions on their way, as far as fairness goes.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// How many each team has.
    pub teams: BTreeMap<Team, usize>,
    /// How many are retries.
    pub retries: usize,
}

impl Load {
    fn all(&self) -> usize {
        self.teams.values().sum()
    }
}

/// Where in a plan what can begin stands.
#[derive(Debug, Default)]
pub(super) struct Turns {
    first: BTreeMap<Team, VecDeque<Turn>>,
    again: BTreeMap<Team, VecDeque<Turn>>,
}

/// One that can begin: where it stands in the plan, and when it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    index: usize,
    begins: Begins,
}

/// When an action may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Begins {
    /// Before there is a place for it.
    Ahead,
    /// As soon as there is one.
    InPlace,
}

impl Begins {
    pub fn of(kind: ActionKind) -> Self {
        match kind {
            ActionKind::Create => Self::Ahead,
            ActionKind::Adopt
            | ActionKind::Update(_)
            | ActionKind::Reboot
            | ActionKind::Replace
            | ActionKind::Stop
            | ActionKind::Pause
            | ActionKind::Resume
            | ActionKind::Delete
            | ActionKind::ExpireDisk
            | ActionKind::Snapshot
            | ActionKind::ExpireSnapshot => Self::InPlace,
        }
    }
}

impl Turns {
    /// Queues up these actions, given by their places in the plan, in its order.
    pub fn of<'a>(ready: impl Iterator<Item = (usize, &'a Action)>, tries: impl Fn(&AppKey) -> Try) -> Self {
        let mut turns = Self::default();
        for (index, action) in ready {
            let turn = Turn { index, begins: Begins::of(action.kind) };
            let queues = match tries(&action.app) {
                Try::First => &mut turns.first,
                Try::Again => &mut turns.again,
            };
            match queues.get_mut(&action.app.team) {
                Some(queue) => queue.push_back(turn),
                None => drop(queues.insert(action.app.team.clone(), VecDeque::from([turn]))),
            }
        }
        turns
    }

    /// Where in the plan the action stands that begins next beside those on their way, where there are so many `places`; none if
    /// all have begun, or have to wait for one to end.
    pub fn next(&mut self, load: &Load, places: usize) -> Option<(usize, Try)> {
        if load.all() < places {
            if let Some(index) = take(&mut self.first, load, Begins::InPlace) {
                return Some((index, Try::First));
            }
            // Nobody queues for a place to try again: what is new would have to wait behind it.
            let may_retry = load.retries < places_for_retries(places);
            let again = if may_retry { take(&mut self.again, load, Begins::InPlace) } else { None };
            return again.map(|index| (index, Try::Again));
        }
        if load.all() >= places.saturating_add(ahead(places)) {
            return None;
        }
        take(&mut self.first, load, Begins::Ahead).map(|index| (index, Try::First))
    }
}

/// So many may be on their way beside those that have a place: as many again, and none beside a single one, which is for those who
/// want one thing done after the other.
fn ahead(places: usize) -> usize {
    if places == 1 { 0 } else { places }
}

/// A quarter of the places, and one at least, is kept for first tries. A single place is for both.
fn places_for_retries(places: usize) -> usize {
    places.saturating_sub((places / 4).max(1)).max(1)
}

/// Takes from the team with the fewest actions on their way, and of several such from the one whose action comes first; nothing, if
/// that one may not begin so early.
fn take(queues: &mut BTreeMap<Team, VecDeque<Turn>>, load: &Load, latest: Begins) -> Option<usize> {
    let claim = |(team, queue): &(&Team, &VecDeque<Turn>)| {
        let on_their_way = load.teams.get(*team).copied().unwrap_or_default();
        (on_their_way, queue.front().copied())
    };
    let team = queues.iter().min_by_key(claim).map(|(team, _)| team.clone())?;
    let queue = queues.get_mut(&team)?;
    queue.front().filter(|turn| turn.begins <= latest)?;
    let turn = queue.pop_front()?;
    if queue.is_empty() {
        queues.remove(&team);
    }
    Some(turn.index)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use setpoint_plan::model::{ActionKind, Reason};
    use setpoint_schema::id::SandboxId;

    use super::*;

    fn action(app: &str) -> Action {
        Action {
            app: app.parse().unwrap(),
            sandbox: SandboxId(format!("{app}-00000001").into()),
            kind: ActionKind::Create,
            reasons: vec![Reason::NotCreated],
            changes: Vec::new(),
            steps: Vec::new(),
            blocked: Vec::new(),
        }
    }

    fn update(app: &str) -> Action {
        Action { kind: ActionKind::Reboot, ..action(app) }
    }

    #[test]
    fn what_disturbs_something_does_not_begin_ahead_of_its_place() {
        let actions = [action("a"), action("b"), action("c"), update("d"), action("e")];
        let mut turns = Turns::of(actions.iter().enumerate(), |_| Try::First);
        let load = |all| Load { teams: BTreeMap::from([("other".parse().unwrap(), all)]), retries: 0 };
        let next = |turns: &mut Turns, all| turns.next(&load(all), 3).map(|(index, _)| index);
        assert_eq!([next(&mut turns, 1), next(&mut turns, 2), next(&mut turns, 3)], [Some(0), Some(1), Some(2)]);
        assert_eq!([next(&mut turns, 5), next(&mut turns, 3)], [None, None]);
        assert_eq!([next(&mut turns, 2), next(&mut turns, 4)], [Some(3), Some(4)]);
    }

    /// Begins what may begin beside this load on this many places, with nothing ending meanwhile; apps called `bad` have failed.
    fn begun(apps: &[&str], places: usize, mut load: Load) -> Vec<String> {
        let actions: Vec<_> = apps.iter().map(|app| action(app)).collect();
        let tries = |app: &AppKey| if app.name.as_str().starts_with("bad") { Try::Again } else { Try::First };
        let mut turns = Turns::of(actions.iter().enumerate(), tries);
        let mut begun = Vec::new();
        while let Some((place, attempt)) = turns.next(&load, places) {
            *load.teams.entry(actions[place].app.team.clone()).or_default() += 1;
            load.retries += usize::from(attempt == Try::Again);
            begun.push(apps[place].to_owned());
        }
        begun
    }

    #[test]
    fn first_tries_come_before_retries_and_then_in_the_plans_order() {
        assert_eq!(begun(&["bad-1", "b", "a"], 4, Load::default()), ["b", "a", "bad-1"]);
    }

    #[test]
    fn retries_leave_a_quarter_of_the_places_free() {
        let bad: Vec<_> = (0..50).map(|n| format!("bad-{n}")).collect();
        let bad: Vec<_> = bad.iter().map(String::as_str).collect();
        for (places, expected) in [(1, 1), (2, 1), (4, 3), (20, 15)] {
            assert_eq!(begun(&bad, places, Load::default()).len(), expected, "of {places}");
        }
    }

    #[test]
    fn twice_as_many_are_on_their_way_as_there_are_places() {
        let apps: Vec<_> = (0..50).map(|n| format!("a-{n}")).collect();
        let apps: Vec<_> = apps.iter().map(String::as_str).collect();
        for (places, expected) in [(1, 1), (4, 8), (20, 40)] {
            assert_eq!(begun(&apps, places, Load::default()).len(), expected);
        }
    }

    #[test]
    fn teams_take_turns_however_much_one_of_them_wants() {
        let apps = ["big/a", "big/b", "big/c", "big/d", "small/z", "tiny/z"];
        assert_eq!(begun(&apps, 2, Load::default()), ["big/a", "small/z", "tiny/z", "big/b"]);
        let load = Load { teams: BTreeMap::from([("big".parse().unwrap(), 3)]), retries: 0 };
        assert_eq!(begun(&apps, 2, load), ["small/z"], "what is on its way counts");
    }
}
