//! Element and block types of all formats, in one table.

use serde::{Serialize, Serializer};
use std::fmt;

/// Writes the enum and every function over it from one row a type:
/// variant (also its spelling), elements and bytes of a block, GGUF's id for it, whether
/// safetensors has it.
macro_rules! dtypes {
    ($($(#[$doc:meta])+ $variant:ident: $elements:literal in $bytes:literal,
        gguf $id:expr, safetensors $safetensors:literal;)+) => {
        /// How the elements of a tensor are stored.
        ///
        /// One enum for all formats: where two formats spell a type alike (`F16`) they mean the
        /// same bytes. A variant is spelt as the formats spell it, and so is its
        /// [`name`](Self::name).
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Dtype {
            $($(#[$doc])+ $variant,)+
        }

        impl Dtype {
            /// Every type, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The type's name, spelt as the formats spell it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// How many elements share a block; 1 for plain types. Types that are not whole
            /// bytes wide count as blocks too: two `F4` make a byte.
            #[must_use]
            pub const fn block_elements(self) -> u64 {
                match self { $(Self::$variant => $elements,)+ }
            }

            /// How many bytes a block takes.
            #[must_use]
            pub const fn block_bytes(self) -> u64 {
                match self { $(Self::$variant => $bytes,)+ }
            }

            /// The number GGUF stores for this type, or `None` if GGUF has no such type.
            #[must_use]
            pub const fn gguf_id(self) -> Option<u32> {
                match self { $(Self::$variant => $id,)+ }
            }

            /// Whether safetensors files may hold this type.
            #[must_use]
            pub const fn in_safetensors(self) -> bool {
                match self { $(Self::$variant => $safetensors,)+ }
            }
        }
    };
}

// Block sizes of the GGUF types are those of `GGML_QUANT_SIZES` in the `gguf` package 0.19, which
// a test compares with this table. (There Q8_1 is 40 bytes; ggml itself has since shrunk it to 36.
// It is an intermediate type of dot products that no file holds.) Those without an id are from
// safetensors 0.8.
dtypes! {
    /// IEEE 754 single precision.
    F32: 1 in 4, gguf Some(0), safetensors true;
    /// IEEE 754 half precision.
    F16: 1 in 2, gguf Some(1), safetensors true;
    /// The upper half of a single-precision float.
    BF16: 1 in 2, gguf Some(30), safetensors true;
    /// IEEE 754 double precision.
    F64: 1 in 8, gguf Some(28), safetensors true;
    /// Signed 8-bit integer.
    I8: 1 in 1, gguf Some(24), safetensors true;
    /// Signed 16-bit integer.
    I16: 1 in 2, gguf Some(25), safetensors true;
    /// Signed 32-bit integer.
    I32: 1 in 4, gguf Some(26), safetensors true;
    /// Signed 64-bit integer.
    I64: 1 in 8, gguf Some(27), safetensors true;
    /// Unsigned 8-bit integer.
    U8: 1 in 1, gguf None, safetensors true;
    /// Unsigned 16-bit integer.
    U16: 1 in 2, gguf None, safetensors true;
    /// Unsigned 32-bit integer.
    U32: 1 in 4, gguf None, safetensors true;
    /// Unsigned 64-bit integer.
    U64: 1 in 8, gguf None, safetensors true;
    /// A boolean in a byte.
    BOOL: 1 in 1, gguf None, safetensors true;
    /// Two single-precision floats: a complex number.
    C64: 1 in 8, gguf None, safetensors true;
    /// 4-bit float of OCP MX (E2M1), two in a byte.
    F4: 2 in 1, gguf None, safetensors true;
    /// 6-bit float of OCP MX, four in three bytes.
    F6_E2M3: 4 in 3, gguf None, safetensors true;
    /// 6-bit float of OCP MX, four in three bytes.
    F6_E3M2: 4 in 3, gguf None, safetensors true;
    /// 8-bit float with 5 exponent bits.
    F8_E5M2: 1 in 1, gguf None, safetensors true;
    /// 8-bit float with 4 exponent bits.
    F8_E4M3: 1 in 1, gguf None, safetensors true;
    /// 8-bit power of two: the scale of OCP MX blocks.
    F8_E8M0: 1 in 1, gguf None, safetensors true;
    /// 8-bit float with 4 exponent bits, no infinities and no negative zero.
    F8_E4M3FNUZ: 1 in 1, gguf None, safetensors true;
    /// 8-bit float with 5 exponent bits, no infinities and no negative zero.
    F8_E5M2FNUZ: 1 in 1, gguf None, safetensors true;
    /// 4 bits and a scale.
    Q4_0: 32 in 18, gguf Some(2), safetensors false;
    /// 4 bits, a scale and a minimum.
    Q4_1: 32 in 20, gguf Some(3), safetensors false;
    /// 5 bits and a scale.
    Q5_0: 32 in 22, gguf Some(6), safetensors false;
    /// 5 bits, a scale and a minimum.
    Q5_1: 32 in 24, gguf Some(7), safetensors false;
    /// 8 bits and a scale.
    Q8_0: 32 in 34, gguf Some(8), safetensors false;
    /// 8 bits, a scale and a sum.
    Q8_1: 32 in 40, gguf Some(9), safetensors false;
    /// K-quant of 2 bits.
    Q2_K: 256 in 84, gguf Some(10), safetensors false;
    /// K-quant of 3 bits.
    Q3_K: 256 in 110, gguf Some(11), safetensors false;
    /// K-quant of 4 bits.
    Q4_K: 256 in 144, gguf Some(12), safetensors false;
    /// K-quant of 5 bits.
    Q5_K: 256 in 176, gguf Some(13), safetensors false;
    /// K-quant of 6 bits.
    Q6_K: 256 in 210, gguf Some(14), safetensors false;
    /// K-quant of 8 bits, with sums.
    Q8_K: 256 in 292, gguf Some(15), safetensors false;
    /// Codebook quant of about 2.06 bits.
    IQ2_XXS: 256 in 66, gguf Some(16), safetensors false;
    /// Codebook quant of about 2.31 bits.
    IQ2_XS: 256 in 74, gguf Some(17), safetensors false;
    /// Codebook quant of about 3.06 bits.
    IQ3_XXS: 256 in 98, gguf Some(18), safetensors false;
    /// Codebook quant of about 1.56 bits.
    IQ1_S: 256 in 50, gguf Some(19), safetensors false;
    /// 4 bits through a non-linear table.
    IQ4_NL: 32 in 18, gguf Some(20), safetensors false;
    /// Codebook quant of about 3.44 bits.
    IQ3_S: 256 in 110, gguf Some(21), safetensors false;
    /// Codebook quant of about 2.56 bits.
    IQ2_S: 256 in 82, gguf Some(22), safetensors false;
    /// 4 bits through a non-linear table, blocks of 256.
    IQ4_XS: 256 in 136, gguf Some(23), safetensors false;
    /// Codebook quant of 1.75 bits.
    IQ1_M: 256 in 56, gguf Some(29), safetensors false;
    /// Ternary, five digits in a byte.
    TQ1_0: 256 in 54, gguf Some(34), safetensors false;
    /// Ternary, four digits in a byte.
    TQ2_0: 256 in 66, gguf Some(35), safetensors false;
    /// OCP MX: 4-bit floats under a shared power of two.
    MXFP4: 32 in 17, gguf Some(39), safetensors false;
    /// NVIDIA's 4-bit floats under shared 8-bit scales.
    NVFP4: 64 in 36, gguf Some(40), safetensors false;
    /// One bit and a scale.
    Q1_0: 128 in 18, gguf Some(41), safetensors false;
}

impl Dtype {
    /// The type with this name, in whichever format.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    /// The type GGUF stores as `id`.
    #[must_use]
    pub fn from_gguf_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.gguf_id() == Some(id))
    }

    /// The bytes that `elements` elements take, or `None` if they are not whole blocks or if the
    /// number overflows.
    #[must_use]
    pub const fn bytes_for(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl Serialize for Dtype {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
