//! Streams.

use super::{Current, InContext, Out, entry_points};
use crate::error::{Answer, Code};
use crate::stream::Stream;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

/// `CU_STREAM_NON_BLOCKING`.
const STREAM_FLAGS: u32 = 1;

entry_points! {
    fn cuStreamCreate(stream: Out<usize>, flags: u32) with InContext, |call| {
        create(call, stream, flags, 0)
    }

    fn cuStreamCreateWithPriority(
        stream: Out<usize>,
        flags: u32,
        priority: i32,
    ) with InContext, |call| {
        create(call, stream, flags, priority.clamp(-5, 0))
    }

    /// Waits for the stream's work: longer than a driver has to, never shorter.
    fn cuStreamDestroy_v2(stream: usize) with Current, |call| {
        call.driver.streams.remove(stream)?.close();
        Ok(())
    }

    fn cuStreamSynchronize(stream: usize) with Current, |call| {
        let stream = call.any_stream(stream)?;
        if !call.driver.behaviour().config.events_immediate {
            stream.wait();
        }
        stream.device.check()
    }

    fn cuStreamQuery(stream: usize) with Current, |call| {
        let stream = call.any_stream(stream)?;
        stream.device.check()?;
        let is_done = call.driver.behaviour().config.events_immediate || stream.is_idle();
        if is_done { Ok(()) } else { Err(Code::NOT_READY) }
    }

    /// There are no graphs to capture: the mode of every thread is global, and stays so.
    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) with Current, |_| {
        mode.give(0)
    }

    fn cuStreamWaitEvent(stream: usize, event: usize, _flags: u32) with Current, |call| {
        let stream = call.any_stream(stream)?;
        stream.device.check()?;
        if let Some(completion) = call.event(event)?.latest() {
            stream.push(move |ready| completion.wait().max(ready));
        }
        Ok(())
    }

    fn cuStreamGetFlags(stream: usize, flags: Out<u32>) with Current, |call| {
        flags.give(call.any_stream(stream)?.flags)
    }

    fn cuStreamGetPriority(stream: usize, priority: Out<i32>) with Current, |call| {
        priority.give(call.any_stream(stream)?.priority)
    }

    fn cuStreamGetCtx(stream: usize, context: Out<usize>) with Current, |call| {
        context.give(call.any_stream(stream)?.device.context_handle())
    }

    /// Nothing is ever captured.
    fn cuStreamIsCapturing(stream: usize, status: Out<i32>) with Current, |call| {
        call.any_stream(stream)?;
        status.give(0)
    }

    /// A host function is not called once something has failed. If events are immediate, it is
    /// called at once, from a thread of its own.
    fn cuLaunchHostFunc(
        stream: usize,
        function: Option<unsafe extern "C" fn(*mut c_void)>,
        data: usize,
    ) with InContext, |call| {
        let stream = call.stream(stream)?;
        let function = function.ok_or(Code::INVALID_VALUE)?;
        let device = Arc::clone(&stream.device);
        let work = move |_ready: Instant| {
            if device.check().is_ok() {
                // SAFETY: the caller gave both for this one call.
                unsafe { function(data as *mut c_void) };
            }
            Instant::now()
        };
        if call.driver.behaviour().config.events_immediate {
            std::thread::spawn(move || work(Instant::now()));
        } else {
            stream.push(work);
        }
        Ok(())
    }
}

fn create(call: &InContext, stream: Out<usize>, flags: u32, priority: i32) -> Answer {
    if flags & !STREAM_FLAGS != 0 || stream.address().is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let started = Stream::start(Arc::clone(&call.device), flags, priority)?;
    stream.give(call.driver.streams.add(started))
}
