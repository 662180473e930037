//! What a kernel might have answered instead.

use forebay_io::{Errno, Fault, Op};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What becomes of a completion that a [`Rule`] is about.
pub enum Answer {
    /// This errno, and no byte.
    Errno(Errno),
    /// At most so many bytes (at least one).
    Short(u32),
    /// A random number of bytes.
    AnyShort(fastrand::Rng),
    /// What the kernel said; but something happens at this moment.
    Meanwhile(Box<dyn FnMut() + Send>),
}

/// For which completions, and what.
pub struct Rule {
    answer: Answer,
    only: Box<dyn Fn(&Op) -> bool + Send>,
    /// How many matching completions pass before it, then how many it is for.
    skip: u64,
    times: u64,
}

impl Rule {
    /// A rule for every completion.
    #[must_use]
    pub fn new(answer: Answer) -> Self {
        Self { answer, only: Box::new(|_| true), skip: 0, times: u64::MAX }
    }

    /// Only for operations that `only` holds for.
    #[must_use]
    pub fn only(mut self, only: impl Fn(&Op) -> bool + Send + 'static) -> Self {
        self.only = Box::new(only);
        self
    }

    /// Not for the first `skip` of them.
    #[must_use]
    pub fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// For so many of them.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Whether `op`'s completion is its business; counts.
    fn takes(&mut self, op: &Op) -> bool {
        if self.times == 0 || !(self.only)(op) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// A [`Fault`] that follows rules; for each completion, the first that takes it.
#[derive(Default)]
pub struct Script {
    rules: Vec<Rule>,
    changed: Arc<AtomicU64>,
}

impl Script {
    /// One rule.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Self::default().and(rule)
    }

    /// And another, which yields to those before it.
    #[must_use]
    pub fn and(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// How many completions came out other than the kernel had said: a test whose script never
    /// struck has shown nothing.
    #[must_use]
    pub fn changed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.changed)
    }
}

impl Fault for Script {
    fn tamper(
        &mut self,
        op: &Op,
        result: Result<u32, Errno>,
        buffer: &mut [u8],
    ) -> Result<u32, Errno> {
        let Some(rule) = self.rules.iter_mut().find_map(|rule| rule.takes(op).then_some(rule))
        else {
            return result;
        };
        let shortened = match (&mut rule.answer, result) {
            (Answer::Meanwhile(act), _) => {
                act();
                result
            }
            (Answer::Errno(errno), _) => Err(*errno),
            (Answer::Short(bytes), Ok(count)) => Ok(count.min(*bytes)),
            (Answer::AnyShort(rng), Ok(count @ 1..)) => Ok(rng.u32(1..=count)),
            (_, result) => result,
        };
        if shortened != result {
            self.changed.fetch_add(1, Ordering::Relaxed);
            scribble(&mut buffer[shortened.unwrap_or(0) as usize..]);
        }
        shortened
    }
}

/// Makes every byte another one, so that none can be right by chance.
fn scribble(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
}
