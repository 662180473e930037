//! Why a file was refused, in words a person can act on.

use std::fmt;

/// What sort of trouble a [`FormatError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FormatErrorKind {
    /// The bytes contradict the format or themselves.
    Malformed,
    /// The file ends before what its header describes.
    Truncated,
    /// A valid file of a version, byte order or type that is not read here.
    Unsupported,
    /// A part or shard is missing, or the parts do not belong together.
    Parts,
}

/// A model file that was refused.
///
/// [`Display`](fmt::Display) is one line that names what is refused: file, tensor, offset, cause.
/// The remedy, where one is known, is kept apart, so that a caller can print it on its own line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FormatError(Box<Details>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Details {
    kind: FormatErrorKind,
    file: Option<String>,
    offset: Option<u64>,
    tensor: Option<String>,
    cause: String,
    remedy: Option<String>,
}

impl fmt::Display for Details {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(formatter, "{}: ", Plain(file))?;
        }
        match (&self.tensor, self.offset) {
            (Some(tensor), Some(offset)) => {
                write!(formatter, "tensor {} at offset {offset}: ", Quoted(tensor))?;
            }
            (Some(tensor), None) => write!(formatter, "tensor {}: ", Quoted(tensor))?,
            (None, Some(offset)) => write!(formatter, "at offset {offset}: ")?,
            (None, None) => {}
        }
        formatter.write_str(&self.cause)
    }
}

impl FormatError {
    fn new(kind: FormatErrorKind, cause: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            file: None,
            offset: None,
            tensor: None,
            cause: cause.into(),
            remedy: None,
        }))
    }

    pub(crate) fn malformed(cause: impl Into<String>) -> Self {
        Self::new(FormatErrorKind::Malformed, cause)
    }

    pub(crate) fn unsupported(cause: impl Into<String>) -> Self {
        Self::new(FormatErrorKind::Unsupported, cause)
    }

    pub(crate) fn parts(cause: impl Into<String>) -> Self {
        Self::new(FormatErrorKind::Parts, cause)
    }

    pub(crate) fn truncated(cause: impl Into<String>) -> Self {
        Self::new(FormatErrorKind::Truncated, cause)
            .with_remedy("the file is incomplete: download or copy it again")
    }

    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    pub(crate) fn in_tensor(mut self, tensor: impl Into<String>) -> Self {
        self.0.tensor = Some(tensor.into());
        self
    }

    pub(crate) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// The same error, naming the file it is about. A name that is already there is kept.
    #[must_use]
    pub fn in_file(mut self, name: impl Into<String>) -> Self {
        self.0.file.get_or_insert_with(|| name.into());
        self
    }

    /// What sort of trouble it is.
    #[must_use]
    pub fn kind(&self) -> FormatErrorKind {
        self.0.kind
    }

    /// The file that is refused, once [`in_file`](Self::in_file) has named it.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.0.file.as_deref()
    }

    /// Where in the file, in bytes from its start.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The tensor that is to blame.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// What is wrong, without file, offset and tensor.
    #[must_use]
    pub fn cause_text(&self) -> &str {
        &self.0.cause
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }
}

/// How much of a stranger's name an error shows: names may be 64 KiB long.
const SHOWN_CHARS_MAX: usize = 160;

/// Whether a character does something to a line of text beside standing in it: a control character,
/// a separator of lines, or one that turns the direction of writing, which makes a name look like
/// another one. Names in a model may have any.
#[must_use]
pub fn steers_text(letter: char) -> bool {
    let turns = ['\u{61c}', '\u{200e}', '\u{200f}'].contains(&letter)
        || ('\u{202a}'..='\u{202e}').contains(&letter)
        || ('\u{2066}'..='\u{2069}').contains(&letter);
    letter.is_control() || turns || ['\u{2028}', '\u{2029}'].contains(&letter)
}

/// A name from a file, safe to print on one line: what steers text escaped, shortened.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for shown in chars.by_ref().take(SHOWN_CHARS_MAX) {
            if steers_text(shown) {
                write!(formatter, "{}", shown.escape_debug())?;
            } else {
                write!(formatter, "{shown}")?;
            }
        }
        if chars.next().is_some() { formatter.write_str("…") } else { Ok(()) }
    }
}

/// [`Plain`], in quotation marks.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "'{}'", Plain(self.0))
    }
}

/// A few names in full and the number of the rest: `'a', 'b', 'c' and 12 more`.
pub(crate) fn some_of<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN_MAX: usize = 4;
    let shown: Vec<String> =
        names.iter().take(SHOWN_MAX).map(|name| Quoted(name.as_ref()).to_string()).collect();
    let rest = match names.len().saturating_sub(SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &rest
}

/// A shape from a file, of which more than a few dimensions are only counted.
pub(crate) struct Dimensions<'a>(pub(crate) &'a [u64]);

impl fmt::Display for Dimensions<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 16;
        match self.0.split_at_checked(SHOWN_MAX) {
            Some((shown, rest)) if !rest.is_empty() => {
                write!(formatter, "{shown:?} and {} more dimensions", rest.len())
            }
            _ => write!(formatter, "{:?}", self.0),
        }
    }
}
