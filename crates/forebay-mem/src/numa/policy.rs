//! What may be asked for, and what it comes to on this machine.

use super::kernel::{self, MemoryPolicy, NodeMask};
use super::{NumaError, nodes};
use std::fmt;
use std::str::FromStr;

/// Where memory should lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NumaPolicy {
    /// Wherever the system puts it: near the thread that touches it first.
    #[default]
    Off,
    /// On this node as long as it has room; `None`: the node that the calling thread runs on when
    /// the policy is used.
    Node(Option<u32>),
    /// In turns on all nodes, so that all their memory buses share the load.
    Interleave,
}

impl fmt::Display for NumaPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Node(None) => f.write_str("node"),
            Self::Node(Some(node)) => write!(f, "node:{node}"),
            Self::Interleave => f.write_str("interleave"),
        }
    }
}

impl FromStr for NumaPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("'{text}' is no NUMA policy: off, node, node:N or interleave");
        match text {
            "off" => Ok(Self::Off),
            "node" => Ok(Self::Node(None)),
            "interleave" => Ok(Self::Interleave),
            _ => {
                let node = text.strip_prefix("node:").ok_or_else(refuse)?;
                node.parse().map(|node| Self::Node(Some(node))).map_err(|_| refuse())
            }
        }
    }
}

/// What a policy came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Placed {
    /// None was asked for.
    Off,
    /// This process has the memory of one node only: nothing to choose, nothing done.
    SingleNode(u32),
    /// Pages come from this node as long as it has room.
    Preferred(u32),
    /// Pages come from these nodes in turns.
    Interleaved(Vec<u32>),
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::SingleNode(node) => write!(f, "only node {node} has memory"),
            Self::Preferred(node) => write!(f, "preferred on node {node}"),
            Self::Interleaved(nodes) => write!(f, "interleaved over {}", named(nodes)),
        }
    }
}

impl Placed {
    /// The policy to hand to the kernel, if it has anything to do.
    pub(super) fn memory_policy(&self) -> Result<Option<MemoryPolicy>, NumaError> {
        let (mode, nodes) = match self {
            Self::Off | Self::SingleNode(_) => return Ok(None),
            Self::Preferred(node) => (libc::MPOL_PREFERRED, std::slice::from_ref(node)),
            Self::Interleaved(nodes) => (libc::MPOL_INTERLEAVE, nodes.as_slice()),
        };
        Ok(Some(MemoryPolicy { mode, nodes: NodeMask::new(nodes)? }))
    }
}

/// What `policy` comes to here and now.
pub(super) fn resolve(policy: NumaPolicy) -> Result<Placed, NumaError> {
    match policy {
        NumaPolicy::Off => Ok(Placed::Off),
        _ => choose(policy, nodes::usable_nodes(), kernel::current_node),
    }
}

/// `usable` is not empty.
fn choose(
    policy: NumaPolicy,
    usable: Vec<u32>,
    current: impl FnOnce() -> Result<u32, NumaError>,
) -> Result<Placed, NumaError> {
    let asked = match (policy, usable.as_slice()) {
        (NumaPolicy::Off, _) => return Ok(Placed::Off),
        // Also on a processor whose own node has no memory.
        (NumaPolicy::Node(None) | NumaPolicy::Interleave, &[only]) => {
            return Ok(Placed::SingleNode(only));
        }
        (NumaPolicy::Interleave, _) => return Ok(Placed::Interleaved(usable)),
        (NumaPolicy::Node(Some(node)), _) => node,
        (NumaPolicy::Node(None), _) => current()?,
    };
    match usable.as_slice() {
        &[only] if only == asked => Ok(Placed::SingleNode(only)),
        many if many.contains(&asked) => Ok(Placed::Preferred(asked)),
        _ => Err(NumaError::NoSuchNode { node: asked, usable }),
    }
}

/// `node 3`, `nodes 0,1`, `no node`.
pub(super) fn named(nodes: &[u32]) -> String {
    let numbers: Vec<String> = nodes.iter().map(u32::to_string).collect();
    match numbers.as_slice() {
        [] => "no node".to_owned(),
        [only] => format!("node {only}"),
        several => format!("nodes {}", several.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use NumaPolicy::{Interleave, Node, Off};

    #[test]
    fn is_spelt_as_it_is_read() {
        for text in ["off", "node", "node:0", "node:71", "interleave"] {
            assert_eq!(text.parse::<NumaPolicy>().unwrap().to_string(), text);
        }
        for text in ["", "node:", "node:x", "node:-1", "Off", "bind"] {
            let error = text.parse::<NumaPolicy>().unwrap_err();
            assert!(error.contains("off, node, node:N or interleave"), "{error}");
        }
        assert_eq!(NumaPolicy::default(), Off);
    }

    #[test]
    fn one_node_leaves_nothing_to_choose_but_must_be_the_right_one() {
        let not_asked = || panic!("there is nothing to ask");
        for policy in [Node(None), Node(Some(4)), Interleave] {
            assert_eq!(choose(policy, vec![4], not_asked), Ok(Placed::SingleNode(4)));
        }
        let error = NumaError::NoSuchNode { node: 0, usable: vec![4] };
        assert_eq!(choose(Node(Some(0)), vec![4], not_asked), Err(error));
    }

    #[test]
    fn several_nodes_are_preferred_or_interleaved() {
        let usable = || vec![0, 2, 70];
        let on = |node| move || Ok(node);
        assert_eq!(choose(Node(None), usable(), on(2)), Ok(Placed::Preferred(2)));
        assert_eq!(choose(Node(Some(70)), usable(), on(2)), Ok(Placed::Preferred(70)));
        assert_eq!(choose(Interleave, usable(), on(2)), Ok(Placed::Interleaved(usable())));
        assert_eq!(choose(Off, usable(), on(2)), Ok(Placed::Off));
        let without_memory = NumaError::NoSuchNode { node: 1, usable: usable() };
        assert_eq!(choose(Node(None), usable(), on(1)), Err(without_memory));
    }

    #[test]
    fn says_what_it_came_to() {
        assert_eq!(Placed::SingleNode(0).to_string(), "only node 0 has memory");
        let text = Placed::Interleaved(vec![0, 1]).to_string();
        assert_eq!(text, "interleaved over nodes 0,1");
    }
}
