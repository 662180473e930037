//! sha256 of tensors, read back from where they landed.

use crate::error::Error;
use crate::loaded::Tensor;
use forebay_device::DeviceError;
use forebay_device::cuda::{Context, ReadBack, Staging, release_staging};
use forebay_mem::{Free, Slot};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
        return Ok(hex(hasher));
    }
    let mut buffer = vec![0; piece_bytes(tensor.bytes(), PIECE_BYTES)];
    let mut offset = 0;
    while offset < tensor.bytes() {
        let piece = &mut buffer[..piece_bytes(tensor.bytes() - offset, PIECE_BYTES)];
        tensor.read_into(offset, piece)?;
        hasher.update(&*piece);
        offset += piece.len() as u64;
    }
    Ok(hex(hasher))
}

fn piece_bytes(left: u64, most: usize) -> usize {
    usize::try_from(left).map_or(most, |left| left.min(most))
}

fn hex(hasher: Sha256) -> String {
    let mut hex = String::with_capacity(64);
    for byte in hasher.finalize() {
        write!(hex, "{byte:02x}").expect("writing to a string does not fail");
    }
    hex
}

/// Hashes one tensor after the other; what is on a device comes back through slots of the staging
/// memory that it went there through.
struct Reader<'staging> {
    slots: &'staging Mutex<Vec<Slot<Free>>>,
    /// By device, the ones that were met so far.
    read_backs: BTreeMap<u32, Option<ReadBack>>,
}

impl<'staging> Reader<'staging> {
    fn new(slots: &'staging Mutex<Vec<Slot<Free>>>) -> Self {
        Self { slots, read_backs: BTreeMap::new() }
    }

    fn digest(&mut self, tensor: &Tensor) -> Result<String, Error> {
        let Some((arena, index)) = tensor.on_cuda() else { return sha256_hex(tensor) };
        let Some(read_back) = self.read_back(arena.context())? else { return sha256_hex(tensor) };
        let mut hasher = Sha256::new();
        let mut offset = 0;
        while offset < tensor.bytes() {
            let bytes = piece_bytes(tensor.bytes() - offset, read_back.capacity());
            hasher.update(read_back.read(arena, index, offset, bytes)?);
            offset += bytes as u64;
        }
        Ok(hex(hasher))
    }

    /// `None` where no slot is left: the plain way serves as well.
    fn read_back(&mut self, context: &Arc<Context>) -> Result<Option<&mut ReadBack>, DeviceError> {
        let entry = self.read_backs.entry(context.ordinal());
        let made = match entry {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).pop();
                entry.insert(slot.map(|slot| ReadBack::new(context, slot.fill())).transpose()?)
            }
        };
        Ok(made.as_mut())
    }
}

/// The digests of all, by name; the work is shared by every core.
pub(crate) fn all(tensors: &[Tensor]) -> Result<BTreeMap<String, String>, Error> {
    let (staging, slots) = staging(tensors).unzip();
    let slots = Mutex::new(slots.unwrap_or_default());
    let next = AtomicUsize::new(0);
    let digests = Mutex::new(Ok(BTreeMap::new()));
    let work = || {
        let mut reader = Reader::new(&slots);
        while let Some(tensor) = tensors.get(next.fetch_add(1, Ordering::Relaxed)) {
            let digest = reader.digest(tensor);
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
    drop(slots);
    let digests = digests.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (staging, &digests) {
        (Some(staging), Ok(_)) => staging.keep(),
        // What is kept would keep a context that is lost.
        (_, Err(Error::Device(_))) => release_staging(),
        _ => {}
    }
    digests
}

/// The staging memory that the load went through, if it went to a device and it can still be had.
fn staging(tensors: &[Tensor]) -> Option<(Staging, Vec<Slot<Free>>)> {
    let (arena, _) = tensors.iter().find_map(Tensor::on_cuda)?;
    Staging::take(arena.context(), tensors.first()?.staging()?).ok()
}
