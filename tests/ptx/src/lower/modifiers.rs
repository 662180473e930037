//! The dotted words of an instruction, each to be understood exactly once.

use super::Lowered;
use crate::error::ParseError;
use crate::text::At;
use crate::text::syntax::Instruction;
use crate::types::{Rounding, Type};

#[derive(Debug)]
pub(super) struct Modifiers<'source> {
    pub(super) at: At,
    name: &'source str,
    words: Vec<&'source str>,
}

impl<'source> Modifiers<'source> {
    pub(super) fn new(instruction: &'source Instruction) -> Self {
        let words = instruction.modifiers.iter().map(String::as_str).collect();
        Self { at: instruction.at, name: &instruction.name, words }
    }

    pub(super) fn error<T>(&self, cause: impl Into<String>) -> Lowered<T> {
        Err(ParseError::new(self.at, cause))
    }

    /// Whether the word is there; it counts as understood.
    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = self.words.iter().position(|one| *one == word);
        found.map(|index| self.words.remove(index)).is_some()
    }

    /// Drops words that mean nothing here, such as hints for caches.
    pub(super) fn ignore(&mut self, words: &[&str]) {
        self.words.retain(|word| !words.contains(word));
    }

    pub(super) fn ignore_prefix(&mut self, prefix: &str) {
        self.words.retain(|word| !word.starts_with(prefix));
    }

    /// The value of the first word that has one.
    pub(super) fn find<T>(&mut self, value: impl Fn(&str) -> Option<T>) -> Option<T> {
        let found = self.words.iter().position(|word| value(word).is_some())?;
        value(self.words.remove(found))
    }

    pub(super) fn one_of<T: Copy>(&mut self, names: &[(&str, T)]) -> Option<T> {
        self.find(|word| names.iter().find(|(name, _)| *name == word).map(|(_, value)| *value))
    }

    /// The first word.
    pub(super) fn first(&mut self) -> Option<&'source str> {
        if self.words.is_empty() { None } else { Some(self.words.remove(0)) }
    }

    /// The last word, which is a type in most instructions.
    pub(super) fn kind(&mut self) -> Lowered<Type> {
        match self.words.pop() {
            Some(word) => match Type::parse(word) {
                Some(kind) => Ok(kind),
                None => self.error(format!("`.{word}` is no type that {} knows", self.name)),
            },
            None => self.error(format!("{} without a type", self.name)),
        }
    }

    pub(super) fn rounding(&mut self) -> Option<Rounding> {
        self.one_of(&[
            ("rn", Rounding::Nearest),
            ("rz", Rounding::Zero),
            ("rm", Rounding::Down),
            ("rp", Rounding::Up),
            ("rna", Rounding::Away),
        ])
    }

    /// That every word was understood.
    pub(super) fn end(&self) -> Lowered<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => self.error(format!("{} with `.{word}` is not supported", self.name)),
        }
    }

    pub(super) fn unsupported<T>(&self, what: impl std::fmt::Display) -> Lowered<T> {
        self.error(format!("{} {what} is not supported", self.name))
    }
}
