//! Stands in for the devices where the program is built without CUDA: there are none, so nothing of
//! them can be made, and what takes one can't be called.

use super::choice::{Choice, DenseProducts, Operand};
use super::error::{DriverRefusal, Unavailable};
use super::info::{DeviceInfo, MatrixCeiling};
use super::pointer::DevicePointer;
use crate::arena::{ArenaLayout, HostArena};
use crate::error::DeviceError;
use crate::pool::{Bay, BayArena};
use crate::uploader::{Columns, Segment, Writer};
use crossbeam_channel::Sender;
use forebay_mem::{Draining, Filling, Region, Slot};
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

/// A device that is in use.
#[derive(Debug)]
pub enum Context {}

/// Memory of one device for a set of tensors.
#[derive(Debug)]
pub enum CudaArena {}

/// The right to fill the tensors of one arena that are not published yet.
#[derive(Debug)]
pub enum CudaWriter {}

/// Memory of the machine that the driver has pinned.
#[derive(Debug)]
pub enum HostRegistration {}

/// An allocation that bays are taken of.
#[derive(Debug)]
pub enum PoolMemory {}

impl PoolMemory {
    pub(crate) fn new(context: &Arc<Context>, _bytes: u64) -> Result<Self, DeviceError> {
        match **context {}
    }

    pub(crate) fn arena(&self, _bay: Bay, _layout: &ArenaLayout) -> (BayArena, Writer) {
        match *self {}
    }
}

/// Reads tensors back through a slot of staging memory.
#[derive(Debug)]
pub enum ReadBack {}

/// The copies out of a slot to one device have completed.
#[derive(Debug)]
pub enum Completion {}

/// The stream that copies to one device.
#[derive(Debug)]
pub(crate) enum CopyQueue {}

/// A queue of products for one device.
#[derive(Debug)]
pub enum ComputeStream {}

/// `f32` numbers in a device's memory.
#[derive(Debug)]
pub enum DeviceFloats {}

/// A matrix that a device reaches.
#[derive(Clone, Debug)]
pub enum Weights {}

/// Where the tensors of an arena lie.
#[derive(Debug)]
pub enum Memory {
    /// In one allocation that the arena makes, laid out so.
    Own(ArenaLayout),
    /// Each where the embedder says.
    Lent(Vec<DevicePointer>),
}

/// Every device of this machine.
///
/// # Errors
/// Always.
pub fn devices() -> Result<Vec<DeviceInfo>, Unavailable> {
    Err(Unavailable::NotBuilt)
}

/// One device, by its number.
///
/// # Errors
/// Always.
pub fn device(_ordinal: u32) -> Result<DeviceInfo, Unavailable> {
    Err(Unavailable::NotBuilt)
}

/// The newest CUDA that the driver serves.
///
/// # Errors
/// Always.
pub fn driver_version() -> Result<(u32, u32), Unavailable> {
    Err(Unavailable::NotBuilt)
}

/// Copies from pinned memory to a device.
///
/// # Errors
/// Always.
pub fn upload_ceiling(_ordinal: u32, _bytes: u64) -> Result<Duration, DeviceError> {
    Err(Unavailable::NotBuilt.into())
}

/// Measures what a device makes of operands at most.
///
/// # Errors
/// None: it can't be called.
pub fn matrix_ceiling(
    context: &Arc<Context>,
    _operand: Operand,
    _size: u32,
    _repeat: u32,
) -> Result<Option<MatrixCeiling>, DeviceError> {
    match **context {}
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "none of these can be called")]
impl Context {
    pub fn of(_ordinal: u32) -> Result<Arc<Self>, Unavailable> {
        Err(Unavailable::NotBuilt)
    }

    #[must_use]
    pub fn name(&self) -> String {
        match *self {}
    }

    #[must_use]
    pub fn ordinal(&self) -> u32 {
        match *self {}
    }

    pub fn memory_bytes(&self) -> Result<(u64, u64), DriverRefusal> {
        match *self {}
    }

    pub fn synchronize(&self) -> Result<(), DriverRefusal> {
        match *self {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "none of these can be called")]
impl CudaArena {
    pub fn new(
        context: &Arc<Context>,
        _memory: Memory,
    ) -> Result<(Arc<Self>, CudaWriter), DeviceError> {
        match **context {}
    }

    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        match *self {}
    }

    #[must_use]
    pub fn tensor(&self, _index: usize) -> Option<(u64, u64)> {
        match *self {}
    }

    pub fn read(&self, _tensor: usize, _offset: u64, _into: &mut [u8]) -> Result<(), DeviceError> {
        match *self {}
    }
}

#[allow(missing_docs, reason = "none of these can be called")]
impl CudaWriter {
    #[must_use]
    pub fn arena(&self) -> &Arc<CudaArena> {
        match *self {}
    }

