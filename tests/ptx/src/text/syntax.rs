//! A module as it is written.

use super::At;
use crate::types::{Space, Type};

#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) version: (u32, u32),
    pub(crate) target: String,
    pub(crate) address_bits: u32,
    pub(crate) variables: Vec<Declaration>,
    pub(crate) functions: Vec<Function>,
}

/// A variable with a name and a place in memory.
#[derive(Clone, Debug)]
pub(crate) struct Declaration {
    pub(crate) at: At,
    pub(crate) space: Space,
    pub(crate) name: String,
    pub(crate) align: u32,
    pub(crate) element: Type,
    /// Of the whole variable; 0 for `name[]`.
    pub(crate) bytes: u32,
    pub(crate) is_extern: bool,
    pub(crate) initial: Vec<Literal>,
}

#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) at: At,
    pub(crate) name: String,
    pub(crate) is_entry: bool,
    pub(crate) returns: Vec<Declaration>,
    pub(crate) parameters: Vec<Declaration>,
    pub(crate) block_max: Option<[u32; 3]>,
    pub(crate) block_required: Option<[u32; 3]>,
    pub(crate) blocks_per_multiprocessor_min: Option<u32>,
    /// `None` for a function that is only declared.
    pub(crate) body: Option<Vec<Statement>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Statement {
    /// `{`
    Open,
    /// `}`
    Close,
    Label(String),
    /// `.reg`: a name, or `name<count>` for names numbered from 0.
    Registers {
        at: At,
        kind: Type,
        name: String,
        count: Option<u32>,
    },
    Variable(Declaration),
    /// `label: .branchtargets a, b;` (the label is a statement of its own).
    BranchTargets(Vec<String>),
    Instruction(Instruction),
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub(crate) at: At,
    pub(crate) guard: Option<(String, bool)>,
    /// `ld`
    pub(crate) name: String,
    /// `global`, `v4`, `f32`
    pub(crate) modifiers: Vec<String>,
    pub(crate) operands: Vec<Operand>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, a special register (`%tid.x`), a label, a variable or a function.
    Name(String),
    /// `name+4`, `-name` is no operand of PTX.
    Offset(String, i64),
    Literal(Literal),
    /// `!p`
    Not(String),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[base+4]`
    Address(Box<Operand>, i64),
    /// `(a, b)` of a call
    List(Vec<Operand>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Literal {
    Integer(u64),
    /// `1.5`: of the width of its context.
    Decimal(f64),
    /// `0f…`
    Single(u32),
    /// `0d…`
    Double(u64),
}
