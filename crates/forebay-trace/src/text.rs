//! What events are called and what else is known of them.

use std::sync::Arc;

/// A name or a word: cheap to clone, so that many events can share one.
#[derive(Clone, Debug)]
pub enum Text {
    /// Known when the program was built.
    Fixed(&'static str),
    /// Made while it runs.
    Shared(Arc<str>),
}

impl Text {
    /// Its letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Fixed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl From<&'static str> for Text {
    fn from(text: &'static str) -> Self {
        Self::Fixed(text)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Shared(text.into())
    }
}

/// What is known of an event.
#[derive(Clone, Debug)]
pub enum Value {
    /// Bytes, offsets, numbers of things.
    Count(u64),
    /// Anything in words.
    Text(Text),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<Text> for Value {
    fn from(text: Text) -> Self {
        Self::Text(text)
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

/// A value with its name.
#[derive(Clone, Debug)]
pub struct Arg {
    pub(crate) name: &'static str,
    pub(crate) value: Value,
}

impl Arg {
    /// A value of this name.
    #[must_use]
    pub fn new(name: &'static str, value: impl Into<Value>) -> Self {
        Self { name, value: value.into() }
    }
}

/// What something is called, for whoever records it without knowing what it is.
#[derive(Clone, Debug)]
pub struct Label {
    /// The name of its spans.
    pub name: Text,
    /// What else is known of it.
    pub args: Vec<Arg>,
}

/// Labels by number, of reads for example.
pub type Labels = Arc<dyn Fn(usize) -> Label + Send + Sync>;
