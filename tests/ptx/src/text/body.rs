//! From tokens to syntax: the statements of a function.

use super::lexer::{At, Kind};
use super::parser::{Parser, is_dotted};
use super::syntax::{Instruction, Operand, Statement};
use crate::error::ParseError;
use crate::types::{Space, Type};

impl Parser<'_> {
    /// `{ … }`, the outer braces not among the statements.
    pub(super) fn body(&mut self) -> Result<Vec<Statement>, ParseError> {
        self.expect("{")?;
        let (mut statements, mut depth) = (Vec::new(), 0_u32);
        loop {
            if self.accept("{") {
                depth += 1;
                statements.push(Statement::Open);
            } else if self.accept("}") {
                if depth == 0 {
                    return Ok(statements);
                }
                depth -= 1;
                statements.push(Statement::Close);
            } else if !self.accept(";") {
                self.statement(&mut statements)?;
            }
        }
    }

    fn statement(&mut self, statements: &mut Vec<Statement>) -> Result<(), ParseError> {
        let at = self.at();
        if let Some(name) = self.dotted() {
            return self.body_directive(at, name, statements);
        }
        let guard = if self.accept("@") {
            let is_negated = self.accept("!");
            Some((self.take(Kind::Name, "a predicate")?.to_owned(), is_negated))
        } else {
            None
        };
        let name = self.take(Kind::Name, "an instruction")?.to_owned();
        if guard.is_none() && self.accept(":") {
            statements.push(Statement::Label(name));
            return Ok(());
        }
        let mut modifiers = Vec::new();
        while let Some(modifier) = self.dotted() {
            modifiers.push(modifier.to_owned());
        }
        let mut operands = Vec::new();
        while !self.accept(";") {
            operands.push(self.operand()?);
            if !self.sees(";") {
                self.expect(",")?;
            }
        }
        let instruction = Instruction { at, guard, name, modifiers, operands };
        statements.push(Statement::Instruction(instruction));
        Ok(())
    }

    fn body_directive(
        &mut self,
        at: At,
        name: &str,
        statements: &mut Vec<Statement>,
    ) -> Result<(), ParseError> {
        match name {
            "loc" | "file" => self.skip_line(),
            "pragma" | "callprototype" | "maxnreg" => self.skip_to_semicolon()?,
            "branchtargets" => {
                let mut labels = Vec::new();
                while !self.accept(";") {
                    labels.push(self.take(Kind::Name, "a label")?.to_owned());
                    self.accept(",");
                }
                statements.push(Statement::BranchTargets(labels));
            }
            "reg" => self.registers(at, statements)?,
            _ => match Space::parse(name) {
                Some(space) => self.variables(space, false, &mut |one| {
                    statements.push(Statement::Variable(one));
                })?,
                None => return Err(ParseError::new(at, format!("directive `.{name}`"))),
            },
        }
        Ok(())
    }

    fn registers(&mut self, at: At, statements: &mut Vec<Statement>) -> Result<(), ParseError> {
        let name = self.take(Kind::Dotted, "a type")?;
        let Some(kind) = Type::parse(name) else {
            return Err(ParseError::new(at, format!("registers of type `.{name}`")));
        };
        loop {
            let name = self.take(Kind::Name, "the name of a register")?.to_owned();
            let count = if self.accept("<") {
                let count = self.number32()?;
                self.expect(">")?;
                Some(count)
            } else {
                None
            };
            statements.push(Statement::Registers { at, kind, name, count });
            if self.accept(";") {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    fn operand(&mut self) -> Result<Operand, ParseError> {
        if self.accept("{") {
            return Ok(Operand::Vector(self.list("}")?));
        }
        if self.accept("(") {
            return Ok(Operand::List(self.list(")")?));
        }
        if self.accept("[") {
            return self.address();
        }
        if self.accept("!") {
            return Ok(Operand::Not(self.take(Kind::Name, "a predicate")?.to_owned()));
        }
        let first = self.plain()?;
        if self.accept("|") {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.plain()?)));
        }
        match first {
            Operand::Name(name) if self.sees("+") || self.sees("-") => {
                Ok(Operand::Offset(name, self.offset()?))
            }
            first => Ok(first),
        }
    }

    fn list(&mut self, end: &str) -> Result<Vec<Operand>, ParseError> {
        let mut operands = Vec::new();
        while !self.accept(end) {
            operands.push(self.plain()?);
            if !self.sees(end) {
                self.expect(",")?;
            }
        }
        Ok(operands)
    }

    fn address(&mut self) -> Result<Operand, ParseError> {
        let base = self.plain()?;
        let offset = self.offset()?;
        self.expect("]")?;
        Ok(Operand::Address(Box::new(base), offset))
    }

    /// `+4`, `+-4`, `-4`, or nothing.
    fn offset(&mut self) -> Result<i64, ParseError> {
        if !self.accept("+") && !self.sees("-") {
            return Ok(0);
        }
        match self.literal()? {
            super::syntax::Literal::Integer(value) => Ok(value.cast_signed()),
            _ => self.error("an offset that is no integer"),
        }
    }

    /// A name or a number.
    fn plain(&mut self) -> Result<Operand, ParseError> {
        match self.peek() {
            Some(token) if token.kind == Kind::Name => {
                self.next()?;
                let mut name = token.text.to_owned();
                // `%tid.x`; of ordinary registers PTX knows vectors too, which nobody emits.
                for part in ["x", "y", "z", "w"] {
                    if self.peek().is_some_and(|token| is_dotted(token, part)) {
                        self.next()?;
                        name.push('.');
                        name.push_str(part);
                        break;
                    }
                }
                Ok(Operand::Name(name))
            }
            Some(token) if token.kind == Kind::Number || token.text == "-" => {
                Ok(Operand::Literal(self.literal()?))
            }
            Some(token) => self.error(format!("`{}` is no operand", token.text)),
            None => self.error("the text ends in the middle of an instruction"),
        }
    }
}
