//! What a device takes to be ready, done beside what the files take.
//!
//! Initialising the driver and making a context take tenths of seconds on real devices, and pinning
//! staging memory takes time by its size. None of it depends on the model.

use crate::backend::Backend;
use crate::loader::{GpuLayers, Options};
use crate::plan::{Staging, near_devices};
use forebay_device::cuda::{self, Context, DeviceInfo};
use forebay_mem::Alignment;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A device being made ready; what fails is found out again, and told, by the load.
pub(crate) struct WarmUp(Option<JoinHandle<Option<Arc<Context>>>>);

impl WarmUp {
    /// Begins, where a load with these options may copy to a device.
    pub(crate) fn begin(options: &Options) -> Self {
        let copies = options.gpu_layers != GpuLayers::Count(0) || !options.place.is_empty();
        if !options.device.may_be_cuda() || !copies {
            return Self(None);
        }
        let options = options.clone();
        let name = "forebay-warm-up".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || warm_up(&options));
        Self(thread.ok())
    }

    /// Waits until it is ready, which it stays for as long as the context is held.
    pub(crate) fn finish(mut self) -> Option<Arc<Context>> {
        // A panic there costs what would have been saved.
        self.0.take()?.join().ok().flatten()
    }
}

/// The staging memory goes to those that are kept, where the load finds it if its files ask for no
/// other alignment than most do.
fn warm_up(options: &Options) -> Option<Arc<Context>> {
    let mut chosen = options.device.resolve().ok()?.chosen;
    chosen.sort_unstable();
    let infos = chosen.iter().filter_map(|device| match device {
        Backend::Cuda(ordinal) => cuda::device(*ordinal).ok().filter(|info| !info.is_integrated),
        _ => None,
    });
    let infos: Vec<DeviceInfo> = infos.collect();
    let context = Context::of(infos.first()?.ordinal).ok()?;
    let staging = Staging::new(options, Alignment::FALLBACK).ok()?;
    let (shape, _) = near_devices(&staging, options.numa, infos.iter());
    let (staging, tokens) = cuda::Staging::take(&context, &shape).ok()?;
    drop(tokens);
    staging.keep();
    Some(context)
}

impl Drop for WarmUp {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}
