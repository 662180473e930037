//! A kernel ready to run: every operand is a slot, every calculation a function over rows.
//!
//! Immediates and special registers have slots of their own, filled when a warp starts, so that
//! an instruction never asks what kind its operands are.

use crate::numeric::lane::Row;
use crate::types::{Space, Type};

/// Which row of a warp's registers.
pub(crate) type Slot = u32;

/// Which lane mask of a warp's predicates.
pub(crate) type PredicateSlot = u32;

/// The predicate that never holds, and the one that always does.
pub(crate) const NEVER: PredicateSlot = 0;
/// See [`NEVER`].
pub(crate) const ALWAYS: PredicateSlot = 1;

pub(crate) type UnaryRow = fn(&mut Row, &Row);
pub(crate) type BinaryRow = fn(&mut Row, &Row, &Row);
/// The last operand is a constant of the instruction: a table, a mode.
pub(crate) type TernaryRow = fn(&mut Row, &Row, &Row, &Row, u32);
/// The lanes that hold, and the lanes of the second result.
pub(crate) type CompareRow = fn(&Row, &Row) -> [u32; 2];

#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(crate) code: Vec<Instruction>,
    pub(crate) rows: u32,
    pub(crate) predicates: u32,
    pub(crate) immediates: Vec<(Slot, u64)>,
    pub(crate) specials: Vec<(Slot, Special)>,
    /// Static shared memory; what is allocated at launch begins behind it.
    pub(crate) shared_bytes: u32,
    /// For each thread.
    pub(crate) local_bytes: u32,
}

#[derive(Debug)]
pub(crate) struct Instruction {
    /// Holds where the predicate differs from `negated` (all ones or none).
    pub(crate) guard: PredicateSlot,
    pub(crate) negated: u32,
    pub(crate) line: u32,
    pub(crate) operation: Operation,
}

/// Special registers that stay the same while a thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Thread(usize),
    BlockShape(usize),
    Block(usize),
    GridShape(usize),
    Lane,
    Warp,
    Warps,
    /// Lanes whose index compares to the own one: equal, less, less or equal, …
    LanesEqual,
    LanesLess,
    LanesLessOrEqual,
    LanesGreater,
    LanesGreaterOrEqual,
    /// Where dynamic shared memory begins.
    DynamicShared,
    DynamicSharedBytes,
    SharedBytes,
    Zero,
    One,
}

/// A register and what is added to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: Slot,
    pub(crate) offset: i64,
}

/// The shape of a load or store: `count` elements of `bytes` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) space: Space,
    pub(crate) bytes: u32,
    pub(crate) is_signed: bool,
    pub(crate) count: u32,
    pub(crate) address: Address,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Combine {
    And,
    Or,
    Xor,
}

impl Combine {
    pub(crate) fn apply(self, a: u32, b: u32) -> u32 {
        match self {
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
        }
    }
}

