//! From tokens to syntax: directives of the module and heads of functions.

use super::lexer::{At, Kind, Token, lex};
use super::syntax::{Declaration, Function, Literal, Source};
use crate::error::ParseError;
use crate::types::{Space, Type};

/// No variable may be larger, so that no text can make the parser allocate without bound.
const VARIABLE_BYTES_MAX: u64 = 1 << 26;

pub(crate) fn parse(text: &str) -> Result<Source, ParseError> {
    let tokens = lex(text)?;
    let end = tokens.last().map_or(At { line: 1, column: 1 }, |token| token.at);
    let mut parser = Parser { tokens: &tokens, position: 0, end };
    let mut source = Source { address_bits: 64, ..Source::default() };
    while parser.peek().is_some() {
        parser.directive(&mut source)?;
    }
    if source.version == (0, 0) {
        return Err(ParseError::new(At { line: 1, column: 1 }, "there is no .version"));
    }
    Ok(source)
}

pub(super) struct Parser<'text> {
    tokens: &'text [Token<'text>],
    position: usize,
    end: At,
}

impl<'text> Parser<'text> {
    pub(super) fn peek(&self) -> Option<Token<'text>> {
        self.tokens.get(self.position).copied()
    }

    pub(super) fn at(&self) -> At {
        self.peek().map_or(self.end, |token| token.at)
    }

    pub(super) fn error<T>(&self, cause: impl Into<String>) -> Result<T, ParseError> {
        Err(ParseError::new(self.at(), cause))
    }

    pub(super) fn next(&mut self) -> Result<Token<'text>, ParseError> {
        let Some(token) = self.peek() else {
            return self.error("the text ends in the middle of something");
        };
        self.position += 1;
        Ok(token)
    }

    pub(super) fn sees(&self, sign: &str) -> bool {
        self.peek().is_some_and(|token| token.kind == Kind::Sign && token.text == sign)
    }

    pub(super) fn accept(&mut self, sign: &str) -> bool {
        let sees = self.sees(sign);
        self.position += usize::from(sees);
        sees
    }

    pub(super) fn expect(&mut self, sign: &str) -> Result<(), ParseError> {
        if self.accept(sign) {
            return Ok(());
        }
        let found = self.peek().map_or("the end of the text", |token| token.text);
        self.error(format!("expected `{sign}`, found `{found}`"))
    }

    pub(super) fn take(&mut self, kind: Kind, what: &str) -> Result<&'text str, ParseError> {
        match self.peek() {
            Some(token) if token.kind == kind => {
                self.position += 1;
                Ok(token.text)
            }
            Some(token) => self.error(format!("expected {what}, found `{}`", token.text)),
            None => self.error(format!("expected {what}, found the end of the text")),
        }
    }

    pub(super) fn accept_dotted(&mut self, name: &str) -> bool {
        let sees = self.peek().is_some_and(|token| is_dotted(token, name));
        self.position += usize::from(sees);
        sees
    }

    pub(super) fn dotted(&mut self) -> Option<&'text str> {
        let token = self.peek().filter(|token| token.kind == Kind::Dotted)?;
        self.position += 1;
        Some(token.text)
    }

    /// `.loc` and `.file` end with their line.
    pub(super) fn skip_line(&mut self) {
        let line = self.at().line;
        while self.peek().is_some_and(|token| token.at.line == line) {
            self.position += 1;
        }
    }

    pub(super) fn skip_to_semicolon(&mut self) -> Result<(), ParseError> {
        while self.next()?.text != ";" {}
        Ok(())
    }

    fn skip_braces(&mut self) -> Result<(), ParseError> {
        while !self.sees("{") {
            self.next()?;
        }
        let mut depth = 0_u32;
        loop {
            match self.next()?.text {
                "{" => depth += 1,
                "}" if depth == 1 => return Ok(()),
                "}" => depth -= 1,
                _ => {}
            }
        }
    }

    fn directive(&mut self, source: &mut Source) -> Result<(), ParseError> {
        let at = self.at();
        let mut is_extern = false;
        loop {
            let name = self.take(Kind::Dotted, "a directive")?;
            match name {
                "version" => {
                    let text = self.take(Kind::Number, "a version")?;
                    source.version = version(text)
                        .ok_or_else(|| ParseError::new(at, format!("version `{text}`")))?;
                }
                "target" => {
                    source.target = self.take(Kind::Name, "a target")?.to_owned();
                    while self.accept(",") {
                        self.take(Kind::Name, "an option of the target")?;
                    }
                }
                "address_size" => {
                    source.address_bits = self.number32()?;
                    if source.address_bits != 64 {
                        return self.error("only .address_size 64 is supported");
                    }
                }
                "visible" | "weak" | "common" => continue,
                "extern" => {
                    is_extern = true;
                    continue;
                }
                "file" | "loc" => self.skip_line(),
                "section" => self.skip_braces()?,
                "pragma" | "alias" => self.skip_to_semicolon()?,
                "entry" | "func" => source.functions.push(self.function(at, name == "entry")?),
                "global" | "const" | "shared" => {
                    let space = Space::parse(name).unwrap_or(Space::Global);
                    self.variables(space, is_extern, &mut |one| source.variables.push(one))?;
                }
                other => return Err(ParseError::new(at, format!("directive `.{other}`"))),
            }
            return Ok(());
        }
    }

    fn function(&mut self, at: At, is_entry: bool) -> Result<Function, ParseError> {
        let returns = if self.sees("(") { self.parameters()? } else { Vec::new() };
        let name = self.take(Kind::Name, "the name of a function")?.to_owned();
        let parameters = if self.sees("(") { self.parameters()? } else { Vec::new() };
        let mut function = Function {
            at,
            name,
            is_entry,
            returns,
            parameters,
            block_max: None,
            block_required: None,
            blocks_per_multiprocessor_min: None,
            body: None,
        };
        while let Some(name) = self.dotted() {
            match name {
                "maxntid" => function.block_max = Some(self.block_shape()?),
                "reqntid" => function.block_required = Some(self.block_shape()?),
                "minnctapersm" => {
                    function.blocks_per_multiprocessor_min = Some(self.number32()?);
                }
                "maxnreg" | "maxnctapersm" | "maxclusterrank" => drop(self.number32()?),
                "reqnctapercluster" => drop(self.block_shape()?),
                "pragma" => self.skip_to_semicolon()?,
                "noreturn" | "explicitcluster" => {}
                other => return self.error(format!("directive `.{other}` of a function")),
            }
        }
        if !self.accept(";") {
            function.body = Some(self.body()?);
        }
        Ok(function)
    }

    fn block_shape(&mut self) -> Result<[u32; 3], ParseError> {
        let mut shape = [1; 3];
        shape[0] = self.number32()?;
        for extent in &mut shape[1..] {
            if self.accept(",") {
                *extent = self.number32()?;
            }
        }
        Ok(shape)
    }

    fn parameters(&mut self) -> Result<Vec<Declaration>, ParseError> {
        let mut parameters = Vec::new();
        self.expect("(")?;
        while !self.accept(")") {
            if !self.accept_dotted("param") {
                return self.error("only parameters in .param are supported");
            }
            parameters.push(self.variable(Space::Parameter, false)?);
            if !self.sees(")") {
                self.expect(",")?;
            }
        }
        Ok(parameters)
    }

    /// What follows the state space: `.align 8 .b8 name[4][2] = {…}, other;`
    pub(super) fn variables(
        &mut self,
        space: Space,
        is_extern: bool,
        push: &mut dyn FnMut(Declaration),
    ) -> Result<(), ParseError> {
        let mut one = self.variable(space, is_extern)?;
        while self.accept(",") {
            let mut other = one.clone();
            push(one);
            self.shape(&mut other)?;
            one = other;
        }
        push(one);
        self.expect(";")
    }

    fn variable(&mut self, space: Space, is_extern: bool) -> Result<Declaration, ParseError> {
        let at = self.at();
        let (mut align, mut element, mut vector, mut to_pointee) = (None, None, 1, false);
        while let Some(name) = self.dotted() {
            match name {
                // Behind `.ptr`, the alignment is that of what is pointed to.
                "align" if to_pointee => drop(self.number32()?),
                "align" => align = Some(self.number32()?),
                "ptr" => to_pointee = true,
                "v2" => vector = 2,
                "v4" => vector = 4,
                "managed" | "attribute" => {}
                _ if to_pointee && Space::parse(name).is_some() => {}
                _ => match Type::parse(name) {
                    Some(kind) => element = Some(kind),
                    None => return self.error(format!("`.{name}` in a declaration")),
                },
            }
        }
        let Some(element) = element else { return self.error("a variable without a type") };
        let align = align.unwrap_or(element.bytes() * vector);
        if !align.is_power_of_two() || align > 1 << 16 {
            return self.error(format!("alignment {align}"));
        }
        let mut declaration = Declaration {
            at,
            space,
            name: String::new(),
            align,
            element,
            bytes: element.bytes() * vector,
            is_extern,
            initial: Vec::new(),
        };
        self.shape(&mut declaration)?;
        Ok(declaration)
    }

    fn shape(&mut self, declaration: &mut Declaration) -> Result<(), ParseError> {
        declaration.at = self.at();
        declaration.name = self.take(Kind::Name, "the name of a variable")?.to_owned();
        let mut bytes = u64::from(declaration.element.bytes());
        let mut unsized_first = false;
        while self.accept("[") {
            if self.accept("]") {
                unsized_first = true;
                continue;
            }
            bytes = bytes.saturating_mul(u64::from(self.number32()?));
            self.expect("]")?;
        }
        if self.accept("=") {
            declaration.initial.clear();
            self.initial(&mut declaration.initial)?;
        }
        if unsized_first {
            bytes = bytes.saturating_mul(declaration.initial.len() as u64);
        }
        if bytes > VARIABLE_BYTES_MAX {
            return self.error(format!("a variable of {bytes} bytes"));
        }
        declaration.bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(())
    }

    /// `1`, `{1, -2}`, `{{1, 2}, {3, 4}}`: the braces say nothing that the order does not.
    fn initial(&mut self, literals: &mut Vec<Literal>) -> Result<(), ParseError> {
        let mut depth = 0_u32;
        loop {
            if self.accept("{") {
                depth += 1;
                continue;
            }
            if !self.sees("}") {
                literals.push(self.literal()?);
            }
            while depth > 0 && self.accept("}") {
                depth -= 1;
            }
            if depth == 0 {
                return Ok(());
            }
            if !self.sees("{") {
                self.expect(",")?;
            }
        }
    }

    pub(super) fn number32(&mut self) -> Result<u32, ParseError> {
        let at = self.at();
        match self.literal()? {
            Literal::Integer(value) if value <= u64::from(u32::MAX) => {
                Ok(u32::try_from(value).unwrap_or(u32::MAX))
            }
            _ => Err(ParseError::new(at, "expected a count")),
        }
    }

    pub(super) fn literal(&mut self) -> Result<Literal, ParseError> {
        let at = self.at();
        let negative = self.accept("-");
        let text = self.take(Kind::Number, "a number")?;
        let literal =
            number(text).ok_or_else(|| ParseError::new(at, format!("number `{text}`")))?;
        Ok(match literal {
            literal if !negative => literal,
            Literal::Integer(value) => Literal::Integer(value.wrapping_neg()),
            Literal::Decimal(value) => Literal::Decimal(-value),
            Literal::Single(bits) => Literal::Single(bits ^ 1 << 31),
            Literal::Double(bits) => Literal::Double(bits ^ 1 << 63),
        })
    }
}

pub(super) fn is_dotted(token: Token<'_>, name: &str) -> bool {
    token.kind == Kind::Dotted && token.text == name
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn number(text: &str) -> Option<Literal> {
    let radix = |digits: &str, radix| {
        u64::from_str_radix(digits.strip_suffix('U').unwrap_or(digits), radix).ok()
    };
    let (mark, digits) = text.split_at(text.len().min(2));
    Some(match mark {
        "0f" | "0F" => Literal::Single(u32::from_str_radix(digits, 16).ok()?),
        "0d" | "0D" => Literal::Double(u64::from_str_radix(digits, 16).ok()?),
        "0x" | "0X" => Literal::Integer(radix(digits, 16)?),
        "0b" | "0B" => Literal::Integer(radix(digits, 2)?),
        _ if text.contains(['.', 'e', 'E']) => Literal::Decimal(text.parse().ok()?),
        _ if text.len() > 1 && text.starts_with('0') => Literal::Integer(radix(text, 8)?),
        _ => Literal::Integer(radix(text, 10)?),
    })
}
