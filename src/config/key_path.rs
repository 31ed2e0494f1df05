//! The path of one node of the configuration: `routes[0].headers.request.set`.
//!
//! This file knows neither YAML text nor the meaning of keys.

use std::cmp::Ordering;
use std::fmt;
use std::rc::Rc;

use serde_yaml::Value;

/// One step from a node to its child. Indexes sort by number, before keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// An element of a list.
    Index(usize),
    /// An entry of a mapping.
    Key(String),
}

/// The steps from the top of the configuration to one node; empty for the whole configuration.
/// A child shares the steps of its parent, because a path is made for each value of a file that may have thousands.
#[derive(Clone, Default)]
pub struct KeyPath(Option<Rc<Last>>);

/// The last step of a path, and the path before it.
struct Last {
    parent: KeyPath,
    step: Step,
}

impl KeyPath {
    /// The whole configuration.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path to a key at the top.
    pub fn top(key: &str) -> Self {
        Self::root().key(key)
    }

    /// The entry `key` of the mapping at this path.
    pub fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.to_owned()))
    }

    /// The element `index` of the list at this path.
    pub fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    /// The child of this path that `step` leads to.
    pub fn step(&self, step: Step) -> Self {
        Self(Some(Rc::new(Last { parent: self.clone(), step })))
    }

    /// Whether this is `other` or lies beneath it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.steps().starts_with(&other.steps())
    }

    /// This path, then each of its ancestors, the root last.
    pub fn and_ancestors(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |path| path.0.as_ref().map(|last| &last.parent))
    }

    /// Whether this is the whole configuration.
    pub fn is_root(&self) -> bool {
        self.0.is_none()
    }

    /// The node this path leads to.
    pub fn find<'a>(&self, root: &'a mut Value) -> Option<&'a mut Value> {
        self.steps().into_iter().try_fold(root, |node, step| match (step, node) {
            (Step::Index(index), Value::Sequence(list)) => list.get_mut(*index),
            (Step::Key(key), Value::Mapping(map)) => map.get_mut(key.as_str()),
            _ => None,
        })
    }

    /// The steps from the root on.
    pub fn steps(&self) -> Vec<&Step> {
        let mut steps = Vec::new();
        let mut path = self;
        while let Some(Last { parent, step }) = path.0.as_deref() {
            steps.push(step);
            path = parent;
        }
        steps.reverse();
        steps
    }
}

impl FromIterator<Step> for KeyPath {
    fn from_iter<I: IntoIterator<Item = Step>>(steps: I) -> Self {
        steps.into_iter().fold(Self::root(), |path, step| path.step(step))
    }
}

impl PartialEq for KeyPath {
    fn eq(&self, other: &Self) -> bool {
        self.steps() == other.steps()
    }
}

impl Eq for KeyPath {}

impl PartialOrd for KeyPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.steps().cmp(&other.steps())
    }
}

impl fmt::Debug for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.steps().into_iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if i == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_people_write_it() {
        let path = KeyPath::top("routes").index(2).key("headers").key("set");
        assert_eq!(path.to_string(), "routes[2].headers.set");
        assert!(path.is_within(&KeyPath::top("routes").index(2)));
        assert!(!path.is_within(&KeyPath::top("routes").index(1)));
        assert!(path.is_within(&KeyPath::root()));
    }
}
