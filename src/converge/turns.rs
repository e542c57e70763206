//! Whose turn it is: which of the actions that could begin begins next.
//!
//! First tries come before retries, so that what works is not kept waiting by what fails again and again; and retries never take
//! all places, because a boot that never answers holds its place for minutes. Among equals the team begins that has the fewest
//! actions on their way, and within a team the plan's order counts.

use std::collections::{BTreeMap, VecDeque};

use setpoint_plan::model::Action;
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

/// The places in a plan of what can begin.
#[derive(Debug, Default)]
pub(super) struct Turns {
    first: BTreeMap<Team, VecDeque<usize>>,
    again: BTreeMap<Team, VecDeque<usize>>,
}

impl Turns {
    /// Queues up these actions, given by their places in the plan, in its order.
    pub fn of<'a>(ready: impl Iterator<Item = (usize, &'a Action)>, tries: impl Fn(&AppKey) -> Try) -> Self {
        let mut turns = Self::default();
        for (place, action) in ready {
            let queues = match tries(&action.app) {
                Try::First => &mut turns.first,
                Try::Again => &mut turns.again,
            };
            match queues.get_mut(&action.app.team) {
                Some(queue) => queue.push_back(place),
                None => drop(queues.insert(action.app.team.clone(), VecDeque::from([place]))),
            }
        }
        turns
    }

    /// The place of the action that begins next beside those on their way, where as many as `places` may be; none if all have
    /// begun, or have to wait for one to end.
    pub fn next(&mut self, load: &Load, places: usize) -> Option<(usize, Try)> {
        if let Some(place) = take(&mut self.first, load) {
            return Some((place, Try::First));
        }
        let may_retry = load.retries < places_for_retries(places);
        let place = if may_retry { take(&mut self.again, load) } else { None };
        place.map(|place| (place, Try::Again))
    }
}

/// A quarter of the places, and one at least, is kept for first tries. A single place is for both.
fn places_for_retries(places: usize) -> usize {
    places.saturating_sub((places / 4).max(1)).max(1)
}

/// Takes from the team with the fewest actions on their way, and of several such from the one whose action comes first.
fn take(queues: &mut BTreeMap<Team, VecDeque<usize>>, load: &Load) -> Option<usize> {
    let claim = |(team, queue): &(&Team, &VecDeque<usize>)| {
        let on_their_way = load.teams.get(*team).copied().unwrap_or_default();
        (on_their_way, queue.front().copied())
    };
    let team = queues.iter().min_by_key(claim).map(|(team, _)| team.clone())?;
    let queue = queues.get_mut(&team)?;
    let place = queue.pop_front();
    if queue.is_empty() {
        queues.remove(&team);
    }
    place
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
            sandbox: SandboxId(format!("{app}-00000001")),
            kind: ActionKind::Create,
            reasons: vec![Reason::NotCreated],
            changes: Vec::new(),
            steps: Vec::new(),
            blocked: Vec::new(),
        }
    }

    /// Begins what may begin on this many places, with nothing ending meanwhile; apps called `bad` have failed.
    fn begun(apps: &[&str], places: usize, mut load: Load) -> Vec<String> {
        let actions: Vec<_> = apps.iter().map(|app| action(app)).collect();
        let tries = |app: &AppKey| if app.name.as_str().starts_with("bad") { Try::Again } else { Try::First };
        let mut turns = Turns::of(actions.iter().enumerate(), tries);
        let mut begun = Vec::new();
        while load.teams.values().sum::<usize>() < places
            && let Some((place, attempt)) = turns.next(&load, places)
        {
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
    fn teams_take_turns_however_much_one_of_them_wants() {
        let apps = ["big/a", "big/b", "big/c", "big/d", "small/z", "tiny/z"];
        assert_eq!(begun(&apps, 4, Load::default()), ["big/a", "small/z", "tiny/z", "big/b"]);
        let load = Load { teams: BTreeMap::from([("big".parse().unwrap(), 3)]), retries: 0 };
        assert_eq!(begun(&apps, 4, load), ["small/z"], "what is on its way counts");
    }
}
