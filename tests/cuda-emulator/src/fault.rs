//! Failures on purpose, counted to the call, the copy or the launch.

use crate::error::Code;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One failure to be caused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    /// Counts the calls and copies of this device alone.
    pub(crate) device: Option<usize>,
    pub(crate) point: Point,
    /// Which one, from 1; 0 is every one.
    pub(crate) nth: u64,
    pub(crate) effect: Effect,
}

/// What is counted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Point {
    /// Calls of an entry point.
    Call(String),
    /// Asynchronous copies, in the order in which they are asked for.
    Copy,
    /// Launches, in the order in which they are asked for.
    Kernel,
}

/// What happens then.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    Fail(u32),
    Stall(Duration),
}

/// What is to happen to one copy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct CopyFault {
    pub(crate) code: Option<Code>,
    pub(crate) stall: Duration,
}

/// The faults of a configuration, each with its own count.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    faults: Vec<(Fault, AtomicU64)>,
}

impl Faults {
    pub(crate) fn new(faults: &[Fault]) -> Self {
        let count = |fault: &Fault| (fault.clone(), AtomicU64::new(0));
        Self { faults: faults.iter().map(count).collect() }
    }

    /// Counts a call of `name` in the context of `device`; what it is to answer instead.
    pub(crate) fn call(&self, name: &str, device: Option<usize>) -> Option<Code> {
        self.failure(device, |point| matches!(point, Point::Call(call) if call == name))
    }

    /// Counts a launch on `device`; the code with which it is to fail when it is performed.
    pub(crate) fn kernel(&self, device: usize) -> Option<Code> {
        self.failure(Some(device), |point| *point == Point::Kernel)
    }

    fn failure(&self, device: Option<usize>, is_here: impl Fn(&Point) -> bool) -> Option<Code> {
        let mut code = None;
        self.meet(device, is_here, |effect| {
            if let Effect::Fail(number) = effect {
                code = Some(Code(*number));
            }
        });
        code
    }

    /// Counts an asynchronous copy of `device`; what is to happen when it is performed.
    pub(crate) fn copy(&self, device: usize) -> CopyFault {
        let mut fault = CopyFault::default();
        self.meet(
            Some(device),
            |point| *point == Point::Copy,
            |effect| match effect {
                Effect::Fail(number) => fault.code = Some(Code(*number)),
                Effect::Stall(time) => fault.stall += *time,
            },
        );
        fault
    }

    /// Every fault at this point counts, so that one does not shift another.
    fn meet(
        &self,
        device: Option<usize>,
        is_here: impl Fn(&Point) -> bool,
        mut strike: impl FnMut(&Effect),
    ) {
        for (fault, count) in &self.faults {
            if is_here(&fault.point) && (fault.device.is_none() || fault.device == device) {
                let now = count.fetch_add(1, Ordering::Relaxed) + 1;
                if fault.nth == 0 || fault.nth == now {
                    strike(&fault.effect);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_of_the_device_is_met() {
        let point = Point::Call("cuInit".into());
        let fault = Fault { device: Some(1), point, nth: 2, effect: Effect::Fail(100) };
        let faults = Faults::new(&[fault]);
        let calls = [Some(1), Some(0), None, Some(1), Some(1)];
        let met: Vec<bool> = calls.map(|device| faults.call("cuInit", device).is_some()).into();
        assert_eq!(met, [false, false, false, true, false]);
        assert_eq!(faults.call("cuMemAlloc_v2", Some(1)), None);
    }

    #[test]
    fn a_copy_may_stall_and_fail() {
        let stall = Effect::Stall(Duration::from_millis(5));
        let every = Fault { device: None, point: Point::Copy, nth: 0, effect: stall };
        let second = Fault { device: None, point: Point::Copy, nth: 2, effect: Effect::Fail(719) };
        let faults = Faults::new(&[every, second]);
        assert_eq!(faults.copy(0).code, None);
        assert_eq!(
            faults.copy(3),
            CopyFault { code: Some(Code(719)), stall: Duration::from_millis(5) }
        );
    }
}
