//! A load under way, for callers that take tensors one by one.

use crate::edge::{given, handle, place};
use crate::info::Infos;
use crate::loaded::Loaded;
use crate::loader::{Loader, OnTensor, Stop};
use crate::status::{Failure, Status, answer, guard};
use crate::tensor::{Tensor, View};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

/// A load whose tensors are landing.
pub struct Load {
    load: forebay::Load,
    infos: Arc<Infos>,
    /// By tensor: those that have been handed out.
    views: Vec<Option<Arc<View>>>,
    stop: Stop,
    on_tensor: Option<OnTensor>,
    failure: Option<Failure>,
}

impl Load {
    pub(crate) fn new(load: forebay::Load, stop: Stop, on_tensor: Option<OnTensor>) -> Self {
        let infos = Arc::new(Infos::of(load.catalog()));
        let views = (0..infos.len()).map(|_| None).collect();
        Self { load, infos, views, stop, on_tensor, failure: None }
    }

    fn next(&mut self) -> Result<Option<*const Tensor>, Failure> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let next = self.load.next().transpose().map_err(Failure::from);
        // What a callback has said counts before what came of it.
        match self.stop.check().and(next) {
            Ok(tensor) => Ok(tensor.and_then(|tensor| self.view(tensor))),
            Err(failure) => {
                // A callback has stopped it: nothing may run any more when the caller hears of it.
                self.load.by_ref().for_each(drop);
                Err(self.failure.insert(failure).clone())
            }
        }
    }

    fn view(&mut self, tensor: forebay::Tensor) -> Option<*const Tensor> {
        let index = self.load.catalog().position(tensor.name())?;
        let info = self.infos.get(index)?;
        let view = Arc::new(View::new(tensor, info));
        Some(self.views[index].insert(view).as_ptr())
    }

    pub(crate) fn finish(mut self) -> Result<Loaded, Failure> {
        while let Some(tensor) = self.next()? {
            if self.on_tensor.as_ref().is_some_and(|on_tensor| !on_tensor.call(tensor)) {
                self.stop.stop();
            }
            self.stop.check()?;
        }
        let Self { load, infos, views, stop, .. } = self;
        let loaded = load.finish()?;
        stop.check()?;
        Ok(Loaded::new(loaded, infos, views))
    }
}

/// Opens, plans and starts; returns as soon as reads are under way. Tensors land from then on,
/// whether or not anybody takes them. The loader is consumed, also by a failure.
///
/// FOREBAY_FILE, FOREBAY_FORMAT, FOREBAY_OPTION, FOREBAY_MEMORY, FOREBAY_DEVICE,
/// FOREBAY_DEVICE_MEMORY, FOREBAY_CANCELLED.
///
/// Threads: one at a time. The caller hands the load to forebay_load_finish, or frees it with
/// forebay_load_free.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_load_start(
    loader: Option<Box<Loader>>,
    load: Option<&mut MaybeUninit<*mut Load>>,
) -> Status {
    guard(|| {
        let load = place(load, ptr::null_mut())?;
        *load = handle(given(loader, "loader")?.start()?);
        Ok(())
    })
}

/// Waits for the next tensor that has landed, whole and where it belongs; NULL is written with
/// FOREBAY_OK when there is no more. It lives as long as the load, and once forebay_load_finish has
/// answered FOREBAY_OK, as long as what that wrote.
///
/// Fails as forebay_loader_run does; then nothing of the load runs any more, and it fails with the
/// same again.
///
/// Threads: one at a time; it blocks. Tensors that it has handed out may be used by other threads
/// meanwhile, until the load is freed or forebay_load_finish has failed.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_load_next(
    load: Option<&mut Load>,
    tensor: Option<&mut MaybeUninit<*const Tensor>>,
) -> Status {
    guard(|| {
        let tensor = place(tensor, ptr::null())?;
        *tensor = given(load, "load")?.next()?.unwrap_or(ptr::null());
        Ok(())
    })
}

/// How many bytes of how many are where they belong.
///
/// Threads: one at a time; forebay_loader_on_progress is for hearing of it during a wait.
///
/// The two places differ.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_load_progress(
    load: Option<&mut Load>,
    done_bytes: Option<&mut MaybeUninit<u64>>,
    total_bytes: Option<&mut MaybeUninit<u64>>,
) -> Status {
    guard(|| {
        let (done, total) = (place(done_bytes, 0)?, place(total_bytes, 0)?);
        let progress = given(load, "load")?.load.progress();
        (*done, *total) = (progress.done_bytes, progress.total_bytes);
        Ok(())
    })
}

/// Waits for everything and hands the whole model over. Only then is the load a success: that a
/// file was changed under it is found out at the end. The load is consumed, also by a failure;
/// tensors that were handed out are then gone.
///
/// Fails as forebay_loader_run does, and with what forebay_load_next has failed with.
///
/// Threads: one at a time; it blocks. The caller frees the result with forebay_loaded_free.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_load_finish(
    load: Option<Box<Load>>,
    loaded: Option<&mut MaybeUninit<*mut Loaded>>,
) -> Status {
    guard(|| {
        let loaded = place(loaded, ptr::null_mut())?;
        *loaded = handle(given(load, "load")?.finish()?);
        Ok(())
    })
}

/// Stops the load, waits until nothing is in flight, and frees it with the tensors that it has
/// handed out. NULL is fine.
///
/// Threads: any, once nobody uses it; it blocks for as long as reads in flight take.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_load_free(load: Option<Box<Load>>) {
    answer((), || {
        drop(load);
        Ok(())
    });
}
