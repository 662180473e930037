//! sha256 of tensors, read back from where they landed.

use crate::error::Error;
use crate::loaded::Tensor;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much is read back at a time from memory that can't be borrowed.
const PIECE_BYTES: usize = 1 << 20;

/// The sha256 of a tensor's bytes as hex.
///
/// # Errors
/// As [`Tensor::read_into`].
pub fn sha256_hex(tensor: &Tensor) -> Result<String, Error> {
    let mut hasher = Sha256::new();
    if let Some(bytes) = tensor.as_slice() {
        hasher.update(bytes);
    } else {
        let all = usize::try_from(tensor.bytes()).unwrap_or(usize::MAX);
        let mut buffer = vec![0; all.min(PIECE_BYTES)];
        let mut offset = 0;
        while offset < tensor.bytes() {
            let left = usize::try_from(tensor.bytes() - offset).unwrap_or(usize::MAX);
            let piece = &mut buffer[..left.min(PIECE_BYTES)];
            tensor.read_into(offset, piece)?;
            hasher.update(&*piece);
            offset += piece.len() as u64;
        }
    }
    let mut hex = String::with_capacity(64);
    for byte in hasher.finalize() {
        write!(hex, "{byte:02x}").expect("writing to a string does not fail");
    }
    Ok(hex)
}

/// The digests of all, by name; the work is shared by every core.
pub(crate) fn all(tensors: &[Tensor]) -> Result<BTreeMap<String, String>, Error> {
    let next = AtomicUsize::new(0);
    let digests = Mutex::new(Ok(BTreeMap::new()));
    let work = || {
        while let Some(tensor) = tensors.get(next.fetch_add(1, Ordering::Relaxed)) {
            let digest = sha256_hex(tensor);
            let mut digests = digests.lock().unwrap_or_else(PoisonError::into_inner);
            match (&mut *digests, digest) {
                (Ok(digests), Ok(digest)) => {
                    digests.insert(tensor.name().to_owned(), digest);
                }
                (Ok(_), Err(error)) => *digests = Err(error),
                (Err(_), _) => return,
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..std::thread::available_parallelism().map_or(1, usize::from) {
            // Past a limit of threads, this one does it all.
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    digests.into_inner().unwrap_or_else(PoisonError::into_inner)
}
