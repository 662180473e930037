//! What a stream of layers is made from.

use super::stream::LayerStream;
use super::units::Grouping;
use crate::error::Error;
use crate::options::Options;
use forebay_io::{Cancel, Fault};
use forebay_trace::Trace;
use std::path::{Path, PathBuf};

/// Says what to stream and how, then starts.
pub struct LayerStreamBuilder {
    pub(super) path: PathBuf,
    pub(super) options: Options,
    pub(super) device_budget: Option<u64>,
    pub(super) host_budget: Option<u64>,
    pub(super) grouping: Option<Box<Grouping>>,
    pub(super) passes: Option<u64>,
    pub(super) cancel: Cancel,
    pub(super) trace: Option<Trace>,
    pub(super) fault: Option<Box<dyn Fault>>,
}

impl LayerStreamBuilder {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            options: Options::default(),
            device_budget: None,
            host_budget: None,
            grouping: None,
            passes: None,
            cancel: Cancel::default(),
            trace: None,
            fault: None,
        }
    }

    /// The device, the placement of tensors that stay on the CPU, the load mode, the engine and the
    /// staging memory. Exactly one device; tensors of the CPU stay mapped.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Bytes that weights may take on the device. If not given: nine tenths of what a GPU has free,
    /// or half of the memory at hand for the stand-in `host`.
    #[must_use]
    pub fn device_budget(mut self, bytes: u64) -> Self {
        self.device_budget = Some(bytes);
        self
    }

    /// Bytes of (pinned) host memory that may keep layers between passes, beside the staging
    /// memory. If not given: half of the memory at hand.
    #[must_use]
    pub fn host_budget(mut self, bytes: u64) -> Self {
        self.host_budget = Some(bytes);
        self
    }

    /// Groups tensors by a number for each name; the groups are used in the order of the numbers.
    /// If not given: by layer (`blk.N.`, `model.layers.N.`, `transformer.h.N.`, …), with the
    /// embeddings before and the rest behind.
    #[must_use]
    pub fn group_by(mut self, group: impl Fn(&str) -> u32 + Send + Sync + 'static) -> Self {
        self.grouping = Some(Box::new(group));
        self
    }

    /// How many passes there will be, so that nothing is brought for another one.
    #[must_use]
    pub fn passes(mut self, passes: u64) -> Self {
        self.passes = Some(passes);
        self
    }

    /// Lets `cancel` stop the stream from any thread.
    #[must_use]
    pub fn cancel_with(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Records reads, uploads, waits and layers on a timeline.
    #[must_use]
    pub fn trace(mut self, trace: &Trace) -> Self {
        self.trace = Some(trace.clone());
        self
    }

    /// For tests of the stream itself: tampers with what the engines see.
    #[doc(hidden)]
    #[must_use]
    pub fn fault(mut self, fault: Box<dyn Fault>) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Opens, plans and starts; the first layers are on their way when it returns.
    ///
    /// # Errors
    /// As [`crate::Loader::start`]; [`Error::Budget`] where the largest layer does not fit.
    pub fn start(self) -> Result<LayerStream, Error> {
        LayerStream::start(self)
    }
}
