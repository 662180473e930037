//! ExecuTorch's scalar types.

use crate::Dtype;
use crate::error::FormatError;

/// What a scalar type is here.
pub(super) enum Known {
    /// The same.
    As(Dtype),
    /// Numbers of this type, which mean more, or other, than themselves: a scale that is kept
    /// elsewhere, or bits that no arithmetic is for.
    InBitsOf(Dtype),
    /// Nothing: no type here has its elements.
    Nothing,
}

use Known::{As, InBitsOf, Nothing};

/// By number, as in `runtime/core/portable_type/scalar_type.h` of ExecuTorch 1.5, which are also
/// PyTorch's. The schema of the files leaves out those that no writer of theirs makes.
const SCALAR_TYPES: [(&str, Known); 30] = [
    ("Byte", As(Dtype::U8)),
    ("Char", As(Dtype::I8)),
    ("Short", As(Dtype::I16)),
    ("Int", As(Dtype::I32)),
    ("Long", As(Dtype::I64)),
    ("Half", As(Dtype::F16)),
    ("Float", As(Dtype::F32)),
    ("Double", As(Dtype::F64)),
    ("ComplexHalf", Nothing),
    ("ComplexFloat", As(Dtype::C64)),
    ("ComplexDouble", Nothing),
    ("Bool", As(Dtype::BOOL)),
    ("QInt8", InBitsOf(Dtype::I8)),
    ("QUInt8", InBitsOf(Dtype::U8)),
    ("QInt32", InBitsOf(Dtype::I32)),
    ("BFloat16", As(Dtype::BF16)),
    // Several elements in a byte: whether `sizes` counts elements or bytes is written nowhere.
    ("QUInt4x2", Nothing),
    ("QUInt2x4", Nothing),
    ("Bits1x8", Nothing),
    ("Bits2x4", Nothing),
    ("Bits4x2", Nothing),
    ("Bits8", InBitsOf(Dtype::U8)),
    ("Bits16", InBitsOf(Dtype::U16)),
    ("Float8_e5m2", As(Dtype::F8_E5M2)),
    ("Float8_e4m3fn", As(Dtype::F8_E4M3)),
    ("Float8_e5m2fnuz", As(Dtype::F8_E5M2FNUZ)),
    ("Float8_e4m3fnuz", As(Dtype::F8_E4M3FNUZ)),
    ("UInt16", As(Dtype::U16)),
    ("UInt32", As(Dtype::U32)),
    ("UInt64", As(Dtype::U64)),
];

/// The type here, and ExecuTorch's name for it where that says more.
pub(super) fn dtype(number: i8) -> Result<(Dtype, Option<&'static str>), FormatError> {
    let known = usize::try_from(number).ok().and_then(|number| SCALAR_TYPES.get(number));
    match known {
        Some((_, As(dtype))) => Ok((*dtype, None)),
        Some((name, InBitsOf(dtype))) => Ok((*dtype, Some(*name))),
        Some((name, Nothing)) => {
            Err(FormatError::unsupported(format!("scalar type {number} ({name}) is not read"))
                .with_remedy("export the tensor with another type"))
        }
        None => Err(FormatError::unsupported(format!(
            "scalar type {number} is not one of ExecuTorch's"
        ))
        .with_remedy("the file is damaged, or newer than this version of forebay")),
    }
}