    pub fn take_columns(&mut self, _tensor: usize, _columns: Columns) {
        match *self {}
    }

    pub(crate) fn publish(&mut self, _tensor: usize) {
        match *self {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "none of these can be called")]
impl HostRegistration {
    pub fn new(context: &Arc<Context>, _region: &Arc<Region>) -> Result<Self, DriverRefusal> {
        match **context {}
    }

    pub fn device_address(&self) -> Result<u64, DriverRefusal> {
        match *self {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "none of these can be called")]
impl ReadBack {
    pub fn new(context: &Arc<Context>, _slot: Slot<Filling>) -> Result<Self, DeviceError> {
        match **context {}
    }

    #[must_use]
    pub fn capacity(&self) -> usize {
        match *self {}
    }

    pub fn read(
        &mut self,
        _arena: &CudaArena,
        _tensor: usize,
        _offset: u64,
        _bytes: usize,
    ) -> Result<&[u8], DeviceError> {
        match *self {}
    }
}

impl Completion {
    pub(crate) fn slot(&self) -> usize {
        match *self {}
    }

    pub(crate) fn queue(&self) -> usize {
        match *self {}
    }

    pub(crate) fn ended(&self) -> Instant {
        match *self {}
    }

    pub(crate) fn result(&self) -> Result<(), DriverRefusal> {
        match *self {}
    }
}

impl CopyQueue {
    pub(crate) fn new(
        context: &Arc<Context>,
        _index: usize,
        _most: usize,
        _finished: &Sender<Completion>,
    ) -> Result<Self, DeviceError> {
        match **context {}
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        match *self {}
    }

    /// # Safety
    /// It can't be called.
    pub(crate) unsafe fn copy(
        &mut self,
        _slot: &Slot<Draining>,
        _writer: &CudaWriter,
        _own: usize,
        _segments: &[Segment],
    ) -> Result<u64, DriverRefusal> {
        match *self {}
    }

    pub(crate) fn drain(&mut self) -> bool {
        match *self {}
    }

    pub(crate) fn recycle(&mut self, _completion: Completion) {
        match *self {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "none of these can be called")]
impl Weights {
    #[must_use]
    pub fn on_device(
        arena: &Arc<CudaArena>,
        _tensor: usize,
        _dtype: &'static str,
        _rows: u64,
        _columns: u64,
    ) -> Option<Self> {
        match **arena {}
    }

    pub fn in_host_memory(
        context: &Arc<Context>,
        _place: (&Arc<HostArena>, usize),
        _registered: Option<&Arc<HostRegistration>>,
        _dtype: &'static str,
        _rows: u64,
        _columns: u64,
    ) -> Result<Option<Self>, DeviceError> {
        match **context {}
    }

    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        match *self {}
    }

    #[must_use]
    pub fn shape(&self) -> (u32, u32) {
        match *self {}
    }

    pub fn choose(
        &self,
        _batch: usize,
        _dense: DenseProducts,
    ) -> Result<Option<Choice>, DeviceError> {
        match *self {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "none of these can be called")]
impl DeviceFloats {
    pub fn new(context: &Arc<Context>, _length: usize) -> Result<Self, DeviceError> {
        match **context {}
    }

    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "as above")]
    pub fn len(&self) -> usize {
        match *self {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "none of these can be called")]
impl ComputeStream {
    pub fn retire(&mut self) -> Result<(), DeviceError> {
        match *self {}
    }

    pub fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        match **context {}
    }

    #[must_use]
    pub fn choose(&self, _weights: &Weights, _batch: usize) -> Option<Choice> {
        match *self {}
    }

    pub fn with_dense(context: &Arc<Context>, _dense: DenseProducts) -> Result<Self, DeviceError> {
        match **context {}
    }

    pub fn upload(&mut self, _from: &[f32], _to: &mut DeviceFloats) -> Result<(), DeviceError> {
        match *self {}
    }

    pub fn download(&mut self, _from: &DeviceFloats, _to: &mut [f32]) -> Result<(), DeviceError> {
        match *self {}
    }

    pub fn copy(
        &mut self,
        _from: &DeviceFloats,
        _to: &mut DeviceFloats,
    ) -> Result<(), DeviceError> {
        match *self {}
    }

    pub fn time(
        &mut self,
        _queue: impl FnOnce(&mut Self) -> Result<(), DeviceError>,
    ) -> Result<Duration, DeviceError> {
        match *self {}
    }

    pub fn matmul(
        &mut self,
        _weights: &Weights,
        _x: &DeviceFloats,
        _batch: usize,
        _y: &mut DeviceFloats,
    ) -> Result<Option<Choice>, DeviceError> {
        match *self {}
    }
}
