//! Digests of tensors, read back from where they landed.

use crate::error::Error;
use crate::loaded::Tensor;
use crate::model::Model;
use crossbeam_channel::{Receiver, Sender, unbounded};
use forebay_device::DeviceError;
use forebay_device::cuda::{Context, ReadBack, Staging, release_staging};
use forebay_io::ModelFile;
use forebay_mem::{Free, Slot};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io::ErrorKind;
use std::ops::Range;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism};

/// How much is read back at a time from memory that can't be borrowed.
const PIECE_BYTES: usize = 1 << 20;
/// How much is hashed before somebody looks whether it is still wanted.
const WANTED_BYTES: usize = 16 << 20;

/// A digest of 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DigestKind {
    /// BLAKE3: several times as fast as the other.
    #[default]
    Blake3,
    /// SHA-256: what `sha256sum` and the Hub print of files.
    Sha256,
}

impl fmt::Display for DigestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        })
    }
}

impl FromStr for DigestKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "blake3" => Ok(Self::Blake3),
            "sha256" => Ok(Self::Sha256),
            _ => Err(format!("'{text}' is no digest: blake3 or sha256")),
        }
    }
}

enum Hasher {
    Blake3(Box<blake3::Hasher>),
    Sha256(Sha256),
}

impl Hasher {
    fn new(kind: DigestKind) -> Self {
        match kind {
            DigestKind::Blake3 => Self::Blake3(Box::default()),
            DigestKind::Sha256 => Self::Sha256(Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }

    fn hex(self) -> String {
        let digest: [u8; 32] = match self {
            Self::Blake3(hasher) => hasher.finalize().into(),
            Self::Sha256(hasher) => hasher.finalize().into(),
        };
        let mut hex = String::with_capacity(64);
        for byte in digest {
            write!(hex, "{byte:02x}").expect("writing to a string does not fail");
        }
        hex
    }
}

/// The sha256 of a tensor's bytes as hex.
///
/// # Errors
/// As [`Tensor::read_into`].
pub fn sha256_hex(tensor: &Tensor) -> Result<String, Error> {
    hashed(tensor, DigestKind::Sha256, &|| true).map(Option::unwrap_or_default)
}

/// By file of the catalog, the digest of what no tensor has of it: header, metadata, padding. With
/// those of the tensors they vouch for every byte of the model.
///
/// # Errors
/// [`Error::Header`] where the file can't be read.
pub fn digests_outside(model: &Model, kind: DigestKind) -> Result<Vec<String>, Error> {
    let mut tensors: Vec<Vec<Range<u64>>> = vec![Vec::new(); model.files().len()];
    for tensor in model.catalog().tensors() {
        tensors[tensor.file].push(tensor.offset..tensor.end());
    }
    let digest = |(file, mut tensors): (&ModelFile, Vec<Range<u64>>)| {
        tensors.sort_by_key(|range| range.start);
        tensors.push(file.bytes()..file.bytes());
        let mut hasher = Hasher::new(kind);
        let mut at = 0;
        for tensor in tensors {
            while at < tensor.start {
                let part = file.read_aside(at..tensor.start.min(at + WANTED_BYTES as u64));
                let part = part.and_then(|part| match part.is_empty() {
                    false => Ok(part),
                    true => Err(ErrorKind::UnexpectedEof.into()),
                });
                let unreadable = |source| Error::Header { path: file.path().to_owned(), source };
                let part = part.map_err(unreadable)?;
                hasher.update(&part);
                at += part.len() as u64;
            }
            at = at.max(tensor.end);
        }
        Ok(hasher.hex())
    };
    model.files().iter().zip(tensors).map(digest).collect()
}

/// The digest of a tensor on the CPU or wherever else it can be read from; `None` if it is not
/// wanted any more.
fn hashed(
    tensor: &Tensor,
    kind: DigestKind,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Option<String>, Error> {
    let mut hasher = Hasher::new(kind);
    if let Some(bytes) = tensor.as_slice() {
        for piece in bytes.chunks(WANTED_BYTES) {
            if !is_wanted() {
                return Ok(None);
            }
            hasher.update(piece);
        }
        return Ok(Some(hasher.hex()));
    }
    let mut buffer = vec![0; piece_bytes(tensor.bytes(), PIECE_BYTES)];
    let mut offset = 0;
    while offset < tensor.bytes() {
        let piece = &mut buffer[..piece_bytes(tensor.bytes() - offset, PIECE_BYTES)];
        if !is_wanted() {
            return Ok(None);
        }
        tensor.read_into(offset, piece)?;
        hasher.update(piece);
        offset += piece.len() as u64;
    }
    Ok(Some(hasher.hex()))
}

fn piece_bytes(left: u64, most: usize) -> usize {
    usize::try_from(left).map_or(most, |left| left.min(most))
}

/// Hashes one tensor after the other; what is on a device comes back through slots of the staging
/// memory that it went there through.
struct Reader<'staging> {
    kind: DigestKind,
    slots: &'staging Mutex<Vec<Slot<Free>>>,
    /// By device, the ones that were met so far.
    read_backs: BTreeMap<u32, Option<ReadBack>>,
}

impl<'staging> Reader<'staging> {
    fn new(kind: DigestKind, slots: &'staging Mutex<Vec<Slot<Free>>>) -> Self {
        Self { kind, slots, read_backs: BTreeMap::new() }
    }

    fn digest(&mut self, tensor: &Tensor) -> Result<String, Error> {
        let kind = self.kind;
        let plain = || hashed(tensor, kind, &|| true).map(Option::unwrap_or_default);
        let Some((arena, index)) = tensor.on_cuda() else { return plain() };
        let Some(read_back) = self.read_back(arena.context())? else { return plain() };
        let mut hasher = Hasher::new(kind);
        let mut offset = 0;
        while offset < tensor.bytes() {
            let bytes = piece_bytes(tensor.bytes() - offset, read_back.capacity());
            hasher.update(read_back.read(arena, index, offset, bytes)?);
            offset += bytes as u64;
        }
        Ok(hasher.hex())
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
pub(crate) fn all(tensors: &[Tensor], kind: DigestKind) -> Result<BTreeMap<String, String>, Error> {
    let (staging, slots) = staging(tensors).unzip();
    let slots = Mutex::new(slots.unwrap_or_default());
    let next = AtomicUsize::new(0);
    let digests = Mutex::new(Ok(BTreeMap::new()));
    let work = || {
        let mut reader = Reader::new(kind, &slots);
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
        for _ in 1..cores() {
            // Past a limit of threads, this one does it all.
            if Builder::new().spawn_scoped(scope, work).is_err() {
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

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Digests of tensors while the rest of their load is on its way: on threads of its own, one less
/// than there are cores, or one.
///
/// ```no_run
/// use forebay::{DigestKind, Digester, Loader};
///
/// let mut load = Loader::new("model.gguf").start()?;
/// let mut digester = Digester::new(DigestKind::Blake3);
/// for tensor in &mut load {
///     digester.take(tensor?);
/// }
/// let loaded = load.finish()?;
/// println!("{:?}", digester.finish()?);
/// # Ok::<(), forebay::Error>(())
/// ```
///
/// Dropping it ends its threads.
#[derive(Debug)]
pub struct Digester {
    kind: DigestKind,
    /// `None` once all is given.
    tensors: Option<Sender<Tensor>>,
    given: Receiver<Tensor>,
    workers: Vec<JoinHandle<Digests>>,
    /// What comes back through the load's own staging memory, so after the load.
    after_the_load: Vec<Tensor>,
    is_wanted: Arc<AtomicBool>,
}

type Digests = Result<BTreeMap<String, String>, Error>;

impl Digester {
    /// Starts its threads.
    #[must_use]
    pub fn new(kind: DigestKind) -> Self {
        let (sender, given) = unbounded();
        let is_wanted = Arc::new(AtomicBool::new(true));
        let worker = |_| {
            let (given, is_wanted) = (given.clone(), Arc::clone(&is_wanted));
            let work = move || work(kind, &given, &is_wanted);
            Builder::new().name("forebay-digest".to_owned()).spawn(work).ok()
        };
        // Past a limit of threads, `finish` does it all.
        let workers = (1..cores().max(2)).map_while(worker).collect();
        let after_the_load = Vec::new();
        Self { kind, tensors: Some(sender), given, workers, after_the_load, is_wanted }
    }

    /// A tensor that has landed. Its turn comes at once, or when the load is over for what lies on
    /// CUDA devices.
    pub fn take(&mut self, tensor: Tensor) {
        match &self.tensors {
            Some(tensors) if tensor.on_cuda().is_none() => {
                // Its receiver is held beside it.
                let _ = tensors.send(tensor);
            }
            _ => self.after_the_load.push(tensor),
        }
    }

    /// Every tensor's digest as hex, by name, once all are made. To be called when the load is over.
    ///
    /// # Errors
    /// As [`Tensor::read_into`].
    pub fn finish(mut self) -> Result<BTreeMap<String, String>, Error> {
        self.tensors = None;
        let mut digests = work(self.kind, &self.given, &self.is_wanted)?;
        for worker in std::mem::take(&mut self.workers) {
            digests.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        digests.extend(all(&self.after_the_load, self.kind)?);
        Ok(digests)
    }
}

/// Hashes what is given until there is no more.
fn work(kind: DigestKind, given: &Receiver<Tensor>, is_wanted: &AtomicBool) -> Digests {
    let is_wanted = || is_wanted.load(Ordering::Relaxed);
    let mut digests = BTreeMap::new();
    while let Ok(tensor) = given.recv() {
        let Some(digest) = hashed(&tensor, kind, &is_wanted)? else { break };
        digests.insert(tensor.name().to_owned(), digest);
    }
    Ok(digests)
}

impl Drop for Digester {
    fn drop(&mut self) {
        self.is_wanted.store(false, Ordering::Relaxed);
        self.tensors = None;
        for worker in self.workers.drain(..) {
            // What it panicked with has been printed, and nobody wants its digests.
            let _ = worker.join();
        }
    }
}
