//! The order of apps: what others depend on comes first, then by key. Total for any input, circles included.
//!
//! Where two apps stand to each other is up to them and to what they depend on, directly or not, and to no other app. So only
//! the apps that something is done about are put in order, with what they depend on.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use setpoint_schema::name::AppKey;

use super::world::{About, World};

/// The place of every app that something is done about. An app that is not known comes behind all others.
pub(super) struct Ranks<'a> {
    /// In key order.
    apps: Vec<&'a AppKey>,
    /// Each one's place.
    places: Vec<usize>,
    /// The number of the app that is asked for next, if all are asked for in key order.
    next: Cell<usize>,
}

impl<'a> Ranks<'a> {
    /// Ranks these apps and all that they depend on.
    pub fn of_all(world: &World<'a>, apps: impl Iterator<Item = &'a AppKey>) -> Self {
        let (apps, dependencies) = closure(world, apps);
        let places = kahn(&dependencies);
        Self { apps, places, next: Cell::new(0) }
    }

    pub fn of(&self, app: &AppKey) -> usize {
        let next = self.next.get();
        let number = match self.apps.get(next) {
            Some(known) if *known == app => Ok(next),
            Some(_) | None => self.apps.binary_search(&app),
        };
        number.map_or(usize::MAX, |number| {
            self.next.set(number + 1);
            self.places[number]
        })
    }

    /// Whether `app` waits for `dependency`. In a circle, which declarations refuse but an older spec may still close, one
    /// app has to begin: it does not wait for those behind it.
    pub fn waits(&self, app: &AppKey, dependency: &AppKey) -> bool {
        let place = self.of(dependency);
        place == usize::MAX || place < self.of(app)
    }
}

/// The apps with all that they depend on, in key order, and the numbers of each one's dependencies.
fn closure<'a>(world: &World<'a>, apps: impl Iterator<Item = &'a AppKey>) -> (Vec<&'a AppKey>, Vec<Vec<usize>>) {
    let mut first: Vec<_> = apps.collect();
    first.sort();
    first.dedup();
    let mut reader = world.reader();
    let mut with_dependencies = |app: &'a AppKey| (app, known_dependencies(world, &reader.about(app)));
    let mut all: Vec<_> = first.iter().copied().map(&mut with_dependencies).collect();
    let mut ahead: Vec<_> = all.iter().flat_map(|(_, dependencies)| dependencies).copied().collect();
    let mut further = BTreeMap::new();
    while let Some(app) = ahead.pop() {
        if first.binary_search(&app).is_err() && !further.contains_key(app) {
            let (app, dependencies) = with_dependencies(app);
            ahead.extend(&dependencies);
            further.insert(app, dependencies);
        }
    }
    if !further.is_empty() {
        all.extend(further);
        all.sort_by_key(|(app, _)| *app);
    }
    let number = |app: &&AppKey| all.binary_search_by_key(app, |(app, _)| *app).ok();
    let numbers = |dependencies: &Vec<&AppKey>| dependencies.iter().filter_map(number).collect();
    let dependencies = all.iter().map(|(_, dependencies)| numbers(dependencies)).collect();
    (all.into_iter().map(|(app, _)| app).collect(), dependencies)
}

fn known_dependencies<'a>(world: &World<'a>, about: &About<'a, '_>) -> Vec<&'a AppKey> {
    let all = about.last_spec().into_iter().flat_map(|spec| &spec.app.depends_on);
    all.filter(|dependency| *dependency != about.key && world.is_known(dependency)).collect()
}

/// Kahn's algorithm with the smallest number first; in a circle the smallest number begins.
fn kahn(dependencies: &[Vec<usize>]) -> Vec<usize> {
    let mut waits_for: Vec<usize> = dependencies.iter().map(Vec::len).collect();
    let mut dependents = vec![Vec::new(); dependencies.len()];
    for (app, dependencies) in dependencies.iter().enumerate() {
        for dependency in dependencies {
            dependents[*dependency].push(app);
        }
    }
    let free = |(app, count): (usize, &usize)| (*count == 0).then_some(Reverse(app));
    let mut ready: BinaryHeap<_> = waits_for.iter().enumerate().filter_map(free).collect();
    let mut places = vec![usize::MAX; dependencies.len()];
    let (mut placed, mut first_waiting) = (0, 0);
    while placed < places.len() {
        let next = ready.pop().map(|Reverse(app)| app).unwrap_or_else(|| {
            while places[first_waiting] != usize::MAX {
                first_waiting += 1;
            }
            first_waiting
        });
        if places[next] != usize::MAX {
            continue;
        }
        places[next] = placed;
        placed += 1;
        for dependent in &dependents[next] {
            waits_for[*dependent] = waits_for[*dependent].saturating_sub(1);
            if waits_for[*dependent] == 0 {
                ready.push(Reverse(*dependent));
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order of these apps among themselves.
    fn among(apps: &[usize], places: &[usize]) -> Vec<usize> {
        let mut apps = apps.to_vec();
        apps.sort_by_key(|app| places[*app]);
        apps
    }

    /// The order of all apps of a smaller set, by the numbers that they have in the larger one.
    fn renamed(numbers: &[usize; 3], places: &[usize]) -> Vec<usize> {
        among(&[0, 1, 2], places).into_iter().map(|app| numbers[app]).collect()
    }

    #[test]
    fn an_order_of_some_is_part_of_the_order_of_all() {
        // A chain against the order of keys, one alone, a circle, and one behind it.
        let all = kahn(&[vec![3], vec![2], vec![1], vec![4], vec![], vec![1], vec![]]);
        assert_eq!(among(&[0, 1, 2, 3, 4, 5, 6], &all), [4, 3, 0, 6, 1, 2, 5]);
        let chain = kahn(&[vec![1], vec![2], vec![]]);
        assert_eq!(among(&[0, 3, 4], &all), renamed(&[0, 3, 4], &chain));
        let circle = kahn(&[vec![1], vec![0], vec![0]]);
        assert_eq!(among(&[1, 2, 5], &all), renamed(&[1, 2, 5], &circle));
    }
}
