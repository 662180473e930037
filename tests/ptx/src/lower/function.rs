//! The statements of a kernel, with those of the functions it calls put in their place.

use super::scope::Scopes;
use super::{Lowered, Shared, Symbol};
use crate::error::ParseError;
use crate::module::Parameter;
use crate::program::{ALWAYS, Instruction, NEVER, Operation, Program, Slot, Truth};
use crate::text::At;
use crate::text::syntax::{self, Declaration, Function, Operand, Statement};
use crate::types::Space;
use std::collections::HashMap;

/// Calls are put in place of the call, so a module could grow without bound.
const INSTRUCTIONS_MAX: usize = 4 << 20;
/// No GPU has more of either for one block or thread.
const SHARED_BYTES_MAX: u32 = 1 << 20;
const LOCAL_BYTES_MAX: u32 = 1 << 20;

/// A branch whose label may come later.
#[derive(Debug)]
struct Fixup {
    instruction: usize,
    scope: usize,
    at: At,
    label: Label,
}

#[derive(Debug)]
enum Label {
    Name(String),
    /// The name of a table of labels.
    Table(String),
}

#[derive(Debug)]
pub(super) struct Lowering<'module> {
    pub(super) shared: &'module Shared<'module>,
    pub(super) program: Program,
    pub(super) scopes: Scopes,
    pub(super) immediates: HashMap<u64, Slot>,
    pub(super) module_shared: HashMap<&'module str, Symbol>,
    /// Of the instruction at hand.
    pub(super) at: At,
    guard: Truth,
    fixups: Vec<Fixup>,
    /// The functions being called, the innermost last, each with its `ret`s.
    calls: Vec<(&'module str, Vec<usize>)>,
}

impl<'module> Lowering<'module> {
    pub(super) fn new(shared: &'module Shared<'module>) -> Self {
        let program = Program { predicates: ALWAYS + 1, ..Program::default() };
        Self {
            shared,
            program,
            scopes: Scopes::new(),
            immediates: HashMap::new(),
            module_shared: HashMap::new(),
            at: At::default(),
            guard: Truth { slot: ALWAYS, negated: 0 },
            fixups: Vec::new(),
            calls: Vec::new(),
        }
    }

    pub(super) fn entry(
        mut self,
        function: &'module Function,
        parameters: &[Parameter],
    ) -> Lowered<Program> {
        self.at = function.at;
        let Some(body) = &function.body else {
            return self.error(format!("entry `{}` has no body", function.name));
        };
        for parameter in parameters {
            let symbol = Symbol { space: Space::Parameter, address: parameter.offset as u64 };
            self.scopes.add_symbol(&parameter.name, symbol);
        }
        self.scopes.open();
        self.statements(body)?;
        self.guard = Truth { slot: ALWAYS, negated: 0 };
        self.emit(Operation::Exit)?;
        self.resolve_labels()?;
        Ok(self.program)
    }

    pub(super) fn emit(&mut self, operation: Operation) -> Lowered<()> {
        if self.program.code.len() >= INSTRUCTIONS_MAX {
            return self.error("the kernel has too many instructions, those of calls included");
        }
        self.program.code.push(Instruction {
            guard: self.guard.slot,
            negated: self.guard.negated,
            line: self.at.line,
            operation,
        });
        Ok(())
    }

    fn here(&self) -> u32 {
        u32::try_from(self.program.code.len()).unwrap_or(u32::MAX)
    }

    fn statements(&mut self, statements: &'module [Statement]) -> Lowered<()> {
        let mut label = None;
        for statement in statements {
            match statement {
                Statement::Open => self.scopes.open(),
                Statement::Close => self.scopes.close(),
                Statement::Label(name) => {
                    self.scopes.add_label(name, self.here());
                    label = Some(name);
                }
                Statement::BranchTargets(labels) => match label {
                    Some(name) => self.scopes.add_table(name, labels),
                    None => return self.error(".branchtargets without a label"),
                },
                Statement::Registers { at, kind, name, count } => {
                    self.at = *at;
                    if *count == Some(0) {
                        continue;
                    }
                    self.scopes.add_family(name, count.unwrap_or(0), *kind);
                }
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Instruction(instruction) => self.guarded(instruction)?,
            }
        }
        Ok(())
    }

    fn guarded(&mut self, instruction: &'module syntax::Instruction) -> Lowered<()> {
        self.at = instruction.at;
        self.guard = match &instruction.guard {
            None => Truth { slot: ALWAYS, negated: 0 },
            Some((name, false)) => self.truth(&Operand::Name(name.clone()))?,
            Some((name, true)) => self.truth(&Operand::Not(name.clone()))?,
        };
        self.instruction(instruction)
    }

    fn variable(&mut self, variable: &Declaration) -> Lowered<()> {
        self.at = variable.at;
        let symbol = match variable.space {
            Space::Shared => self.place_shared(variable)?,
            // Parameters of calls are ordinary memory of the thread.
            Space::Local | Space::Parameter => self.place_local(variable)?,
            _ => return self.error("a variable of this space belongs outside of functions"),
        };
        self.scopes.add_symbol(&variable.name, symbol);
        Ok(())
    }

    pub(super) fn place_shared(&mut self, variable: &Declaration) -> Lowered<Symbol> {
        let address = self.program.shared_bytes.next_multiple_of(variable.align);
        let end = address.saturating_add(variable.bytes);
        if end > SHARED_BYTES_MAX {
            return self.error(format!("{end} bytes of shared memory"));
        }
        self.program.shared_bytes = end;
        Ok(Symbol { space: Space::Shared, address: u64::from(address) })
    }

