//! Which memory node pages lie on, and asking for one.
//!
//! A machine with several sockets (or one cut into nodes) has memory that is near to some of its
//! processors and devices and far from the others. A page is placed once, when it is brought in,
//! and by one of two policies:
//!
//! - of the **address range**, for anonymous memory: [`Region::place_on`]. It belongs to the range,
//!   so it holds whichever thread touches a page first, and it does not move pages that are there
//!   already: place a region before it is populated. The kernel's automatic balancing leaves such
//!   a range alone.
//! - of the **thread**, for the page cache: [`ThreadPolicy`]. The pages of a file belong to no
//!   address, so the thread whose read or fault brings them in decides: for io_uring the one that
//!   submits, unless the read is handed to a worker of the kernel, which keeps the policy that the
//!   submitting thread had when the worker was started.
//!
//! Nothing is ever *bound*: a node that is full gives way to its neighbours, since a load that is
//! slower beats one that fails. On one node there is nothing to choose, no system call is made,
//! and the answer says so ([`Placed::SingleNode`]). A container may forbid all of it; that is a
//! [`NumaError`] to record and carry on from, for memory then simply lies where it ever did.
//!
//! [`pages_by_node`] tells where pages really are.
//!
//! [`Region::place_on`]: crate::Region::place_on

mod kernel;
mod nodes;
mod pages;
mod place;
mod policy;

pub use kernel::current_node;
pub use nodes::{Node, nodes};
pub use pages::pages_by_node;
pub use place::ThreadPolicy;
pub use policy::{NumaPolicy, Placed};

use nix::errno::Errno;

/// Why memory was not placed, or could not be looked up. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NumaError {
    /// The node has no memory, does not exist, or is not among those of the process's cpuset.
    #[error(
        "node {node} has no memory that this process may use; what has: {}",
        policy::named(usable)
    )]
    NoSuchNode {
        /// The node that was asked for.
        node: u32,
        /// The nodes that there are instead.
        usable: Vec<u32>,
    },
    /// The kernel refused.
    #[error("{call} was refused: {errno}{}", remedy(*errno))]
    Refused {
        /// The system call.
        call: &'static str,
        /// What it answered.
        errno: Errno,
    },
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM => " (a container's filter forbids it; the capability SYS_NICE lifts that)",
        Errno::ENOSYS => " (this kernel has no NUMA, or a container's filter hides it)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_cause_and_what_there_is_instead() {
        let error = NumaError::NoSuchNode { node: 7, usable: vec![0, 1, 3] };
        let text = "node 7 has no memory that this process may use; what has: nodes 0,1,3";
        assert_eq!(error.to_string(), text);
        let error = NumaError::Refused { call: "mbind", errno: Errno::EPERM };
        assert!(error.to_string().contains("SYS_NICE"), "{error}");
    }
}
