//! Makes functions over rows from expressions over lanes. All 32 lanes are computed, whoever is
//! active, so that the compiler can use vectors; expressions must therefore hold for any bits.

/// `unary!(f32, |a| -a)`
macro_rules! unary {
    ($kind:ty, |$a:ident| $value:expr) => {{
        fn row(out: &mut crate::numeric::lane::Row, a: &crate::numeric::lane::Row) {
            for (out, a) in out.iter_mut().zip(a) {
                let $a = <$kind as crate::numeric::lane::Lane>::get(*a);
                *out = crate::numeric::lane::Lane::put($value);
            }
        }
        row as crate::program::UnaryRow
    }};
}

/// `binary!(f32, |a, b| a + b)`
macro_rules! binary {
    ($kind:ty, |$a:ident, $b:ident| $value:expr) => {
        binary!($kind, $kind, |$a, $b| $value)
    };
    ($first:ty, $second:ty, |$a:ident, $b:ident| $value:expr) => {{
        use crate::numeric::lane::{Lane, Row};
        fn row(out: &mut Row, a: &Row, b: &Row) {
            for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
                let ($a, $b) = (<$first as Lane>::get(*a), <$second as Lane>::get(*b));
                *out = Lane::put($value);
            }
        }
        row as crate::program::BinaryRow
    }};
}

/// `ternary!(f32, |a, b, c, extra| a.mul_add(b, c))`
macro_rules! ternary {
    ($kind:ty, |$a:ident, $b:ident, $c:ident, $extra:ident| $value:expr) => {
        ternary!($kind, $kind, $kind, |$a, $b, $c, $extra| $value)
    };
    (
        $first:ty, $second:ty, $third:ty,
        |$a:ident, $b:ident, $c:ident, $extra:ident| $value:expr
    ) => {{
        use crate::numeric::lane::{LANES, Lane, Row};
        fn row(out: &mut Row, a: &Row, b: &Row, c: &Row, $extra: u32) {
            for lane in 0..LANES {
                let $a = <$first as Lane>::get(a[lane]);
                let $b = <$second as Lane>::get(b[lane]);
                let $c = <$third as Lane>::get(c[lane]);
                out[lane] = Lane::put($value);
            }
        }
        row as crate::program::TernaryRow
    }};
}

/// `by_integer!(kind, binary, |a, b| a.wrapping_add(b))`: `None` if `kind` is no integer type.
macro_rules! by_integer {
    ($kind:expr, $shape:ident, $($closure:tt)*) => {
        match $kind {
            crate::types::Type::U16 => Some($shape!(u16, $($closure)*)),
            crate::types::Type::S16 => Some($shape!(i16, $($closure)*)),
            crate::types::Type::U32 => Some($shape!(u32, $($closure)*)),
            crate::types::Type::S32 => Some($shape!(i32, $($closure)*)),
            crate::types::Type::U64 => Some($shape!(u64, $($closure)*)),
            crate::types::Type::S64 => Some($shape!(i64, $($closure)*)),
            _ => None,
        }
    };
}

pub(super) use {binary, by_integer, ternary, unary};
