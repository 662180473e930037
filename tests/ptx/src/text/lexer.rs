//! Cuts a text into tokens. Comments and white space are dropped, places are kept.

use crate::error::ParseError;

/// A place in the text, both from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A name: `ld`, `%r1`, `$L__BB0_1`, `_`.
    Name,
    /// A name behind a dot, the dot not included: `global`, `L1::no_allocate`.
    Dotted,
    /// Anything that begins with a digit.
    Number,
    /// Between quotes, quotes included.
    String,
    /// One character.
    Sign,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'text> {
    pub(crate) kind: Kind,
    pub(crate) text: &'text str,
    pub(crate) at: At,
}

struct Cursor<'text> {
    text: &'text str,
    position: usize,
    line: u32,
    line_start: usize,
}

pub(crate) fn lex(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let mut cursor = Cursor { text, position: 0, line: 1, line_start: 0 };
    let mut tokens = Vec::new();
    while let Some(token) = cursor.next()? {
        tokens.push(token);
    }
    Ok(tokens)
}

fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%')
}

impl<'text> Cursor<'text> {
    fn byte(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.position + ahead).copied().unwrap_or(0)
    }

    fn at(&self) -> At {
        let column = u32::try_from(self.position - self.line_start).unwrap_or(u32::MAX - 1) + 1;
        At { line: self.line, column }
    }

    fn step(&mut self) {
        if self.byte(0) == b'\n' {
            self.line += 1;
            self.line_start = self.position + 1;
        }
        self.position += 1;
    }

    fn at_end(&self) -> bool {
        self.position >= self.text.len()
    }

    fn skip_blank(&mut self) -> Result<(), ParseError> {
        loop {
            match (self.byte(0), self.byte(1)) {
                (b'/', b'/') => {
                    while !self.at_end() && self.byte(0) != b'\n' {
                        self.step();
                    }
                }
                (b'/', b'*') => {
                    let at = self.at();
                    while (self.byte(0), self.byte(1)) != (b'*', b'/') {
                        if self.at_end() {
                            return Err(ParseError::new(at, "this comment does not end"));
                        }
                        self.step();
                    }
                    self.position += 2;
                }
                // A C string's end is part of what NVRTC hands out.
                (blank, _) if !self.at_end() && (blank.is_ascii_whitespace() || blank == 0) => {
                    self.step();
                }
                _ => return Ok(()),
            }
        }
    }

    fn while_holds(&mut self, holds: impl Fn(u8) -> bool) {
        while !self.at_end() && holds(self.byte(0)) {
            self.position += 1;
        }
    }

    fn next(&mut self) -> Result<Option<Token<'text>>, ParseError> {
        self.skip_blank()?;
        if self.at_end() {
            return Ok(None);
        }
        let (at, start) = (self.at(), self.position);
        let first = self.byte(0);
        let kind = if first.is_ascii_digit() {
            self.number();
            Kind::Number
        } else if in_name(first) {
            self.while_holds(in_name);
            Kind::Name
        } else if first == b'.' && in_name(self.byte(1)) {
            self.position += 1;
            self.dotted();
            return Ok(Some(Token { kind: Kind::Dotted, text: self.since(start + 1), at }));
        } else if first == b'"' {
            self.position += 1;
            self.while_holds(|byte| byte != b'"' && byte != b'\n');
            if self.byte(0) != b'"' {
                return Err(ParseError::new(at, "this string does not end"));
            }
            self.position += 1;
            Kind::String
        } else if first.is_ascii_graphic() {
            self.position += 1;
            Kind::Sign
        } else {
            return Err(ParseError::new(at, format!("byte {first:#04x} has no meaning in PTX")));
        };
        Ok(Some(Token { kind, text: self.since(start), at }))
    }

    fn dotted(&mut self) {
        loop {
            self.while_holds(in_name);
            if (self.byte(0), self.byte(1)) != (b':', b':') {
                return;
            }
            self.position += 2;
        }
    }

    /// `12`, `0x1F`, `7U`, `0f3F800000`, `0d…`, `1.5`, `2e-3`.
    fn number(&mut self) {
        let marked = self.byte(0) == b'0' && self.byte(1).is_ascii_alphabetic();
        self.while_holds(|byte| byte.is_ascii_alphanumeric());
        if marked {
            return;
        }
        if self.byte(0) == b'.' && self.byte(1).is_ascii_digit() {
            self.position += 1;
            self.while_holds(|byte| byte.is_ascii_alphanumeric());
        }
        let exponent = matches!(self.text.as_bytes()[self.position - 1], b'e' | b'E');
        if exponent && matches!(self.byte(0), b'+' | b'-') && self.byte(1).is_ascii_digit() {
            self.position += 1;
            self.while_holds(|byte| byte.is_ascii_digit());
        }
    }

    fn since(&self, start: usize) -> &'text str {
        &self.text[start..self.position]
    }
}
