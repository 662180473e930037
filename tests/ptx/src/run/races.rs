//! Races in shared memory: who touched each byte last, and what each warp knows to be past.
//!
//! Vector clocks (Flanagan and Freund, "FastTrack"): every warp counts its own barriers, and at
//! a barrier learns the counts of those it meets. An access is past for a warp that has learnt
//! the count it was made at. Lanes of one warp are not told apart.

/// Who, at which count of theirs, in which line.
#[derive(Clone, Copy, Debug, Default)]
struct Touch {
    /// Warp plus one; 0 for nobody.
    warp: u16,
    is_atomic: bool,
    clock: u32,
    line: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Byte {
    writer: Touch,
    /// The last two warps that read.
    readers: [Touch; 2],
}

#[derive(Debug)]
pub(super) struct Races {
    bytes: Vec<Byte>,
    /// `clocks[warp][other]`: the last count of the other that the warp knows to be past.
    clocks: Vec<Vec<u32>>,
}

/// How an access touches its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Atomic,
}

impl Races {
    pub(super) fn new(bytes: usize, warps: usize) -> Self {
        let mut clocks = vec![vec![0; warps]; warps];
        for (warp, clock) in clocks.iter_mut().enumerate() {
            clock[warp] = 1;
        }
        Self { bytes: vec![Byte::default(); bytes], clocks }
    }

    /// Notes an access, and says which other one it races with.
    pub(super) fn touch(
        &mut self,
        kind: Kind,
        warp: u32,
        line: u32,
        start: usize,
        bytes: usize,
    ) -> Option<String> {
        let clocks = &self.clocks[warp as usize];
        let me = Touch {
            warp: warp as u16 + 1,
            is_atomic: kind == Kind::Atomic,
            clock: clocks[warp as usize],
            line,
        };
        let races = |other: &Touch| {
            other.warp != 0
                && other.warp != me.warp
                && other.clock > clocks[other.warp as usize - 1]
                && !(other.is_atomic && me.is_atomic)
        };
        for byte in self.bytes.get_mut(start..start + bytes)? {
            if races(&byte.writer) {
                return Some(describe(kind, "wrote", byte.writer));
            }
            if kind == Kind::Read {
                let slot =
                    usize::from(byte.readers[0].warp != me.warp && byte.readers[0].warp != 0);
                byte.readers[slot] = me;
                continue;
            }
            if let Some(reader) = byte.readers.iter().find(|reader| races(reader)) {
                return Some(describe(kind, "read", *reader));
            }
            byte.writer = me;
        }
        None
    }

    /// The warps of the mask have met at a barrier.
    pub(super) fn meet(&mut self, warps: u32) {
        let members = |index: &usize| warps >> index & 1 == 1;
        let mut known = vec![0; self.clocks.len()];
        for member in (0..self.clocks.len()).filter(members) {
            for (most, one) in known.iter_mut().zip(&self.clocks[member]) {
                *most = (*most).max(*one);
            }
        }
        for member in (0..self.clocks.len()).filter(members) {
            self.clocks[member].clone_from(&known);
            self.clocks[member][member] += 1;
        }
    }
}

fn describe(kind: Kind, did: &str, other: Touch) -> String {
    let does = if kind == Kind::Read { "read" } else { "written" };
    let (warp, line) = (other.warp - 1, other.line);
    format!("{does} here, and warp {warp} {did} it in line {line}, without a barrier between")
}
