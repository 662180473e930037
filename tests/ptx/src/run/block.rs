//! A block: its shared memory, its barriers, and its warps in turn.

use super::barrier::Barriers;
use super::races::Races;
use super::warp::{Stop, Warp};
use super::{Context, Stats};
use crate::POISON_BYTE;
use crate::error::{BlockThread, Fault, FaultKind};
use crate::memory::Region;
use crate::numeric::lane::LANES;
use crate::types::VARIABLES_START;

/// Instructions of a warp before the next one's turn: warps may wait for each other's stores.
const TURN_INSTRUCTIONS: u64 = 1 << 16;

/// How many regions are remembered, by the number of the instruction that found them.
const REGIONS: usize = 16;

/// One block after the other, on one thread; warps and buffers are used again.
pub(super) struct Block<'launch> {
    pub(super) state: State<'launch>,
    warps: Vec<Warp>,
}

/// What the warps of a block share.
pub(super) struct State<'launch> {
    pub(super) context: &'launch Context<'launch>,
    pub(super) index: [u32; 3],
    pub(super) shared: Vec<u8>,
    pub(super) barriers: Barriers,
    pub(super) races: Option<Races>,
    pub(super) stats: Stats,
    regions: [Region<'launch>; REGIONS],
}

impl<'launch> Block<'launch> {
    pub(super) fn new(context: &'launch Context<'launch>) -> Self {
        let state = State {
            context,
            index: [0; 3],
            shared: Vec::new(),
            barriers: Barriers::default(),
            races: None,
            stats: Stats::default(),
            regions: [Region { start: 0, bytes: 0, words: &[] }; REGIONS],
        };
        let count = context.threads.div_ceil(LANES as u32);
        let warps = (0..count).map(|index| Warp::new(context, index)).collect();
        Self { state, warps }
    }

    /// Runs the block of that number to its end.
    pub(super) fn run(&mut self, number: u64) -> Result<(), Box<Fault>> {
        let context = self.state.context;
        let [x, y, _] = context.launch.grid.map(u64::from);
        let index = [number % x, number / x % y, number / x / y];
        self.state.index = index.map(|one| u32::try_from(one).unwrap_or(u32::MAX));
        self.state.shared.clear();
        self.state.shared.resize(context.shared_bytes as usize, POISON_BYTE);
        self.state.barriers = Barriers::default();
        self.state.races = context
            .launch
            .limits
            .detect_races
            .then(|| Races::new(context.shared_bytes as usize, self.warps.len()));
        for warp in &mut self.warps {
            warp.start(context, self.state.index);
        }
        self.state.stats.blocks += 1;
        while self.warps.iter().any(Warp::is_live) {
            self.turn()?;
        }
        Ok(())
    }

    /// Lets every warp run once, then opens the barriers that are complete.
    fn turn(&mut self) -> Result<(), Box<Fault>> {
        let mut progressed = false;
        for index in 0..self.warps.len() {
            let warp = &mut self.warps[index];
            match warp.run(&mut self.state, TURN_INSTRUCTIONS) {
                Ok(ran) => progressed |= ran,
                Err(stop) => return Err(self.fault(index, *stop)),
            }
        }
        let live = self.warps.iter().map(Warp::live_threads).sum();
        progressed |= super::barrier::open(&mut self.state, &mut self.warps, live);
        if progressed || !self.warps.iter().any(Warp::is_live) {
            return Ok(());
        }
        let waiters: Vec<String> =
            self.warps.iter().flat_map(|warp| warp.waiting(context_code(&self.state))).collect();
        let first = self.warps.iter().position(Warp::is_live).unwrap_or(0);
        let stop = self.warps[first].stop_waiting(FaultKind::Deadlock(waiters.join("; ")));
        Err(self.fault(first, stop))
    }

    fn fault(&self, warp: usize, stop: Stop) -> Box<Fault> {
        let context = self.state.context;
        let line = context.entry.program.code.get(stop.pc as usize).map_or(0, |one| one.line);
        let text = context.module.lines.get((line as usize).wrapping_sub(1));
        let linear = warp as u32 * LANES as u32 + stop.lane;
        let [x, y, _] = context.launch.block;
        let thread = [linear % x, linear / x % y, linear / x / y];
        Box::new(Fault {
            kind: stop.kind,
            entry: context.entry.name.as_str().into(),
            line,
            instruction: text.map_or("", String::as_str).into(),
            at: Some(BlockThread { block: self.state.index, thread }),
        })
    }
}

fn context_code<'launch>(state: &State<'launch>) -> &'launch [crate::program::Instruction] {
    &state.context.entry.program.code
}

impl<'launch> State<'launch> {
    /// The region that holds `bytes` bytes at `address`, from those remembered if possible.
    #[inline]
    pub(super) fn region(
        &mut self,
        pc: u32,
        address: u64,
        bytes: u32,
        what: &'static str,
    ) -> Result<Region<'launch>, FaultKind> {
        let slot = &mut self.regions[pc as usize % REGIONS];
        if !slot.holds(address, u64::from(bytes)) {
            *slot = find(self.context, address, bytes, what)?;
        }
        Ok(*slot)
    }
}

#[cold]
fn find<'launch>(
    context: &'launch Context<'launch>,
    address: u64,
    bytes: u32,
    what: &'static str,
) -> Result<Region<'launch>, FaultKind> {
    let memory = context.launch.memory;
    let in_module = address >= crate::GLOBAL_ADDRESS_END;
    let found = if in_module { context.module.region(address) } else { memory.region(address) };
    let detail = match found {
        Some(region) if region.start % 16 != 0 || region.words.len() as u64 * 4 < region.bytes => {
            "the region that the memory gave is not aligned or shorter than it says".into()
        }
        Some(region) if region.holds(address, u64::from(bytes)) => return Ok(region),
        _ if address >= VARIABLES_START => "behind the module's variables".into(),
        _ => memory.describe(address),
    };
    Err(FaultKind::OutOfBounds { what, address, bytes, detail })
}
