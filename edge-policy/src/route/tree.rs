//! All places of a site, by segment: what a request costs depends on its path, not on how many
//! routes there are.

use std::collections::HashMap;

use super::place::{HostPattern, Match, Segment};

/// A tree of path segments. Each node may end an exact path, and begin everything below it.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// The first is the root.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    literals: HashMap<String, usize>,
    any: Option<usize>,
    /// What serves this path alone.
    exact: Hosts,
    /// What serves this path and all below.
    below: Hosts,
}

/// The routes of one path by host, each list in the order in which they are asked.
#[derive(Clone, Debug, Default)]
struct Hosts {
    exact: HashMap<String, Vec<usize>>,
    under: HashMap<String, Vec<usize>>,
    any: Vec<usize>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl Tree {
    /// Adds the route with this number after those of its place that are there.
    pub(super) fn add(&mut self, at: &Match, route: usize) {
        let mut node = 0;
        for segment in &at.path.segments {
            let next = self.nodes.len();
            let child = match segment {
                Segment::Literal(text) => {
                    *self.nodes[node].literals.entry(text.clone()).or_insert(next)
                }
                Segment::Any(_) => *self.nodes[node].any.get_or_insert(next),
            };
            if child == next {
                self.nodes.push(Node::default());
            }
            node = child;
        }
        let node = &mut self.nodes[node];
        let hosts = if at.path.exact { &mut node.exact } else { &mut node.below };
        match &at.host {
            HostPattern::Exact(host) => hosts.exact.entry(host.clone()).or_default().push(route),
            HostPattern::Under(zone) => hosts.under.entry(zone.clone()).or_default().push(route),
            HostPattern::Any => hosts.any.push(route),
        }
    }

    /// The routes of the most specific place for a host and a path in normal form.
    pub(super) fn find(&self, host: &str, path: &str) -> Option<&[usize]> {
        let path = path.strip_prefix('/').unwrap_or(path);
        self.descend(0, host, path.strip_suffix('/').unwrap_or(path))
    }

    /// Goes by the literal first, then by what takes any segment, then stays. No deeper than the
    /// deepest route.
    fn descend(&self, node: usize, host: &str, rest: &str) -> Option<&[usize]> {
        let node = &self.nodes[node];
        if rest.is_empty() {
            return node.exact.find(host).or_else(|| node.below.find(host));
        }
        let (segment, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let literal = node.literals.get(segment).copied();
        let deeper = [literal, node.any].into_iter().flatten();
        let mut found = deeper.map(|child| self.descend(child, host, rest));
        found.find_map(|found| found).or_else(|| node.below.find(host))
    }
}

impl Hosts {
    /// The exact host before the longest wildcard before any.
    fn find(&self, host: &str) -> Option<&[usize]> {
        if let Some(routes) = self.exact.get(host) {
            return Some(routes);
        }
        if !self.under.is_empty() {
            let mut labels = host;
            while let Some((_, zone)) = labels.split_once('.') {
                if let Some(routes) = self.under.get(zone) {
                    return Some(routes);
                }
                labels = zone;
            }
        }
        (!self.any.is_empty()).then_some(&self.any)
    }
}
