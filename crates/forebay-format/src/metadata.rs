//! Key/values that travel with the tensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

/// Ordered key/values of a model: GGUF's key/values, safetensors' `__metadata__`, or what
/// [`ptd`](crate::ptd) tells of single tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    by_key: HashMap<Box<str>, usize>,
}

impl Metadata {
    /// Adds a key/value, or gives `false` and changes nothing if the key is there already.
    pub(crate) fn insert(&mut self, key: &str, value: Value) -> bool {
        if self.by_key.contains_key(key) {
            return false;
        }
        self.by_key.insert(key.into(), self.entries.len());
        self.entries.push((key.to_owned(), value));
        true
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|index| &self.entries[*index].1)
    }

    /// All key/values, in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A string as the file holds it. GGUF does not promise UTF-8: vocabularies hold byte fragments.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Vec<u8>);

impl Text {
    /// The raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The string, if it is valid UTF-8.
    #[must_use]
    pub fn to_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The string, with invalid bytes replaced.
    #[must_use]
    pub fn to_string_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.to_string_lossy())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{}\"", self.0.escape_ascii())
    }
}

/// Writes `Value` and `Array`, which have the same element types, from one list.
macro_rules! values {
    ($($variant:ident($element:ty) $name:literal,)+) => {
        /// A value of a model's metadata. Only GGUF has others than strings.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        #[allow(missing_docs)]
        pub enum Value {
            $($variant($element),)+
            Array(Array),
        }

        /// An array of a model's metadata, all elements of one type.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        #[allow(missing_docs)]
        pub enum Array {
            $($variant(Vec<$element>),)+
            Array(Vec<Array>),
        }

        impl Value {
            /// The type's name, as GGUF's documentation spells it, in lower case.
            #[must_use]
            pub const fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                    Self::Array(_) => "array",
                }
            }
        }

        impl Array {
            /// The elements' type, as [`Value::type_name`] names it.
            #[must_use]
            pub const fn element_type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                    Self::Array(_) => "array",
                }
            }

            /// How many elements there are.
            #[must_use]
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(elements) => elements.len(),)+
                    Self::Array(elements) => elements.len(),
                }
            }

            /// The element at `index`, copied into a value.
            #[must_use]
            pub fn get(&self, index: usize) -> Option<Value> {
                match self {
                    $(Self::$variant(all) => all.get(index).cloned().map(Value::$variant),)+
                    Self::Array(all) => all.get(index).cloned().map(Value::Array),
                }
            }
        }
    };
}

values! {
    U8(u8) "uint8",
    I8(i8) "int8",
    U16(u16) "uint16",
    I16(i16) "int16",
    U32(u32) "uint32",
    I32(i32) "int32",
    U64(u64) "uint64",
    I64(i64) "int64",
    F32(f32) "float32",
    F64(f64) "float64",
    Bool(bool) "bool",
    String(Text) "string",
}

impl Value {
    /// The value, if it is an integer of any width that is not negative.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U64(value) => Some(value),
            _ => self.as_i64().and_then(|value| value.try_into().ok()),
        }
    }

    /// The value, if it is an integer of any width that fits.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::I8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::U64(value) => value.try_into().ok(),
            Self::I64(value) => Some(value),
            _ => None,
        }
    }

    /// The value, if it is a float of either width.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The value, if it is a boolean.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The value, if it is a string and valid UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => text.to_str(),
            _ => None,
        }
    }

    /// The value, if it is an array.
    #[must_use]
    pub const fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    /// Scalars as they are; an array as its type and length, `string[32000]`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(value) => value.fmt(formatter),
            Self::I8(value) => value.fmt(formatter),
            Self::U16(value) => value.fmt(formatter),
            Self::I16(value) => value.fmt(formatter),
            Self::U32(value) => value.fmt(formatter),
            Self::I32(value) => value.fmt(formatter),
            Self::U64(value) => value.fmt(formatter),
            Self::I64(value) => value.fmt(formatter),
            Self::F32(value) => value.fmt(formatter),
            Self::F64(value) => value.fmt(formatter),
            Self::Bool(value) => value.fmt(formatter),
            Self::String(text) => text.fmt(formatter),
            Self::Array(array) => {
                write!(formatter, "{}[{}]", array.element_type_name(), array.len())
            }
        }
    }
}

impl Array {
    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
