//! Whatever may go wrong, drawn at random and shrunk: the load is whole, or says what stopped it.
//!
//! `FOREBAY_FAULTS=1000` is how many scripts each engine is given; a few if it is not given.

use super::{Mount, PIECE_BYTES};
use forebay_io::{Access, Errno, FailureKind};
use forebay_tests::{Answer, Rule, Script};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

const BYTES: [usize; 2] = [700_001, 1 << 19];
/// The last errno that Linux has.
const ERRNO_LAST: i32 = 133;

/// What one rule does.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Errno(i32),
    Short(u32),
    AnyShort(u64),
    /// The completion is looked at late, while others go on.
    DelayUs(u64),
}

#[derive(Clone, Debug)]
struct Drawn {
    trouble: Trouble,
    only: Option<Access>,
    skip: u64,
    times: u64,
}

impl Drawn {
    fn rule(&self) -> Rule {
        let answer = match self.trouble {
            Trouble::Errno(errno) => Answer::Errno(Errno::from_raw(errno)),
            Trouble::Short(bytes) => Answer::Short(bytes),
            Trouble::AnyShort(seed) => Answer::AnyShort(fastrand::Rng::with_seed(seed)),
            Trouble::DelayUs(delay) => Answer::Meanwhile(Box::new(move || {
                std::thread::sleep(Duration::from_micros(delay));
            })),
        };
        let only = self.only;
        let rule = Rule::new(answer).after(self.skip).times(self.times);
        rule.only(move |op| only.is_none_or(|access| op.access == access))
    }
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let common = [Errno::EINVAL, Errno::EFAULT, Errno::EIO, Errno::EAGAIN, Errno::EINTR];
    let trouble = prop_oneof![
        3 => proptest::sample::select(common.to_vec()).prop_map(|errno| Trouble::Errno(errno as i32)),
        2 => (1..=ERRNO_LAST).prop_map(Trouble::Errno),
        2 => (1..=PIECE_BYTES).prop_map(Trouble::Short),
        2 => any::<u64>().prop_map(Trouble::AnyShort),
        1 => (0..3000_u64).prop_map(Trouble::DelayUs),
    ];
    let accesses = [Access::Direct, Access::DontCache, Access::Buffered, Access::Mapped];
    let only = proptest::option::weighted(0.3, proptest::sample::select(accesses.to_vec()));
    (trouble, only, 0..30_u64, 1..8_u64).prop_map(|(trouble, only, skip, times)| Drawn {
        trouble,
        only,
        skip,
        times,
    })
}

pub(crate) fn anything(mount: Mount) {
    let given = std::env::var("FOREBAY_FAULTS").ok();
    let cases = given.map_or(24, |given| given.parse().expect("FOREBAY_FAULTS is a number"));
    let Some((scratch, files)) = mount.files(&BYTES) else { return };
    let (whole, named, struck) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(drawn(), 1..5), |script| {
        let injected = |errno: Errno| {
            let is_it = |it: &Drawn| match it.trouble {
                Trouble::Errno(raw) => Errno::from_raw(raw) == errno,
                _ => false,
            };
            script.iter().any(is_it)
        };
        let rules = script.iter().map(Drawn::rule);
        let fault = rules.fold(Script::default(), Script::and);
        let changed = fault.changed();
        let landed = mount.load(&files, PIECE_BYTES).with_fault(fault).run();
        if changed.load(Ordering::Relaxed) > 0 {
            struck.set(struck.get() + 1);
        }
        match landed.outcome.schedule.failure() {
            None => {
                landed.expect_whole(scratch.contents());
                whole.set(whole.get() + 1);
            }
            Some(failure) => {
                landed.expect_right(scratch.contents());
                let FailureKind::Errno(errno) = failure.kind else {
                    panic!("{failure:?}, where no rule asks for that");
                };
                assert!(injected(errno), "{failure:?}, which no rule answers");
                assert!(failure.read.is_some() && failure.file.is_some(), "{failure:?}");
                named.set(named.get() + 1);
            }
        }
        Ok(())
    });
    if let Err(failed) = outcome {
        panic!("{mount:?}: {failed}");
    }
    eprintln!(
        "{mount:?}: {cases} scripts, {} struck: {} loads whole, {} ended by a named error",
        struck.get(),
        whole.get(),
        named.get()
    );
}
