//! Cycles in a graph of dependencies: Tarjan's strongly connected components, with the call stack spelled out because the
//! graph may be deeper than a thread's stack.

use std::collections::{BTreeMap, HashMap};

use crate::name::AppKey;

/// Nodes that all reach each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cycle<N> {
    /// All of them, in ascending order.
    pub(super) members: Vec<N>,
    /// One way round, from node to dependency; the last depends on the first.
    pub(super) example: Vec<N>,
}

/// The cycles among apps, given what each depends on. An app that depends on itself alone makes none.
pub(super) fn among(graph: &BTreeMap<AppKey, Vec<AppKey>>) -> Vec<Cycle<AppKey>> {
    let keys: Vec<&AppKey> = graph.keys().collect();
    let index: HashMap<&AppKey, usize> = keys.iter().enumerate().map(|(index, key)| (*key, index)).collect();
    let leads_to = |list: &Vec<AppKey>| list.iter().filter_map(|key| index.get(key).copied()).collect();
    let dependencies: Vec<Vec<usize>> = graph.values().map(leads_to).collect();
    let named = |nodes: Vec<usize>| nodes.into_iter().map(|node| keys[node].clone()).collect();
    let cycles = find(&dependencies).into_iter();
    cycles.map(|Cycle { members, example }| Cycle { members: named(members), example: named(example) }).collect()
}

/// `a → b → a`, cut in the middle of long ones.
pub(super) fn show(example: &[impl ToString]) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<String> = example.iter().take(SHOWN).map(ToString::to_string).collect();
    if example.len() > SHOWN {
        names.push(format!("… {} more …", example.len() - SHOWN));
    }
    names.extend(example.first().map(ToString::to_string));
    names.join(" → ")
}

/// The cycles of a graph that gives for each node what it depends on.
pub(super) fn find(dependencies: &[Vec<usize>]) -> Vec<Cycle<usize>> {
    let mut search = Search {
        dependencies,
        order: vec![UNSEEN; dependencies.len()],
        low: vec![0; dependencies.len()],
        on_path: vec![false; dependencies.len()],
        path: Vec::new(),
        seen: 0,
        cycles: Vec::new(),
    };
    for node in 0..dependencies.len() {
        if search.order[node] == UNSEEN {
            search.from(node);
        }
    }
    search.cycles
}

const UNSEEN: usize = usize::MAX;

struct Search<'g> {
    dependencies: &'g [Vec<usize>],
    /// When each node was first seen.
    order: Vec<usize>,
    /// The earliest node on the path that each node reaches.
    low: Vec<usize>,
    on_path: Vec<bool>,
    path: Vec<usize>,
    seen: usize,
    cycles: Vec<Cycle<usize>>,
}

impl Search<'_> {
    fn from(&mut self, root: usize) {
        self.enter(root);
        // Each call in progress: the node, and which of its dependencies comes next.
        let mut calls = vec![(root, 0)];
        while let Some((node, next)) = calls.last_mut() {
            let node = *node;
            if let Some(&dependency) = self.dependencies[node].get(*next) {
                *next += 1;
                if self.order[dependency] == UNSEEN {
                    self.enter(dependency);
                    calls.push((dependency, 0));
                } else if self.on_path[dependency] {
                    self.low[node] = self.low[node].min(self.order[dependency]);
                }
            } else {
                calls.pop();
                self.leave(node);
                if let Some((caller, _)) = calls.last() {
                    self.low[*caller] = self.low[*caller].min(self.low[node]);
                }
            }
        }
    }

    fn enter(&mut self, node: usize) {
        self.order[node] = self.seen;
        self.low[node] = self.seen;
        self.seen += 1;
        self.on_path[node] = true;
        self.path.push(node);
    }

    fn leave(&mut self, node: usize) {
        if self.low[node] != self.order[node] {
            return;
        }
        let start = self.path.iter().rposition(|member| *member == node).unwrap_or_default();
        let mut members = self.path.split_off(start);
        members.iter().for_each(|member| self.on_path[*member] = false);
        if members.len() > 1 {
            members.sort_unstable();
            let example = self.way_round(&members);
            self.cycles.push(Cycle { members, example });
        }
    }

    /// Follows the first dependency within the component until a node comes again.
    fn way_round(&self, members: &[usize]) -> Vec<usize> {
        let mut way: Vec<usize> = Vec::new();
        let mut step_of = HashMap::new();
        let mut at = members[0];
        loop {
            if let Some(step) = step_of.insert(at, way.len()) {
                return way.split_off(step);
            }
            way.push(at);
            let within = |dependency: &&usize| members.binary_search(dependency).is_ok();
            match self.dependencies[at].iter().find(within) {
                Some(&next) => at = next,
                None => return way,
            }
        }
    }
}
