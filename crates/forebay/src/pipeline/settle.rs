//! The end of a load: was it whole?

use super::UploadOutcome;
use crate::error::{Error, ReadContext};
use crate::plan::{Home, Plan};
use forebay_device::{DeviceError, Segment};
use forebay_format::Tensor;
use forebay_io::{
    FailureKind, FileIdentity, ModelFile, PrefetchOutcome, ReadFailure, ReadOutcome, ReadSpec,
};

/// Whether everything arrived, from files that are still what they were.
pub(super) fn check(
    plan: &Plan,
    read: &ReadOutcome,
    upload: &UploadOutcome,
    prefetch: &PrefetchOutcome,
) -> Result<(), Error> {
    if let Some(error) = &upload.failure {
        return Err(failed_copy(plan, error.clone()));
    }
    // It stops the reads, so it comes before what they say of that.
    if let Some(failure) = &prefetch.failure
        && failure.kind != FailureKind::Cancelled
    {
        check_changes(plan)?;
        let tensors = plan.model.catalog().tensors();
        let at = |&index: &usize| {
            let tensor = &tensors[index];
            plan.homes[index] == Home::Mapped
                && Some(tensor.file) == failure.file
                && tensor.end() > failure.offset
        };
        let path = failure.file.map(|file| plan.files[file].path.clone());
        let tensor = (0..tensors.len()).find(at).map(|index| tensors[index].name.clone());
        let context = ReadContext { path, tensor };
        return Err(Error::Read { context, failure: failure.clone() });
    }
    if let Some(failure) = read.schedule.failure() {
        if failure.kind == FailureKind::Cancelled {
            return Err(Error::Cancelled);
        }
        // A file that was cut short explains a refused read better than the refusal does.
        if failure.kind != FailureKind::EndOfFile {
            check_changes(plan)?;
        }
        let context = context(plan, failure);
        return Err(Error::Read { context, failure: failure.clone() });
    }
    // Its own error came above: somebody asked it to stop.
    if prefetch.failure.is_some() {
        return Err(Error::Cancelled);
    }
    check_identities(plan)
}

/// Tells a device's failure with the file and the tensor whose bytes were on their way.
fn failed_copy(plan: &Plan, error: DeviceError) -> Error {
    let DeviceError::Copy { device, read, refusal } = error else { return error.into() };
    let path = plan.files[plan.reads[read].file].path.clone();
    let of_device = |segment: &&Segment| plan.arenas[segment.arena].backend.to_string() == device;
    let segment = plan.segments[read].iter().find(of_device);
    let tensor = segment.map(|segment| {
        let tensor = plan.arenas[segment.arena].tensors[segment.tensor];
        plan.model.catalog().tensors()[tensor].name.clone()
    });
    Error::Copy { context: ReadContext { path: Some(path), tensor }, device, refusal }
}

fn context(plan: &Plan, failure: &ReadFailure) -> ReadContext {
    let path = failure.file.map(|file| plan.files[file].path.clone());
    let tensor = failure.read.and_then(|read| {
        let number = |segment: &Segment| plan.arenas[segment.arena].tensors[segment.tensor];
        let tensors = plan.model.catalog().tensors();
        to_blame(tensors, &plan.reads[read], &plan.segments[read], number, failure.offset)
    });
    let name = |tensor: usize| plan.model.catalog().tensors()[tensor].name.clone();
    ReadContext { path, tensor: tensor.map(name) }
}

/// The tensor that a read failed for: the one that `offset` of its file lies in, as far as the read
/// was of it or is known to have failed just there, or else the next that it brings bytes of.
pub(crate) fn to_blame(
    tensors: &[Tensor],
    spec: &ReadSpec,
    segments: &[Segment],
    number: impl Fn(&Segment) -> usize,
    offset: u64,
) -> Option<usize> {
    let missing = offset - spec.offset;
    let reaches =
        |segment: &&Segment| u64::from(segment.slot_offset) + u64::from(segment.bytes) > missing;
    let brought = segments.iter().find(reaches).or(segments.last()).map(number);
    let lies_there = |&tensor: &usize| {
        let tensor = &tensors[tensor];
        tensor.file == spec.file && (tensor.offset..tensor.end()).contains(&offset)
    };
    // What a read takes along since it lies between may be another's.
    let along = || (0..tensors.len()).find(lies_there).filter(|_| missing > 0);
    brought.filter(lies_there).or_else(along).or(brought)
}

/// Whether the files are still what they were when they were opened.
pub(crate) fn check_identities(plan: &Plan) -> Result<(), Error> {
    for file in plan.model.files().iter() {
        let changed = |change: String| Error::Changed { path: file.path().to_owned(), change };
        let was = file.identity();
        let now = file.identity_now().map_err(|error| changed(error.to_string()))?;
        if now != was {
            return Err(changed(difference(&was, &now)));
        }
    }
    Ok(())
}

/// Whether a file is known to be another than it was: that nobody can tell any more, since its
/// filesystem is gone, explains no failure.
pub(crate) fn check_changes(plan: &Plan) -> Result<(), Error> {
    let is_gone = |file: &ModelFile| file.identity_now().is_err();
    if plan.model.files().iter().any(is_gone) { Ok(()) } else { check_identities(plan) }
}

fn difference(was: &FileIdentity, now: &FileIdentity) -> String {
    if was.bytes == now.bytes {
        "it was written to".to_owned()
    } else {
        format!("it had {} bytes and has {}", was.bytes, now.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_format::Dtype;
    use forebay_io::Access;

    /// Three tensors of 4096 bytes with 1000 between them, of which a read brings the outer two.
    #[test]
    fn the_tensor_that_a_sector_lies_in_is_to_blame() {
        let tensor = |index: u64| Tensor {
            name: format!("t{index}"),
            dtype: Dtype::U8,
            shape: vec![4096],
            file: 0,
            offset: 8192 + index * 5096,
            bytes: 4096,
        };
        let tensors: Vec<Tensor> = (0..3).map(tensor).collect();
        let spec = ReadSpec {
            file: 0,
            offset: 8192,
            bytes: 16384,
            need_bytes: 14288,
            access: Access::Direct,
        };
        let segment = |tensor: u32, slot_offset: u32| Segment {
            arena: 0,
            tensor: tensor as usize,
            slot_offset,
            tensor_offset: 0,
            bytes: 4096,
        };
        let segments = [segment(0, 0), segment(1, 10192)];
        let number = |segment: &Segment| [0, 2][segment.tensor];
        for (offset, expected) in
            [(8192, 0), (12287, 0), (12800, 2), (13824, 1), (17500, 2), (18384, 2), (24064, 2)]
        {
            let found = to_blame(&tensors, &spec, &segments, number, offset);
            assert_eq!(found, Some(expected), "{offset}");
        }
    }
}
