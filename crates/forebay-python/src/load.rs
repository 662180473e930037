//! Loads into memory that tensors of Python will have.

use crate::errors;
use crate::memory::Memory;
use crate::model::Model;
use crate::options;
use forebay::{Cancel, Catalog, DevicePointer, Error, GpuLayers, Loader, Tensor, Writes};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::HashSet;
use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// How often whoever waits looks at signals, and tells how far the load has come.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(20);

/// Memory of a CUDA device that Python code lends: the tensor's name, the number of the device,
/// the address, the length, and the object that owns it.
type Lent = (String, u32, u64, u64, Py<PyAny>);

/// A load under way: an iterator over names and memory, in the order in which tensors land.
#[pyclass(frozen, module = "forebay._forebay")]
pub(crate) struct Load {
    state: Mutex<State>,
    cancel: Cancel,
    /// What a signal handler or the progress callback has raised.
    raised: Arc<Mutex<Option<PyErr>>>,
    /// The thread that waits for a tensor, and calls handlers and callbacks meanwhile.
    waiting: Mutex<Option<ThreadId>>,
    /// The process that began it.
    origin: u32,
}

/// In the order in which it must be dropped: the load writes to memory until it has gone.
struct State {
    load: Option<forebay::Load>,
    /// The tensors that memory is lent for.
    lent: HashSet<String>,
    /// Those that others share bytes of the file with.
    sharing: HashSet<String>,
    /// What owns the memory of devices.
    owners: Vec<Py<PyAny>>,
    report: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves a load that answers nothing more, and nothing worse.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What comes of waiting for the next tensor.
type Landed = ControlFlow<PyResult<()>, (String, Option<Memory>)>;

impl State {
    fn next(&mut self, cancel: &Cancel) -> Landed {
        let Some(load) = &mut self.load else { return ControlFlow::Break(Ok(())) };
        if cancel.is_cancelled() {
            // Whatever has landed meanwhile.
            self.stop();
            return ControlFlow::Break(Err(errors::raise(&Error::Cancelled)));
        }
        match load.next() {
            Some(Ok(tensor)) => self.landed(tensor),
            Some(Err(error)) => {
                self.stop();
                ControlFlow::Break(Err(errors::raise(&error)))
            }
            None => ControlFlow::Break(self.finish()),
        }
    }

    fn landed(&mut self, tensor: Tensor) -> Landed {
        let name = tensor.name().to_owned();
        if self.lent.contains(&name) {
            return ControlFlow::Continue((name, None));
        }
        match Memory::landed(tensor, self.sharing.contains(&name)) {
            Ok(memory) => ControlFlow::Continue((name, Some(memory))),
            Err(error) => {
                self.stop();
                ControlFlow::Break(Err(errors::raise(&error)))
            }
        }
    }

    /// The last word: that no file has changed.
    fn finish(&mut self) -> PyResult<()> {
        let Some(load) = self.load.take() else { return Ok(()) };
        let outcome = load.finish();
        let report = outcome.map(|loaded| serde_json::to_string(loaded.report()));
        self.stop();
        let report = report.map_err(|error| errors::raise(&error))?;
        self.report = Some(report.map_err(|error| errors::of_class("Error", &error.to_string()))?);
        Ok(())
    }

