//! A place in a file of which only the start has been read so far.

use crate::error::FormatError;

/// Strings and arrays longer than this are refused, as the reference reader does.
const LENGTH_MAX: u64 = 1 << 30;

/// Why reading stopped.
pub(super) enum Stop {
    /// What was asked for lies before the file's end, but not before the prefix's: this many bytes
    /// of the file's start would hold it.
    Need(u64),
    Refused(FormatError),
}

impl From<FormatError> for Stop {
    fn from(error: FormatError) -> Self {
        Self::Refused(error)
    }
}

pub(super) type Step<T> = Result<T, Stop>;

pub(super) struct Cursor<'a> {
    /// The start of the file; never longer than the file.
    prefix: &'a [u8],
    position: usize,
    file_bytes: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(prefix: &'a [u8], file_bytes: u64) -> Self {
        let readable = usize::try_from(file_bytes).map_or(prefix.len(), |n| n.min(prefix.len()));
        Self { prefix: &prefix[..readable], position: 0, file_bytes }
    }

    pub(super) const fn position(&self) -> u64 {
        self.position as u64
    }

    /// Makes sure that `count` things of at least `bytes_min` bytes each are in the prefix, so
    /// that memory can be set aside for them: what is allocated is bounded by what was read.
    ///
    /// The count itself is at byte `at`. It is `what` in the error's words.
    pub(super) fn expect(&self, what: &str, count: u64, bytes_min: u64, at: u64) -> Step<usize> {
        let left = self.file_bytes - self.position();
        let wanted = count.checked_mul(bytes_min).filter(|wanted| *wanted <= left);
        let Some(wanted) = wanted else {
            return Err(FormatError::truncated(format!(
                "{count} {what} need at least {} bytes but the file has only {left} left: \
                 the file is truncated or damaged",
                u128::from(count) * u128::from(bytes_min)
            ))
            .at(at)
            .into());
        };
        let end = self.position() + wanted;
        if end > self.prefix.len() as u64 {
            return Err(Stop::Need(end));
        }
        // Lossless where it matters: on a 32-bit machine a count over an address space was
        // answered with `Need` above, unless the things take no bytes, which none do.
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let rest = &self.prefix[self.position..];
        match rest.get(..count) {
            Some(taken) => {
                self.position += count;
                Ok(taken)
            }
            None => {
                // Small and fixed, or checked by `expect`: only a file that ends early comes here.
                let end = self.position() + count as u64;
                if end <= self.file_bytes {
                    return Err(Stop::Need(end));
                }
                Err(FormatError::truncated(format!(
                    "the header goes on to byte {end} but the file has {} bytes: \
                     the file is truncated",
                    self.file_bytes
                ))
                .at(self.position())
                .into())
            }
        }
    }

    pub(super) fn magic(&mut self) -> Step<[u8; 4]> {
        Ok(self.scalar::<u32>()?.to_le_bytes())
    }

    pub(super) fn scalar<T: Scalar>(&mut self) -> Step<T> {
        Ok(T::decode(self.take(T::BYTES)?))
    }

    /// `count` scalars, their length in bytes already checked by [`length`](Self::length).
    pub(super) fn scalars<T: Scalar>(&mut self, count: usize) -> Step<Vec<T>> {
        let bytes = self.take(count.saturating_mul(T::BYTES))?;
        Ok(bytes.chunks_exact(T::BYTES).map(T::decode).collect())
    }

    /// Reads the length of a string or array of things that take at least `bytes_min` bytes each.
    pub(super) fn length(&mut self, what: &str, bytes_min: u64) -> Step<usize> {
        let at = self.position();
        let count = self.scalar::<u64>()?;
        if count > LENGTH_MAX {
            return Err(FormatError::malformed(format!(
                "{count} {what} are more than the {LENGTH_MAX} that are allowed: \
                 the file is damaged"
            ))
            .at(at)
            .into());
        }
        self.expect(what, count, bytes_min, at)
    }

    /// A string: its length, then its bytes.
    pub(super) fn string(&mut self) -> Step<&'a [u8]> {
        let length = self.length("bytes of a string", 1)?;
        self.take(length)
    }

    /// A string that names something: UTF-8, not empty, at most `bytes_max` long.
    pub(super) fn name(&mut self, what: &str, bytes_max: usize) -> Step<&'a str> {
        let at = self.position();
        let bytes = self.string()?;
        let refuse = |cause: String| Stop::from(FormatError::malformed(cause).at(at));
        if bytes.is_empty() {
            return Err(refuse(format!("a {what} is empty")));
        }
        if bytes.len() > bytes_max {
            let length = bytes.len();
            return Err(refuse(format!(
                "a {what} is {length} bytes long, more than the {bytes_max} that are allowed"
            )));
        }
        std::str::from_utf8(bytes).map_err(|error| {
            refuse(format!(
                "a {what} is not valid UTF-8 ({error}): '{}'",
                bytes[..bytes.len().min(64)].escape_ascii()
            ))
        })
    }
}

/// A value of fixed width, stored little-endian.
pub(super) trait Scalar: Sized {
    const BYTES: usize;
    /// Decodes exactly [`BYTES`](Self::BYTES) bytes.
    fn decode(bytes: &[u8]) -> Self;
}

macro_rules! scalars {
    ($($number:ty)+) => { $(
        impl Scalar for $number {
            const BYTES: usize = size_of::<$number>();
            fn decode(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("callers pass exactly BYTES bytes"))
            }
        }
    )+ };
}
scalars! { u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 }

impl Scalar for bool {
    const BYTES: usize = 1;
    fn decode(bytes: &[u8]) -> Self {
        // Any other byte than 0 is true to the reference reader.
        bytes[0] != 0
    }
}
