//! What a device takes to be ready, done beside what the files take.
//!
//! Initialising the driver and making a context take tenths of seconds on real devices, and pinning
//! staging memory takes time by its size. None of it depends on the model.

use crate::backend::Backend;
use crate::options::{GpuLayers, Options, PlaceRule, Target};
use crate::plan::{Staging, near_devices};
use forebay_device::cuda::{self, Context, DeviceInfo};
use forebay_mem::Alignment;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Devices being made ready; what fails is found out again, and told, by the load.
pub(crate) struct WarmUp(Option<JoinHandle<Vec<Arc<Context>>>>);

impl WarmUp {
    /// Begins, where a load with these options may copy to a device.
    pub(crate) fn begin(options: &Options) -> Self {
        let to_device = |rule: &PlaceRule| match &rule.target {
            Target::Device | Target::Split(..) => true,
            Target::Whole(backend) => matches!(backend, Backend::Cuda(_)),
        };
        let copies =
            options.gpu_layers != GpuLayers::Count(0) || options.place.iter().any(to_device);
        if !options.device.may_be_cuda() || !copies {
            return Self(None);
        }
        let options = options.clone();
        let name = "forebay-warm-up".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || warm_up(&options));
        Self(thread.ok())
    }

    /// Waits until they are ready, which they stay for as long as the contexts are held.
    pub(crate) fn finish(mut self) -> Vec<Arc<Context>> {
        // A panic there costs what would have been saved.
        self.0.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// Contexts take each device its time, and so are made side by side. The staging memory is kept
/// where the load finds it, if its files ask for no other alignment than most do.
fn warm_up(options: &Options) -> Vec<Arc<Context>> {
    let Ok(devices) = options.device.resolve() else { return Vec::new() };
    let mut chosen = devices.chosen;
    chosen.sort_unstable();
    let infos = chosen.iter().filter_map(|device| match device {
        Backend::Cuda(ordinal) => cuda::device(*ordinal).ok().filter(|info| !info.is_integrated),
        _ => None,
    });
    let infos: Vec<DeviceInfo> = infos.collect();
    let contexts: Vec<Arc<Context>> = std::thread::scope(|scope| {
        let make = |info: &DeviceInfo| {
            let ordinal = info.ordinal;
            std::thread::Builder::new().spawn_scoped(scope, move || Context::of(ordinal).ok()).ok()
        };
        let making: Vec<_> = infos.iter().filter_map(make).collect();
        making.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
    });
    if let (Some(first), Ok(staging)) =
        (contexts.first(), Staging::new(options, Alignment::FALLBACK, true))
    {
        let (shape, _) = near_devices(&staging, options.numa, infos.iter());
        // What is refused is refused again when it is needed.
        let _ = cuda::Staging::prepare(first, &shape);
    }
    contexts
}

impl Drop for WarmUp {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}
