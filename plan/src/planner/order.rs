//! The order of apps: what others depend on comes first, then by key. Total for any input, circles included.

use std::collections::{BTreeMap, BTreeSet};

use setpoint_schema::name::AppKey;

use super::world::World;

/// Every app's place. An app that is not known comes behind all others.
pub(super) struct Ranks<'a>(BTreeMap<&'a AppKey, usize>);

impl Ranks<'_> {
    pub fn of(&self, app: &AppKey) -> usize {
        self.0.get(app).copied().unwrap_or(usize::MAX)
    }

    /// Whether `app` waits for `dependency`. In a circle, which declarations refuse but an older spec may still close, one
    /// app has to begin: it does not wait for those behind it.
    pub fn waits(&self, app: &AppKey, dependency: &AppKey) -> bool {
        !self.0.contains_key(dependency) || self.of(dependency) < self.of(app)
    }
}

/// Kahn's algorithm with the smallest key first; in a circle the smallest key begins.
pub(super) fn ranks<'a>(world: &World<'a>) -> Ranks<'a> {
    let nodes: BTreeSet<&AppKey> = world.desired.apps.keys().chain(world.undeclared()).collect();
    let mut waiting: BTreeMap<&AppKey, usize> = BTreeMap::new();
    let mut dependents: BTreeMap<&AppKey, Vec<&AppKey>> = BTreeMap::new();
    for &app in &nodes {
        let known = world.last_spec(app).into_iter().flat_map(|spec| &spec.app.depends_on);
        let known =
            known.filter_map(|dependency| nodes.get(&dependency).copied()).filter(|dependency| *dependency != app);
        let mut count = 0;
        for dependency in known {
            dependents.entry(dependency).or_default().push(app);
            count += 1;
        }
        waiting.insert(app, count);
    }
    let mut ready: BTreeSet<&AppKey> = waiting.iter().filter(|(_, count)| **count == 0).map(|(app, _)| *app).collect();
    let mut ranks = BTreeMap::new();
    while let Some(app) = ready.pop_first().or_else(|| waiting.keys().next().copied()) {
        waiting.remove(app);
        ranks.insert(app, ranks.len());
        for dependent in dependents.get(app).into_iter().flatten() {
            if let Some(count) = waiting.get_mut(dependent) {
                *count -= 1;
                if *count == 0 {
                    ready.insert(dependent);
                }
            }
        }
    }
    Ranks(ranks)
}
