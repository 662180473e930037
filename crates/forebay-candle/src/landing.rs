//! One load into candle's memory, whatever candle is to make of it.

use crate::error::Error;
use crate::memory::{Lending, Lent};
use forebay::{
    Backend, Catalog, DeviceChoice, Dtype, LoadReport, Loader, Metadata, PlaceRule, Prefetch,
    Repack,
};
use std::collections::BTreeMap;

/// What is done about tensors that candle can't have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// They are an error, before anything is read.
    Refused,
    /// They stay where they are, and are an error for those who ask for them.
    Left,
}

/// What candle is to have: by what name it calls it, which shapes it takes, and room for one.
pub(crate) struct Kind<S> {
    pub(crate) name: &'static str,
    pub(crate) takes: fn(Dtype, &[u64]) -> bool,
    pub(crate) room: fn(Dtype, usize) -> Option<Lending<S>>,
}

/// The tensors that candle can't have, by name.
#[derive(Default)]
pub(crate) struct Left {
    wanted: &'static str,
    tensors: BTreeMap<String, Unfit>,
}

/// A tensor that candle can't have.
struct Unfit {
    dtype: Dtype,
    shape: Vec<u64>,
    /// How its dimensions lie, if not as the shape has them.
    order: Option<String>,
}

impl Left {
    /// Why there is no tensor of that name.
    pub(crate) fn why_not(&self, name: &str) -> Error {
        let tensor = name.to_owned();
        match self.tensors.get(name) {
            Some(Unfit { order: Some(order), .. }) => {
                Error::Reordered { tensor, order: order.clone() }
            }
            Some(Unfit { dtype, shape, .. }) => {
                let (dtype, shape) = (*dtype, shape.clone());
                Error::Unsupported { tensor, dtype, shape, wanted: self.wanted }
            }
            None => Error::NoTensor { tensor },
        }
    }

    /// Names and types.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, Dtype)> {
        self.tensors.iter().map(|(name, unfit)| (name.as_str(), unfit.dtype))
    }
}

/// A tensor that has landed.
pub(crate) struct Landed<S> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) storage: S,
}

/// All that a load has brought.
pub(crate) struct Outcome<S> {
    pub(crate) landed: Vec<Landed<S>>,
    pub(crate) left: Left,
    pub(crate) metadata: Metadata,
    pub(crate) report: LoadReport,
}

/// A tensor of the catalog, and the memory that it will have.
struct Destination<S> {
    tensor: Planned,
    lent: Box<dyn Lent<S>>,
}

/// What the memory was measured by.
#[derive(PartialEq, Eq)]
struct Planned {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
}

/// Loads every tensor that candle can have into memory that is candle's from the start.
pub(crate) fn land<S: 'static>(
    loader: Loader,
    kind: &Kind<S>,
    unknown: Unknown,
) -> Result<Outcome<S>, Error> {
    // All goes to memory of candle's, in the file's order of bytes. What candle can't have is
    // left in a mapping that nobody touches.
    let loader = loader
        .device(DeviceChoice::Device(Backend::Host))
        .place(not_lent())
        .prefetch(Prefetch::Off)
        .repack(Repack::Off);
    let (mut destinations, left) = take_memory(loader.plan()?.model().catalog(), kind, unknown)?;
    // Declared after the memory, and so dropped before it.
    let mut borrower = loader;
    for Destination { tensor, lent } in &mut destinations {
        // SAFETY: `destinations` owns the memory, is not touched before the load has ended, and
        // outlives it: whether `load` returns or unwinds, no thread of it runs any more.
        let pointer = unsafe { lent.pointer() };
        borrower = borrower.into_host_memory(&tensor.name, pointer);
    }
    let loaded = borrower.load()?;
    for Destination { tensor, .. } in &destinations {
        check(tensor, loaded.catalog())?;
    }
    let (metadata, report) = (loaded.catalog().metadata().clone(), loaded.report().clone());
    drop(loaded);
    let landed = destinations.into_iter().map(|Destination { tensor, lent }| {
        let fits = "a dimension of a tensor in memory";
        let shape = tensor.shape.iter().map(|&n| usize::try_from(n).expect(fits)).collect();
        // SAFETY: the load has ended without an error, so each tensor is whole, and the tensor of
        // this name has as many bytes as its room, as `check` has seen. Nobody else has the load's
        // tensors, which are gone.
        let storage = unsafe { lent.into_storage() };
        Landed { name: tensor.name, shape, storage }
    });
    Ok(Outcome { landed: landed.collect(), left, metadata, report })
}

/// Memory for every tensor that candle can have; the others.
fn take_memory<S>(
    catalog: &Catalog,
    kind: &Kind<S>,
    unknown: Unknown,
) -> Result<(Vec<Destination<S>>, Left), Error> {
    let mut left = Left { wanted: kind.name, tensors: BTreeMap::new() };
    let mut destinations = Vec::with_capacity(catalog.tensors().len());
    for tensor in catalog.tensors() {
        let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
        let refused = || Error::Memory { tensor: tensor.name.clone(), bytes: tensor.bytes };
        let bytes = usize::try_from(tensor.bytes).map_err(|_| refused())?;
        let order = catalog.metadata().get(&format!("ptd.dim_order.{name}"));
        let order = order.map(|order| format!("{order:?}"));
        let room = || (kind.room)(dtype, bytes);
        let fits = order.is_none() && (kind.takes)(dtype, &shape);
        let Some(lent) = fits.then(room).flatten() else {
            left.tensors.insert(name.clone(), Unfit { dtype, shape, order });
            if unknown == Unknown::Refused {
                return Err(left.why_not(&name));
            }
            continue;
        };
        let lent = lent.map_err(|_| refused())?;
        destinations.push(Destination { tensor: Planned { name, dtype, shape }, lent });
    }
    Ok((destinations, left))
}

/// That the file that was loaded has the tensor that the room was taken for: the loader opens it
/// anew.
fn check(planned: &Planned, catalog: &Catalog) -> Result<(), Error> {
    let same = catalog
        .tensor(&planned.name)
        .is_some_and(|found| found.dtype == planned.dtype && found.shape == planned.shape);
    if same { Ok(()) } else { Err(Error::Replaced { tensor: planned.name.clone() }) }
}

/// Lent memory is used whatever a rule says, so this is about the rest.
fn not_lent() -> PlaceRule {
    "=cpu".parse().expect("an empty pattern is one, and matches every name")
}