    /// Ends the load and lets go of what was lent to it.
    fn stop(&mut self) {
        self.load = None;
        let owners = mem::take(&mut self.owners);
        Python::attach(|_| drop(owners));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.stop();
    }
}

#[pymethods]
impl Load {
    /// Starts a load of all of `model`: into memory of devices where it is lent for a tensor; the
    /// others stay on the CPU. `progress` is called with bytes that have landed and all bytes.
    #[new]
    #[pyo3(signature = (model, lent, progress, **given))]
    fn new(
        py: Python<'_>,
        model: &Model,
        lent: Vec<Lent>,
        progress: Option<Py<PyAny>>,
        given: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mut options = given.map(options::parse).transpose()?.unwrap_or_default();
        options.gpu_layers = GpuLayers::Count(0);
        options.mapped_writes = Writes::Copied;
        let cancel = Cancel::default();
        let raised = Arc::default();
        let mut loader = Loader::of(model.opened())
            .options(options)
            .cancel_with(&cancel)
            .progress_interval(SIGNAL_INTERVAL)
            .on_progress(watch(progress, &cancel, &raised));
        let mut owners = Vec::new();
        let names = lent.iter().map(|lent| lent.0.clone()).collect();
        for (name, ordinal, address, bytes, owner) in lent {
            // SAFETY: the package lends what it has allocated for this tensor alone, after the
            // device's queues were synchronised; its owner is kept until the load is gone, and
            // no other Python code has it before the tensor has landed.
            let memory = unsafe { DevicePointer::new(ordinal, address, bytes) };
            loader = loader.into_device_memory(&name, memory);
            owners.push(owner);
        }
        let sharing = sharing(model.catalog());
        let load = py.detach(|| loader.start()).map_err(|error| errors::raise(&error))?;
        let state = State { load: Some(load), lent: names, sharing, owners, report: None };
        let (state, waiting) = (Mutex::new(state), Mutex::default());
        Ok(Self { state, cancel, raised, waiting, origin: std::process::id() })
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    /// The next tensor's name, and its memory if that is ours.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<(String, Option<Memory>)>> {
        if !self.is_here() {
            return Err(errors::raise(&Error::Forked { origin: self.origin }));
        }
        let next = py.detach(|| {
            let mut state = lock(&self.state);
            let _waits = Waits::note(&self.waiting);
            state.next(&self.cancel)
        });
        // Whoever raised is why the load ended, whatever the load says of it.
        if let Some(raised) = lock(&self.raised).take() {
            self.close(py);
            return Err(raised);
        }
        match next {
            ControlFlow::Continue(landed) => Ok(Some(landed)),
            ControlFlow::Break(outcome) => outcome.map(|()| None),
        }
    }

    /// Stops the load, from any thread: whoever waits for it gets `forebay.Cancelled`.
    fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Stops the load and waits for its end, unless a handler or a callback of the thread that waits
    /// for it asks: that thread goes on when it returns. What has landed stays.
    fn close(&self, py: Python<'_>) {
        if !self.is_here() {
            return;
        }
        self.cancel.cancel();
        if *lock(&self.waiting) != Some(thread::current().id()) {
            py.detach(|| lock(&self.state).stop());
        }
    }

    /// What happened, as JSON, once everything has landed.
    fn report(&self, py: Python<'_>) -> Option<String> {
        py.detach(|| lock(&self.state).report.clone())
    }
}

impl Load {
    /// Whether this is the process that began it; in another one its threads are not, and nobody
    /// lets go of what they held.
    fn is_here(&self) -> bool {
        self.origin == std::process::id()
    }
}

impl Drop for Load {
    /// Others run while it waits for the load's end.
    fn drop(&mut self) {
        self.cancel.cancel();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // At the interpreter's end there are no others, and the state's own drop does it.
        Python::try_attach(|py| py.detach(|| state.stop()));
    }
}

/// Notes which thread waits, until it is dropped.
struct Waits<'load>(&'load Mutex<Option<ThreadId>>);

impl<'load> Waits<'load> {
    fn note(waiting: &'load Mutex<Option<ThreadId>>) -> Self {
        *lock(waiting) = Some(thread::current().id());
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        *lock(self.0) = None;
    }
}

/// The names of tensors that lie on the same bytes as another.
fn sharing(catalog: &Catalog) -> HashSet<String> {
    let mut tensors: Vec<_> = catalog.tensors().iter().filter(|tensor| tensor.bytes > 0).collect();
    tensors.sort_by_key(|tensor| (tensor.file, tensor.offset));
    let mut sharing = HashSet::new();
    let mut furthest: Option<&forebay_format::Tensor> = None;
    for tensor in tensors {
        let before = furthest.filter(|before| before.file == tensor.file);
        if let Some(before) = before.filter(|before| before.end() > tensor.offset) {
            sharing.extend([before.name.clone(), tensor.name.clone()]);
        }
        furthest = before.filter(|before| before.end() > tensor.end()).or(Some(tensor));
    }
    sharing
}

/// Looks at signals and tells progress; whatever is raised stops the load.
fn watch(
    progress: Option<Py<PyAny>>,
    cancel: &Cancel,
    raised: &Arc<Mutex<Option<PyErr>>>,
) -> impl FnMut(forebay::Progress) + Send + use<> {
    let (cancel, raised) = (cancel.clone(), Arc::clone(raised));
    move |state| {
        let told = Python::attach(|py| {
            py.check_signals()?;
            match &progress {
                Some(progress) => {
                    progress.call1(py, (state.done_bytes, state.total_bytes)).map(drop)
                }
                None => Ok(()),
            }
        });
        if let Err(error) = told {
            lock(&raised).get_or_insert(error);
            cancel.cancel();
        }
    }
}