/// A predicate operand: lanes of `slot`, inverted where `negated` is all ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Truth {
    pub(crate) slot: PredicateSlot,
    pub(crate) negated: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum CarryForm {
    Add,
    Subtract,
    /// The low or the high half of `a * b`, plus `c`.
    MultiplyAdd {
        high: bool,
        is_signed: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicKind {
    Add,
    Minimum,
    Maximum,
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
    Increment,
    Decrement,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum BarrierKind {
    Wait,
    Arrive,
    Popcount { to: Slot, of: Truth },
    Vote { to: PredicateSlot, of: Truth, all: bool },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum ClockKind {
    Cycles,
    CyclesHigh,
    Nanoseconds,
}

/// `mma`: element types, the depth `k` (A has 16 rows, B 8 columns), and fragments.
#[derive(Debug)]
pub(crate) struct Mma {
    pub(crate) depth: usize,
    pub(crate) a_type: Type,
    pub(crate) b_type: Type,
    /// f32, f16 or s32, of `c` and `d`.
    pub(crate) c_type: Type,
    pub(crate) d_type: Type,
    pub(crate) saturates: bool,
    pub(crate) d: Vec<Slot>,
    pub(crate) a: Vec<Slot>,
    pub(crate) b: Vec<Slot>,
    pub(crate) c: Vec<Slot>,
}

/// `ldmatrix`, `stmatrix`: 8 × 8 elements of 16 bits each.
#[derive(Debug)]
pub(crate) struct Matrices {
    pub(crate) is_generic: bool,
    pub(crate) transposed: bool,
    pub(crate) slots: Vec<Slot>,
    pub(crate) address: Address,
}

#[derive(Debug)]
pub(crate) struct CopyAsync {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) is_generic: bool,
    pub(crate) bytes: u32,
    /// How many of the bytes come from the source; the others are zero.
    pub(crate) source_bytes: Option<Slot>,
    /// Lanes that take zeros instead of the source.
    pub(crate) ignores_source: Option<Truth>,
}

#[derive(Debug)]
pub(crate) struct Atomic {
    pub(crate) space: Space,
    pub(crate) kind: AtomicKind,
    pub(crate) element: Type,
    pub(crate) d: Option<Slot>,
    pub(crate) address: Address,
    pub(crate) b: Slot,
    pub(crate) c: Slot,
}

#[derive(Debug)]
pub(crate) enum Operation {
    Nothing,
    Move {
        d: Slot,
        a: Slot,
    },
    Unary {
        function: UnaryRow,
        d: Slot,
        a: Slot,
    },
    Binary {
        function: BinaryRow,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Ternary {
        function: TernaryRow,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        extra: u32,
    },
    /// As `Binary`, but a divisor of zero is a fault.
    Divide {
        function: BinaryRow,
        width: u32,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Carry {
        form: CarryForm,
        wide: bool,
        reads: bool,
        writes: bool,
        d: Slot,
        slots: [Slot; 3],
    },
    Pack {
        d: Slot,
        sources: Box<[Slot]>,
        bits: u32,
    },
    Unpack {
        slots: Box<[Slot]>,
        a: Slot,
        bits: u32,
    },
    Select {
        d: Slot,
        a: Slot,
        b: Slot,
        by: Truth,
    },
    Compare {
        function: CompareRow,
        d: [PredicateSlot; 2],
        a: Slot,
        b: Slot,
        with: (Combine, Truth),
    },
    /// What holds becomes the bits of `low`, what holds for the second result those of `high`.
    Set {
        function: CompareRow,
        d: Slot,
        a: Slot,
        b: Slot,
        with: (Combine, Truth),
        bits: [u64; 2],
    },
    Logic {
        combine: Combine,
        d: PredicateSlot,
        a: Truth,
        b: Truth,
    },
    IsSpace {
        d: PredicateSlot,
        a: Slot,
        space: Space,
    },
    Clock {
        d: Slot,
        kind: ClockKind,
    },
    Load {
        access: Access,
        d: [Slot; 4],
    },
    Store {
        access: Access,
        slots: [Slot; 4],
    },
    Atomic(Box<Atomic>),
    Shuffle {
        mode: ShuffleMode,
        d: Slot,
        p: Option<PredicateSlot>,
        slots: [Slot; 3],
        members: Slot,
    },
    Vote {
        mode: VoteMode,
        d: Slot,
        p: PredicateSlot,
        of: Truth,
        members: Slot,
    },
    Match {
        all: bool,
        wide: bool,
        d: Slot,
        p: Option<PredicateSlot>,
        a: Slot,
        members: Slot,
    },
    Reduce {
        kind: AtomicKind,
        is_signed: bool,
        d: Slot,
        a: Slot,
        members: Slot,
    },
    ActiveMask {
        d: Slot,
    },
    WarpBarrier {
        members: Slot,
    },
    Barrier {
        id: Slot,
        threads: Option<Slot>,
        kind: BarrierKind,
    },
    Mma(Box<Mma>),
    LoadMatrices(Box<Matrices>),
    StoreMatrices(Box<Matrices>),
    CopyAsync(Box<CopyAsync>),
    CopyCommit,
    /// Waits until at most so many committed groups are on their way; `None` for everything.
    CopyWait {
        groups_left: Option<u32>,
    },
    Branch {
        target: u32,
    },
    BranchTable {
        index: Slot,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
}
