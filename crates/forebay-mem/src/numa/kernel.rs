//! The system calls, which `libc` does not wrap.

use super::NumaError;
use libc::{c_int, c_long, c_ulong, c_void};
use nix::errno::Errno;

/// The most nodes that a kernel can be built for (`CONFIG_NODES_SHIFT` is at most 10).
const NODES_MAX: usize = 1024;
const WORD_BITS: usize = c_ulong::BITS as usize;
/// The length of a mask as the kernel wants to be told it: it takes one off.
const MASK_LENGTH: usize = NODES_MAX + 1;

/// A set of nodes, one bit each, in the order of the kernel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeMask([c_ulong; NODES_MAX / WORD_BITS]);

impl NodeMask {
    const EMPTY: Self = Self([0; NODES_MAX / WORD_BITS]);

    pub(super) fn new(nodes: &[u32]) -> Result<Self, NumaError> {
        let mut mask = Self::EMPTY;
        for &node in nodes {
            let bit = node as usize;
            let word = mask.0.get_mut(bit / WORD_BITS);
            let word = word.ok_or_else(|| NumaError::NoSuchNode { node, usable: vec![] })?;
            *word |= 1 << (bit % WORD_BITS);
        }
        Ok(mask)
    }
}

/// A mode (`MPOL_…`) and the nodes it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryPolicy {
    pub(super) mode: c_int,
    pub(super) nodes: NodeMask,
}

/// Sets the policy of an address range; pages that are there stay where they are.
pub(super) fn bind(address: *mut u8, bytes: usize, to: &MemoryPolicy) -> Result<(), NumaError> {
    // SAFETY: the kernel reads the mask, which lives until after the call. A policy is about pages
    // to come: no byte in the range changes, whoever owns it.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            address,
            bytes,
            to.mode,
            to.nodes.0.as_ptr(),
            MASK_LENGTH,
            0_u32,
        )
    };
    check("mbind", answer)
}

/// Sets the policy of the calling thread.
pub(super) fn set_thread_policy(to: &MemoryPolicy) -> Result<(), NumaError> {
    // SAFETY: the kernel reads the mask, which lives until after the call.
    let answer = unsafe {
        libc::syscall(libc::SYS_set_mempolicy, to.mode, to.nodes.0.as_ptr(), MASK_LENGTH)
    };
    check("set_mempolicy", answer)
}

/// The policy of the calling thread.
pub(super) fn thread_policy() -> Result<MemoryPolicy, NumaError> {
    let mut policy = MemoryPolicy { mode: libc::MPOL_DEFAULT, nodes: NodeMask::EMPTY };
    // SAFETY: the kernel writes one int and `MASK_LENGTH - 1` bits, which is all of the mask; both
    // are ours alone until the call returns. Without flags it looks at no address.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut policy.mode,
            policy.nodes.0.as_mut_ptr(),
            MASK_LENGTH,
            std::ptr::null_mut::<c_void>(),
            0_usize,
        )
    };
    check("get_mempolicy", answer)?;
    Ok(policy)
}

/// The node that the calling thread runs on now; it may run elsewhere a moment later.
///
/// # Errors
/// `ENOSYS` or `EPERM` where a filter forbids to ask.
pub fn current_node() -> Result<u32, NumaError> {
    let (mut cpu, mut node) = (0_u32, 0_u32);
    // SAFETY: the kernel writes two numbers that are ours alone until the call returns.
    let answer = unsafe {
        let no_cache = std::ptr::null_mut::<c_void>();
        libc::syscall(libc::SYS_getcpu, &raw mut cpu, &raw mut node, no_cache)
    };
    check("getcpu", answer)?;
    Ok(node)
}

/// For each address the node of its page, or a negative errno where there is none: `-ENOENT` or
/// `-EFAULT`, by the kind of mapping.
pub(super) fn nodes_of(addresses: &[*const u8], status: &mut [c_int]) -> Result<(), NumaError> {
    assert_eq!(addresses.len(), status.len(), "a status for each address");
    // SAFETY: the kernel reads the addresses and writes as many statuses, both alive until after
    // the call. Without nodes to move to nothing moves, and no byte behind an address is touched.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0, // This process.
            addresses.len(),
            addresses.as_ptr(),
            std::ptr::null::<c_int>(),
            status.as_mut_ptr(),
            0,
        )
    };
    check("move_pages", answer)
}

fn check(call: &'static str, answer: c_long) -> Result<(), NumaError> {
    Errno::result(answer).map(drop).map_err(|errno| NumaError::Refused { call, errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_reaches_past_its_first_word_and_ends_at_its_last() {
        let mask = NodeMask::new(&[0, 63, 64, 200, 1023]).unwrap();
        let set = |bit: usize| mask.0[bit / WORD_BITS] >> (bit % WORD_BITS) & 1 == 1;
        let bits: Vec<usize> = (0..NODES_MAX).filter(|&bit| set(bit)).collect();
        assert_eq!(bits, [0, 63, 64, 200, 1023]);
        let error = NodeMask::new(&[1, 1024]).unwrap_err();
        assert!(matches!(error, NumaError::NoSuchNode { node: 1024, .. }), "{error:?}");
        assert_eq!(size_of_val(&mask) * 8, MASK_LENGTH - 1);
    }

    #[test]
    fn the_kernel_takes_back_the_policy_it_tells() {
        match thread_policy() {
            Ok(policy) => {
                set_thread_policy(&policy).unwrap();
                assert_eq!(thread_policy().unwrap(), policy);
            }
            Err(error) => eprintln!("SKIPPED: {error}"),
        }
    }
}
