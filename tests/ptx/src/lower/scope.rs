//! Names of a function: registers, variables and labels, by the braces they are declared in.

use super::{Lowered, Symbol};
use crate::error::ParseError;
use crate::program::{PredicateSlot, Slot};
use crate::text::At;
use crate::types::Type;
use std::collections::HashMap;

/// What a register's name stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Register {
    Row(Slot),
    Predicate(PredicateSlot),
}

#[derive(Debug, Default)]
struct Scope {
    parent: usize,
    registers: HashMap<String, Register>,
    /// `%r<100>`: the prefix, how many, and of which type; made when first used.
    families: Vec<(String, u32, Type)>,
    symbols: HashMap<String, Symbol>,
    labels: HashMap<String, u32>,
    tables: HashMap<String, Vec<String>>,
}

/// All scopes of a program; those of functions called from it included, each call its own.
#[derive(Debug)]
pub(super) struct Scopes {
    scopes: Vec<Scope>,
    pub(super) current: usize,
}

impl Scopes {
    pub(super) fn new() -> Self {
        Self { scopes: vec![Scope::default()], current: 0 }
    }

    pub(super) fn open(&mut self) {
        self.open_within(self.current);
    }

    /// Opens a scope that sees nothing of its caller's names.
    pub(super) fn open_function(&mut self) {
        self.open_within(0);
    }

    fn open_within(&mut self, parent: usize) {
        self.scopes.push(Scope { parent, ..Scope::default() });
        self.current = self.scopes.len() - 1;
    }

    pub(super) fn close(&mut self) {
        self.current = self.scopes[self.current].parent;
    }

    /// The innermost `Some`, from `scope` outwards.
    fn find<T>(&self, mut scope: usize, get: impl Fn(&Scope) -> Option<T>) -> Option<T> {
        loop {
            match get(&self.scopes[scope]) {
                Some(found) => return Some(found),
                None if scope == 0 => return None,
                None => scope = self.scopes[scope].parent,
            }
        }
    }

    pub(super) fn add_family(&mut self, prefix: &str, count: u32, kind: Type) {
        self.scopes[self.current].families.push((prefix.to_owned(), count, kind));
    }

    pub(super) fn add_symbol(&mut self, name: &str, symbol: Symbol) {
        self.scopes[self.current].symbols.insert(name.to_owned(), symbol);
    }

    pub(super) fn add_label(&mut self, name: &str, target: u32) {
        self.scopes[self.current].labels.insert(name.to_owned(), target);
    }

    pub(super) fn add_table(&mut self, name: &str, labels: &[String]) {
        self.scopes[self.current].tables.insert(name.to_owned(), labels.to_vec());
    }

    pub(super) fn symbol(&self, name: &str) -> Option<Symbol> {
        self.find(self.current, |scope| scope.symbols.get(name).copied())
    }

    pub(super) fn label(&self, scope: usize, name: &str, at: At) -> Lowered<u32> {
        self.find(scope, |scope| scope.labels.get(name).copied())
            .ok_or_else(|| ParseError::new(at, format!("there is no label `{name}`")))
    }

    pub(super) fn table(&self, scope: usize, name: &str, at: At) -> Lowered<Vec<String>> {
        self.find(scope, |scope| scope.tables.get(name).cloned())
            .ok_or_else(|| ParseError::new(at, format!("there are no .branchtargets `{name}`")))
    }

    /// The register of that name; `make` gives it a slot when it is met first.
    pub(super) fn register(
        &mut self,
        name: &str,
        make: impl FnOnce(Type) -> Register,
    ) -> Option<Register> {
        let mut scope = self.current;
        loop {
            let one = &mut self.scopes[scope];
            if let Some(register) = one.registers.get(name) {
                return Some(*register);
            }
            let family = one.families.iter().find(|(prefix, count, _)| {
                let number = name.strip_prefix(prefix.as_str());
                // A register declared alone is a family of its full name.
                number.is_some_and(|digits| {
                    digits.is_empty() && *count == 0
                        || digits.parse::<u32>().is_ok_and(|number| number < *count)
                })
            });
            if let Some((_, _, kind)) = family {
                let register = make(*kind);
                one.registers.insert(name.to_owned(), register);
                return Some(register);
            }
            if scope == 0 {
                return None;
            }
            scope = one.parent;
        }
    }
}