    fn place_local(&mut self, variable: &Declaration) -> Lowered<Symbol> {
        let address = self.program.local_bytes.next_multiple_of(variable.align);
        let end = address.saturating_add(variable.bytes);
        if end > LOCAL_BYTES_MAX {
            return self.error(format!("{end} bytes of local memory"));
        }
        self.program.local_bytes = end;
        Ok(Symbol { space: Space::Local, address: u64::from(address) })
    }

    /// Emits a branch to a label that is looked up when all are known.
    pub(super) fn branch_to(&mut self, label: &str) -> Lowered<()> {
        self.fix(Label::Name(label.to_owned()));
        self.emit(Operation::Branch { target: 0 })
    }

    pub(super) fn branch_by_table(&mut self, index: Slot, table: &str) -> Lowered<()> {
        self.fix(Label::Table(table.to_owned()));
        self.emit(Operation::BranchTable { index, targets: Box::default() })
    }

    fn fix(&mut self, label: Label) {
        let instruction = self.program.code.len();
        let scope = self.scopes.current;
        self.fixups.push(Fixup { instruction, scope, at: self.at, label });
    }

    fn resolve_labels(&mut self) -> Lowered<()> {
        for Fixup { instruction, scope, at, label } in std::mem::take(&mut self.fixups) {
            let find = |name: &str| self.scopes.label(scope, name, at);
            let resolved = match label {
                Label::Name(name) => Operation::Branch { target: find(&name)? },
                Label::Table(name) => {
                    let labels = self.scopes.table(scope, &name, at)?;
                    let targets = labels.iter().map(|label| find(label)).collect::<Lowered<_>>()?;
                    let Operation::BranchTable { index, .. } =
                        self.program.code[instruction].operation
                    else {
                        continue;
                    };
                    Operation::BranchTable { index, targets }
                }
            };
            self.program.code[instruction].operation = resolved;
        }
        Ok(())
    }

    /// `ret`: the end of the thread in a kernel, of the call in a function.
    pub(super) fn return_(&mut self) -> Lowered<()> {
        let here = self.program.code.len();
        match self.calls.last_mut() {
            None => self.emit(Operation::Exit),
            Some((_, returns)) => {
                returns.push(here);
                self.emit(Operation::Branch { target: 0 })
            }
        }
    }

    /// `call (results), function, (arguments)`: names of the caller's `.param` variables, which
    /// the function's own names come to mean.
    pub(super) fn call(&mut self, operands: &[Operand]) -> Lowered<()> {
        let (results, name, arguments) = match operands {
            [Operand::List(results), Operand::Name(name), Operand::List(arguments)] => {
                (&results[..], name, &arguments[..])
            }
            [Operand::List(results), Operand::Name(name)] => (&results[..], name, &[][..]),
            [Operand::Name(name), Operand::List(arguments)] => (&[][..], name, &arguments[..]),
            [Operand::Name(name)] => (&[][..], name, &[][..]),
            _ => return self.error("only direct calls are supported"),
        };
        if self.guard.slot != ALWAYS || self.guard.negated != 0 {
            return self.guarded_call(operands);
        }
        let at = self.at;
        let Some(function) = self.shared.functions.get(name.as_str()).copied() else {
            return self.error(format!("function `{name}` is not declared"));
        };
        let Some(body) = &function.body else {
            return self.error(format!("function `{name}` is declared but not defined"));
        };
        if self.calls.len() > 64 || self.calls.iter().any(|(caller, _)| caller == name) {
            return self.error(format!("`{name}` calls itself, which is not supported"));
        }
        let wanted = function.returns.iter().chain(&function.parameters);
        let given: Vec<&Operand> = results.iter().chain(arguments).collect();
        if given.len() != function.returns.len() + function.parameters.len() {
            return self.error(format!("a call of `{name}` with {} operands", given.len()));
        }
        let mut bound = Vec::new();
        for (declaration, operand) in wanted.zip(given) {
            let symbol = match operand {
                Operand::Name(variable) => self.scopes.symbol(variable),
                _ => None,
            };
            let Some(symbol) = symbol else {
                return self.error("arguments of calls must be .param variables");
            };
            bound.push((declaration.name.as_str(), symbol));
        }
        let caller = self.scopes.current;
        self.scopes.open_function();
        for (name, symbol) in bound {
            self.scopes.add_symbol(name, symbol);
        }
        self.calls.push((function.name.as_str(), Vec::new()));
        self.statements(body)?;
        let (_, returns) = self.calls.pop().unwrap_or_default();
        let end = self.here();
        for instruction in returns {
            self.program.code[instruction].operation = Operation::Branch { target: end };
        }
        self.scopes.current = caller;
        self.at = at;
        Ok(())
    }

    /// `@p call`: a branch around the call.
    fn guarded_call(&mut self, operands: &[Operand]) -> Lowered<()> {
        let around = self.program.code.len();
        self.guard.negated = !self.guard.negated;
        self.emit(Operation::Branch { target: 0 })?;
        self.guard = Truth { slot: ALWAYS, negated: 0 };
        self.call(operands)?;
        self.program.code[around].operation = Operation::Branch { target: self.here() };
        Ok(())
    }

    /// The predicate that stands for "no condition" where one could be.
    pub(super) fn no_condition() -> Truth {
        Truth { slot: NEVER, negated: 0 }
    }
}

impl Lowering<'_> {
    /// That there are as many operands as the instruction takes.
    pub(super) fn operands<'operand, const COUNT: usize>(
        &self,
        instruction: &'operand syntax::Instruction,
    ) -> Lowered<&'operand [Operand; COUNT]> {
        let operands = &instruction.operands;
        operands.as_slice().try_into().map_err(|_| {
            let cause =
                format!("{} takes {COUNT} operands, not {}", instruction.name, operands.len());
            ParseError::new(self.at, cause)
        })
    }
}
