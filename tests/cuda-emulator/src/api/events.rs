//! Events.

use super::{Current, InContext, Out, entry_points};
use crate::error::{Answer, Code};
use crate::event::Event;
use std::sync::Arc;
use std::time::Instant;

/// `CU_EVENT_BLOCKING_SYNC | DISABLE_TIMING | INTERPROCESS`.
const EVENT_FLAGS: u32 = 7;
const DISABLE_TIMING: u32 = 2;

entry_points! {
    fn cuEventCreate(event: Out<usize>, flags: u32) with InContext, |call| {
        if flags & !EVENT_FLAGS != 0 || event.address().is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let created = Event::new(Arc::clone(&call.device), flags & DISABLE_TIMING == 0);
        event.give(call.driver.events.add(Arc::new(created)))
    }

    /// A record that is under way completes all the same.
    fn cuEventDestroy_v2(event: usize) with Current, |call| {
        call.driver.events.remove(event).map(drop)
    }

    fn cuEventRecord(event: usize, stream: usize) with Current, |call| {
        record(call, event, stream)
    }

    fn cuEventRecordWithFlags(event: usize, stream: usize, _flags: u32) with Current, |call| {
        record(call, event, stream)
    }

    fn cuEventQuery(event: usize) with Current, |call| {
        let event = call.event(event)?;
        event.device.check()?;
        let is_immediate = call.driver.behaviour().config.events_immediate;
        match event.latest() {
            Some(completion) if !is_immediate && completion.at().is_none() => Err(Code::NOT_READY),
            _ => Ok(()),
        }
    }

    fn cuEventSynchronize(event: usize) with Current, |call| {
        let event = call.event(event)?;
        if !call.driver.behaviour().config.events_immediate
            && let Some(completion) = event.latest()
        {
            completion.wait();
        }
        event.device.check()
    }

    fn cuEventElapsedTime(ms: Out<f32>, start: usize, end: usize) with Current, |call| {
        elapsed(call, ms, start, end)
    }

    fn cuEventElapsedTime_v2(ms: Out<f32>, start: usize, end: usize) with Current, |call| {
        elapsed(call, ms, start, end)
    }
}

fn record(call: &Current, event: usize, stream: usize) -> Answer {
    let (event, stream) = (call.event(event)?, call.any_stream(stream)?);
    if event.device.ordinal != stream.device.ordinal {
        let (is, other) = (event.device.ordinal, stream.device.ordinal);
        eprintln!("[cuda emulator] an event of device {is} in a stream of device {other}");
        return Err(Code::INVALID_HANDLE);
    }
    stream.device.check()?;
    let completion = event.record();
    stream.push(move |ready| {
        completion.complete(ready);
        ready
    });
    Ok(())
}

fn elapsed(call: &Current, ms: Out<f32>, start: usize, end: usize) -> Answer {
    let at = |handle: usize| -> Answer<Instant> {
        let event = call.event(handle)?;
        event.device.check()?;
        if !event.keeps_time {
            return Err(Code::INVALID_HANDLE);
        }
        let completion = event.latest().ok_or(Code::INVALID_HANDLE)?;
        completion.at().ok_or(Code::NOT_READY)
    };
    let (start, end) = (at(start)?, at(end)?);
    let forward = end.saturating_duration_since(start).as_secs_f32();
    let backward = start.saturating_duration_since(end).as_secs_f32();
    ms.give((forward - backward) * 1e3)
}
