//! The raw read ceiling: the model's files read by our own io_uring engine with direct I/O, every
//! byte thrown away. What a load reaches is said as a share of this.

use crate::failure::Failure;
use crossbeam_channel::bounded;
use forebay::Cancel;
use forebay_io::{Access, Fallback, Filled, ModelFile, Performer, ReadJob, ReadSpec, Schedule};
use forebay_mem::{Alignment, Slab};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// A read's size and how many are in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) chunk_bytes: u32,
    pub(crate) depth: usize,
}

/// The shapes that are tried; the best median is the ceiling.
pub(crate) const SHAPES: [Shape; 3] = [
    Shape { chunk_bytes: 1 << 20, depth: 8 },
    Shape { chunk_bytes: 4 << 20, depth: 8 },
    Shape { chunk_bytes: 1 << 20, depth: 32 },
];

impl Shape {
    pub(crate) fn name(self) -> String {
        format!("{}MiB x {}", self.chunk_bytes >> 20, self.depth)
    }
}

/// Reads all of `paths` once, and returns GiB/s.
pub(crate) fn measure(paths: &[PathBuf], shape: Shape) -> Result<f64, Failure> {
    let files = paths.iter().map(|path| ModelFile::open(path));
    let files: Vec<ModelFile> = files.collect::<Result<_, _>>().map_err(forebay::Error::from)?;
    let alignment = |file: &ModelFile| {
        file.direct().map_or(Alignment::FALLBACK, |(_, alignment)| alignment.offset)
    };
    let alignments: Vec<Alignment> = files.iter().map(alignment).collect();
    let reads: Arc<[ReadSpec]> = (files.iter().zip(&alignments).enumerate())
        .flat_map(|(index, (file, &alignment))| reads_of(index, file.bytes(), alignment, shape))
        .collect();
    let bytes: u64 = files.iter().map(ModelFile::bytes).sum();
    let slots = shape.depth;
    let (slab, tokens) = Slab::new(shape.chunk_bytes as usize, slots)
        .map_err(|error| Failure::caused("no memory to measure the ceiling with", &error))?;
    let (free_sender, free) = bounded(slots);
    let (full, filled) = bounded::<Filled>(slots);
    for token in tokens {
        // The channel has room for every slot.
        let _ = free_sender.send(token);
    }
    let recycle = move || {
        for Filled { slot, .. } in filled {
            if free_sender.send(slot.drain().release()).is_err() {
                return;
            }
        }
    };
    let recycler = std::thread::Builder::new()
        .spawn(recycle)
        .map_err(|error| Failure::caused("no thread to measure the ceiling with", &error))?;
    let mut schedule =
        Schedule::new(reads, &alignments, slots, Performer::Uring, Fallback::Allowed);
    for (index, file) in files.iter().enumerate() {
        if let Err(errno) = file.direct() {
            schedule.refuse_at_open(index, Access::Direct, errno, "no direct reads here");
        }
    }
    let job = ReadJob {
        mappings: vec![None; files.len()],
        files: files.into(),
        schedule,
        places: Vec::new(),
        slab,
        free: free.into(),
        full,
        cancel: Cancel::default(),
        queue_depth: shape.depth,
        buffered_by_workers: false,
        reclaim: Vec::new(),
        trace: None,
        fault: None,
    };
    let started = Instant::now();
    let outcome = job.run();
    let seconds = started.elapsed().as_secs_f64();
    // It ends when the reader's channel does.
    let _ = recycler.join();
    match outcome.schedule.failure() {
        Some(failure) => Err(Failure::caused("the raw read failed", failure)),
        None => Ok(crate::output::gib(bytes) / seconds),
    }
}

fn reads_of(
    file: usize,
    file_bytes: u64,
    alignment: Alignment,
    shape: Shape,
) -> impl Iterator<Item = ReadSpec> {
    let chunk_bytes = u64::from(shape.chunk_bytes);
    (0..file_bytes.div_ceil(chunk_bytes)).map(move |number| {
        let offset = number * chunk_bytes;
        let need = (file_bytes - offset).min(chunk_bytes);
        let bytes = alignment.up(need).unwrap_or(chunk_bytes);
        let narrow = |bytes: u64| u32::try_from(bytes).unwrap_or(shape.chunk_bytes);
        ReadSpec {
            file,
            offset,
            bytes: narrow(bytes),
            need_bytes: narrow(need),
            access: Access::Direct,
        }
    })
}
