//! Atomics, lane after lane.

use super::access::{read_bytes, write_bytes};
use super::block::State;
use super::copies::lanes;
use super::races::Kind;
use super::warp::{Stop, Warp, resolve};
use crate::error::FaultKind;
use crate::numeric::formats::{Brain, Half, Small};
use crate::numeric::lane::Lane;
use crate::program::{Atomic, AtomicKind};
use crate::types::{Space, Type};

/// What an atomic leaves behind where `old` was.
fn combined(kind: AtomicKind, element: Type, old: u64, b: u64, c: u64) -> u64 {
    match kind {
        AtomicKind::Exchange => b,
        AtomicKind::CompareExchange => {
            let mask = u64::MAX >> (64 - element.bytes() * 8);
            if old & mask == b & mask { c } else { old }
        }
        AtomicKind::And => old & b,
        AtomicKind::Or => old | b,
        AtomicKind::Xor => old ^ b,
        AtomicKind::Increment => {
            if old >= u64::from(u32::get(b)) {
                0
            } else {
                old + 1
            }
        }
        AtomicKind::Decrement => {
            let b = u64::from(u32::get(b));
            if old == 0 || old > b { b } else { old - 1 }
        }
        _ => arithmetic(kind, element, old, b),
    }
}

pub(super) fn arithmetic(kind: AtomicKind, element: Type, a: u64, b: u64) -> u64 {
    macro_rules! integer {
        ($kind:ty) => {{
            let (a, b) = (<$kind>::get(a), <$kind>::get(b));
            match kind {
                AtomicKind::Minimum => a.min(b).put(),
                AtomicKind::Maximum => a.max(b).put(),
                _ => a.wrapping_add(b).put(),
            }
        }};
    }
    macro_rules! float {
        ($kind:ty) => {{
            let (a, b) = (<$kind>::get(a), <$kind>::get(b));
            match kind {
                AtomicKind::Minimum => a.min(b).put(),
                AtomicKind::Maximum => a.max(b).put(),
                _ => (a + b).put(),
            }
        }};
    }
    match element {
        Type::U16 => integer!(u16),
        Type::S16 => integer!(i16),
        Type::U32 => integer!(u32),
        Type::S32 => integer!(i32),
        Type::S64 => integer!(i64),
        Type::F32 => float!(f32),
        Type::F64 => float!(f64),
        Type::F16 => small::<Half>(kind, a, b),
        Type::Bf16 => small::<Brain>(kind, a, b),
        Type::F16x2 => small::<Half>(kind, a, b) | small::<Half>(kind, a >> 16, b >> 16) << 16,
        Type::Bf16x2 => small::<Brain>(kind, a, b) | small::<Brain>(kind, a >> 16, b >> 16) << 16,
        _ => integer!(u64),
    }
}

fn small<T: Small>(kind: AtomicKind, a: u64, b: u64) -> u64 {
    let (a, b) = (T::get(a).value(), T::get(b).value());
    let value = match kind {
        AtomicKind::Minimum => a.min(b),
        AtomicKind::Maximum => a.max(b),
        _ => a + b,
    };
    T::round(f64::from(value)).put()
}

impl Warp {
    pub(super) fn atomic(
        &mut self,
        state: &mut State<'_>,
        atomic: &Atomic,
        active: u32,
    ) -> Result<(), Box<Stop>> {
        let bytes = atomic.element.bytes();
        for lane in lanes(active) {
            let generic = self.address(atomic.address, lane);
            let (space, address) = resolve(atomic.space, generic);
            self.check_aligned(generic, bytes, "atomic", lane)?;
            let [b, c] = [atomic.b, atomic.c].map(|slot| self.rows[slot as usize][lane]);
            let replace = |old: u64| combined(atomic.kind, atomic.element, old, b, c);
            let before = match space {
                Space::Global | Space::Generic => {
                    let region = state
                        .region(self.pc, address, bytes, "atomic")
                        .map_err(|kind| self.stop(lane, kind))?;
                    region.update(address - region.start, bytes, replace)
                }
                Space::Shared => {
                    self.check_shared(state, address, bytes, "atomic", lane)?;
                    self.note(state, Kind::Atomic, lane, address, bytes)?;
                    let before = read_bytes(&state.shared, address as usize, bytes);
                    write_bytes(&mut state.shared, address as usize, bytes, replace(before));
                    before
                }
                _ => return Err(self.stop(lane, FaultKind::ReadOnly(generic))),
            };
            if let Some(d) = atomic.d {
                self.rows[d as usize][lane] = before;
            }
        }
        Ok(())
    }
}
