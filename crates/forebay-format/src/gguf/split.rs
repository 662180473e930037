//! GGUF models in several parts, each a GGUF file of its own.

use super::GgufFile;
use crate::error::{FormatError, some_of};
use crate::{Catalog, Format, Metadata, SourceFile};

/// What a part of a split model says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Which part it is, from 0 (`split.no`).
    pub index: u64,
    /// How many parts the model has (`split.count`), at least 2.
    pub count: u64,
    /// How many tensors all parts have together (`split.tensors.count`), where it says so.
    pub tensors: Option<u64>,
}

impl Split {
    /// `None` for a model in one file, which may say so itself by a count of 0 or 1.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Option<Self>, FormatError> {
        let Some(count) = integer(metadata, "split.count")?.filter(|count| *count > 1) else {
            return Ok(None);
        };
        let Some(index) = integer(metadata, "split.no")? else {
            return Err(FormatError::malformed(format!(
                "split.count says {count} parts but split.no does not say which this is"
            )));
        };
        if index >= count {
            return Err(FormatError::malformed(format!(
                "split.no is {index} but split.count only {count}"
            )));
        }
        Ok(Some(Self { index, count, tensors: integer(metadata, "split.tensors.count")? }))
    }
}

/// Writers differ in the width of these numbers (u16, i32, u64), so any integer will do.
fn integer(metadata: &Metadata, key: &str) -> Result<Option<u64>, FormatError> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    value.as_u64().map(Some).ok_or_else(|| {
        FormatError::malformed(format!("{key} is not a count but a {}", value.type_name()))
    })
}

/// The parts of a split file's name: `llama-00002-of-00003.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitName {
    /// What comes before the numbers, `llama`; folders too, if they were given.
    pub prefix: String,
    /// Which part it is, from 1.
    pub number: u32,
    /// How many parts there are.
    pub count: u32,
}

impl SplitName {
    /// The name of another part of the same model, numbered from 1.
    #[must_use]
    pub fn file_name(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// Takes a split file's name apart. `None` if it is not made like one.
#[must_use]
pub fn split_name(file_name: &str) -> Option<SplitName> {
    let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let name = SplitName {
        prefix: prefix.to_owned(),
        number: number.parse().ok()?,
        count: count.parse().ok()?,
    };
    let plausible = (1..=name.count).contains(&name.number);
    // Made anew it must be the same: that refuses '+1', '007' and whatever else parses.
    (plausible && name.file_name(name.number) == file_name).then_some(name)
}

/// Makes the catalog of a model of one file, or of all parts of a split one, in order.
///
/// Each part is its name, its length and its header. The metadata is that of the first part.
///
/// # Errors
///
/// When parts are missing, out of order, or of different models, or when two of them have a tensor
/// of the same name.
pub fn catalog(parts: Vec<(String, u64, GgufFile)>) -> Result<Catalog, FormatError> {
    check_parts(&parts)?;
    let mut files = Vec::with_capacity(parts.len());
    let mut tensors = Vec::new();
    let mut metadata = Metadata::default();
    for (index, (name, bytes, part)) in parts.into_iter().enumerate() {
        files.push(SourceFile { name, bytes });
        tensors.extend(part.tensors.into_iter().map(|mut tensor| {
            tensor.file = index;
            tensor
        }));
        if index == 0 {
            metadata = part.metadata;
        }
    }
    Catalog::new(Format::Gguf, files, tensors, metadata, Vec::new())
}

fn check_parts(parts: &[(String, u64, GgufFile)]) -> Result<(), FormatError> {
    let Some((first_name, _, first)) = parts.first() else { return Ok(()) };
    let Some(split) = first.split else {
        return match parts.get(1) {
            Some((name, ..)) => Err(FormatError::parts(format!(
                "{} other files were given with it, {name} the first, but it is not split",
                parts.len() - 1
            ))
            .in_file(first_name)),
            None => Ok(()),
        };
    };
    for (name, _, part) in parts {
        let wrong = match part.split {
            None => Some("it is not a part of a split model".to_owned()),
            Some(other) if other.count != split.count => Some(format!(
                "it is one of {} parts but {first_name} is one of {}",
                other.count, split.count
            )),
            Some(other) if other.tensors != split.tensors => {
                Some(format!("its split.tensors.count differs from that of {first_name}"))
            }
            Some(_) => None,
        };
        if let Some(cause) = wrong {
            return Err(FormatError::parts(cause).in_file(name));
        }
    }
    check_missing(parts, split.count)?;
    for (wanted, (name, _, part)) in (0_u64..).zip(parts) {
        if let Some(Split { index, .. }) = part.split.filter(|split| split.index != wanted) {
            let cause =
                format!("split.no is {index} but {wanted} belongs here: parts out of order");
            return Err(FormatError::parts(cause).in_file(name));
        }
    }
    let tensors: usize = parts.iter().map(|(_, _, part)| part.tensors.len()).sum();
    match split.tensors {
        Some(promised) if promised != tensors as u64 => Err(FormatError::parts(format!(
            "split.tensors.count promises {promised} tensors but the parts have {tensors}"
        ))
        .in_file(first_name)),
        _ => Ok(()),
    }
}

/// Refuses a set of parts that lacks one, and names what it lacks.
fn check_missing(parts: &[(String, u64, GgufFile)], count: u64) -> Result<(), FormatError> {
    /// Nobody reads more; and the count is a stranger's, so all of them could be very many.
    const NAMED_MAX: usize = 16;
    let mut there: Vec<u64> =
        parts.iter().filter_map(|(_, _, part)| part.split.map(|split| split.index)).collect();
    there.sort_unstable();
    if let Some(twice) = there.windows(2).find(|pair| pair[0] == pair[1]) {
        let cause = format!("part {} of {count} was given twice", twice[0] + 1);
        return Err(FormatError::parts(cause).in_file(&parts[0].0));
    }
    let missing_count = count - there.len() as u64;
    if missing_count == 0 {
        return Ok(());
    }
    let like = split_name(&parts[0].0).filter(|name| u64::from(name.count) == count);
    let missing: Vec<String> = (0..count)
        .filter(|index| there.binary_search(index).is_err())
        .take(NAMED_MAX)
        .map(|index| match (&like, u32::try_from(index + 1)) {
            (Some(name), Ok(number)) => name.file_name(number),
            _ => format!("part {}", index + 1),
        })
        .collect();
    Err(FormatError::parts(format!(
        "the model has {count} parts and {missing_count} are missing: {}",
        some_of(&missing)
    ))
    .with_remedy("put all parts into one folder, under the names they were made with")
    .in_file(&parts[0].0))
}
