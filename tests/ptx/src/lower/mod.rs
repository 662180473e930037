//! From syntax to programs: names become slots and addresses, instructions become operations.

mod arithmetic;
mod bits;
mod collective;
mod compare;
mod control;
mod convert;
mod function;
mod matrix;
mod memory;
mod modifiers;
mod moves;
mod operands;
mod rows;
mod scope;
mod small;

use crate::error::ParseError;
use crate::module::{Entry, Module, Parameter, Variable};
use crate::text::syntax::{Declaration, Function, Literal, Source};
use crate::types::{Space, Type, VARIABLES_START};
use function::Lowering;
use std::collections::HashMap;
use std::sync::atomic::AtomicU32;

pub(crate) type Lowered<T> = Result<T, ParseError>;

/// What the functions of a module share.
#[derive(Debug)]
struct Shared<'source> {
    /// Variables of the module: their space and address within it.
    symbols: HashMap<&'source str, Symbol>,
    functions: HashMap<&'source str, &'source Function>,
    /// Shared variables of the module, the ones without a size included.
    shared: Vec<&'source Declaration>,
}

/// Where a name lies.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    space: Space,
    /// Address within the space (which for `.global` is the generic one).
    address: u64,
}

pub(crate) fn module(source: &Source, lines: Vec<String>) -> Lowered<Module> {
    let mut shared =
        Shared { symbols: HashMap::new(), functions: HashMap::new(), shared: Vec::new() };
    let (mut global, mut constant) = (Vec::new(), Vec::new());
    let mut variables = Vec::new();
    for variable in &source.variables {
        let bytes = match variable.space {
            Space::Shared => {
                shared.shared.push(variable);
                continue;
            }
            Space::Constant => &mut constant,
            _ => &mut global,
        };
        let offset = place(bytes, variable)?;
        let in_global = if variable.space == Space::Global { VARIABLES_START } else { 0 };
        let address = in_global + offset;
        shared.symbols.insert(&variable.name, Symbol { space: variable.space, address });
        variables.push(Variable {
            name: variable.name.clone(),
            address: variable.space.window() + address,
            bytes: variable.bytes as usize,
        });
    }
    for function in &source.functions {
        // A function that is declared first and defined later is one function.
        let entry = shared.functions.entry(&function.name).or_insert(function);
        if entry.body.is_none() {
            *entry = function;
        }
    }
    let mut entries = Vec::new();
    for function in source.functions.iter().filter(|function| function.is_entry) {
        entries.push(entry(function, &shared)?);
    }
    Ok(Module {
        version: source.version,
        target: source.target.clone(),
        entries,
        variables,
        global_words: words(&global),
        constant_words: words(&constant),
        lines,
    })
}

fn entry(function: &Function, shared: &Shared<'_>) -> Lowered<Entry> {
    let mut parameters = Vec::new();
    let mut end = 0;
    for declaration in &function.parameters {
        let align = declaration.align as usize;
        let offset = usize::next_multiple_of(end, align);
        let bytes = declaration.bytes as usize;
        parameters.push(Parameter { name: declaration.name.clone(), offset, bytes, align });
        end = offset + bytes;
    }
    let program = Lowering::new(shared).entry(function, &parameters)?;
    Ok(Entry {
        name: function.name.clone(),
        parameters,
        parameter_bytes: end,
        block_max: function.block_max,
        block_required: function.block_required,
        blocks_per_multiprocessor_min: function.blocks_per_multiprocessor_min,
        shared_bytes: program.shared_bytes,
        local_bytes: program.local_bytes,
        program,
    })
}

/// Appends a variable with its initial value and returns its offset.
fn place(bytes: &mut Vec<u8>, variable: &Declaration) -> Lowered<u64> {
    bytes.resize(bytes.len().next_multiple_of(variable.align.max(4) as usize), 0);
    let offset = bytes.len();
    let element = variable.element.bytes() as usize;
    if variable.initial.len() * element > variable.bytes as usize {
        return Err(ParseError::new(variable.at, "more initial values than the variable holds"));
    }
    for literal in &variable.initial {
        bytes.extend_from_slice(
            &literal_bits(*literal, variable.element).to_le_bytes()[..element.min(8)],
        );
    }
    bytes.resize(offset + variable.bytes as usize, 0);
    Ok(offset as u64)
}

fn words(bytes: &[u8]) -> Vec<AtomicU32> {
    let word = |chunk: &[u8]| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        AtomicU32::new(u32::from_le_bytes(word))
    };
    bytes.chunks(4).map(word).collect()
}

/// The bits of a literal in a context of type `kind`.
fn literal_bits(literal: Literal, kind: Type) -> u64 {
    match literal {
        Literal::Integer(value) if kind == Type::F32 => u64::from((value as f32).to_bits()),
        Literal::Integer(value) if kind == Type::F64 => (value as f64).to_bits(),
        Literal::Integer(value) => value,
        Literal::Single(bits) if kind == Type::F64 => f64::from(f32::from_bits(bits)).to_bits(),
        Literal::Single(bits) => u64::from(bits),
        Literal::Double(bits) => literal_bits(Literal::Decimal(f64::from_bits(bits)), kind),
        Literal::Decimal(value) => match kind {
            #[allow(clippy::cast_possible_truncation, reason = "that is what the text asks for")]
            Type::F32 => u64::from((value as f32).to_bits()),
            _ => value.to_bits(),
        },
    }
}
