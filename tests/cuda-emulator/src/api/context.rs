//! Primary contexts, and which one is a thread's current.

use super::gate::{current_context, with_contexts};
use super::{Anytime, Current, Freeing, InContext, Out, entry_points};
use crate::error::Code;
use std::sync::atomic::Ordering;

entry_points! {
    fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: i32) with Current, |call| {
        let device = call.driver.device(device)?;
        context.give(device.context_handle())?;
        device.retain();
        Ok(())
    }

    /// The last release ends the context: what is left in it is freed, and told.
    fn cuDevicePrimaryCtxRelease_v2(device: i32) with Current, |call| {
        let device = call.driver.device(device)?;
        device.release(|| call.driver.reset(&device))
    }

    fn cuDevicePrimaryCtxReset_v2(device: i32) with Current, |call| {
        let device = call.driver.device(device)?;
        call.driver.reset(&device);
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(
        device: i32,
        flags: Out<u32>,
        active: Out<i32>,
    ) with Current, |call| {
        let device = call.driver.device(device)?;
        flags.give(device.context_flags.load(Ordering::Relaxed))?;
        active.give(i32::from(device.retained() > 0))
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) with Current, |call| {
        call.driver.device(device)?.context_flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxSetCurrent(context: usize) with Current, |call| {
        if context != 0 && call.driver.context(context)?.retained() == 0 {
            return Err(Code::INVALID_CONTEXT);
        }
        with_contexts(|contexts| {
            contexts.pop();
            contexts.extend((context != 0).then_some(context));
        })
        .ok_or(Code::DEINITIALIZED)
    }

    fn cuCtxGetCurrent(context: Out<usize>) with Current, |_| {
        context.give(current_context().unwrap_or(0))
    }

    fn cuCtxPushCurrent_v2(context: usize) with Current, |call| {
        if call.driver.context(context)?.retained() == 0 {
            return Err(Code::INVALID_CONTEXT);
        }
        with_contexts(|contexts| contexts.push(context)).ok_or(Code::DEINITIALIZED)
    }

    fn cuCtxPopCurrent_v2(context: Out<usize>) with Current, |_| {
        let popped = with_contexts(Vec::pop).flatten().ok_or(Code::INVALID_CONTEXT)?;
        context.give_if_wanted(popped);
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<i32>) with Current, |call| {
        device.give(call.device()?.number())
    }

    fn cuCtxGetFlags(flags: Out<u32>) with Current, |call| {
        flags.give(call.device()?.context_flags.load(Ordering::Relaxed))
    }

    fn cuCtxSetFlags(flags: u32) with Current, |call| {
        call.device()?.context_flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetApiVersion(_context: usize, version: Out<u32>) with Anytime, |_| {
        version.give(3020)
    }

    fn cuCtxSynchronize() with Freeing, |call| {
        if !call.driver.behaviour().config.events_immediate {
            call.driver.wait_for_device(&call.device);
        }
        Ok(())
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) with InContext, |_| {
        least.give_if_wanted(0);
        greatest.give_if_wanted(-5);
        Ok(())
    }
}
