//! Loads and stores, each lane checked for alignment and bounds.

use super::block::State;
use super::copies::lanes;
use super::races::Kind;
use super::warp::{Stop, Warp, resolve};
use crate::error::FaultKind;
use crate::program::{Access, Address, Slot};
use crate::types::Space;

/// Extends a value of so many bytes by its sign.
#[inline]
fn extend(value: u64, bytes: u32, is_signed: bool) -> u64 {
    if !is_signed {
        return value;
    }
    let shift = 64 - bytes * 8;
    ((value << shift).cast_signed() >> shift).cast_unsigned()
}

/// So many bytes at `offset`, a constant number, so that no call is made to copy them.
#[inline]
fn part<const BYTES: usize>(memory: &[u8], offset: usize) -> [u8; BYTES] {
    let mut part = [0; BYTES];
    part.copy_from_slice(&memory[offset..offset + BYTES]);
    part
}

#[inline]
pub(super) fn read_bytes(memory: &[u8], offset: usize, bytes: u32) -> u64 {
    match bytes {
        1 => u64::from(memory[offset]),
        2 => u64::from(u16::from_le_bytes(part(memory, offset))),
        4 => u64::from(u32::from_le_bytes(part(memory, offset))),
        _ => u64::from_le_bytes(part(memory, offset)),
    }
}

#[inline]
pub(super) fn write_bytes(memory: &mut [u8], offset: usize, bytes: u32, value: u64) {
    let value = value.to_le_bytes();
    match bytes {
        1 => memory[offset] = value[0],
        2 => memory[offset..offset + 2].copy_from_slice(&value[..2]),
        4 => memory[offset..offset + 4].copy_from_slice(&value[..4]),
        _ => memory[offset..offset + 8].copy_from_slice(&value),
    }
}

impl Warp {
    pub(super) fn load(
        &mut self,
        state: &mut State<'_>,
        access: &Access,
        d: &[Slot; 4],
        active: u32,
    ) -> Result<(), Box<Stop>> {
        let Access { space, bytes, is_signed, count, address } = *access;
        let whole = bytes * count;
        for lane in lanes(active) {
            let generic = self.address(address, lane);
            let (space, address) = resolve(space, generic);
            self.check_aligned(generic, whole, "load", lane)?;
            match space {
                Space::Global | Space::Generic | Space::Constant => {
                    let address =
                        address + if space == Space::Constant { space.window() } else { 0 };
                    let region = state
                        .region(self.pc, address, whole, "load")
                        .map_err(|kind| self.stop(lane, kind))?;
                    let offset = address - region.start;
                    for part in 0..count {
                        let value = region.read(offset + u64::from(part * bytes), bytes);
                        let value = extend(value, bytes, is_signed);
                        self.rows[d[part as usize] as usize][lane] = value;
                    }
                }
                Space::Shared => {
                    self.check_shared(state, address, whole, "load", lane)?;
                    self.note(state, Kind::Read, lane, address, whole)?;
                    for part in 0..count {
                        let offset = address as usize + (part * bytes) as usize;
                        let value = read_bytes(&state.shared, offset, bytes);
                        let value = extend(value, bytes, is_signed);
                        self.rows[d[part as usize] as usize][lane] = value;
                    }
                }
                Space::Local => {
                    let start = self.local_offset(state, address, whole, "load", lane)?;
                    for part in 0..count {
                        let offset = start + (part * bytes) as usize;
                        let value =
                            extend(read_bytes(&self.local, offset, bytes), bytes, is_signed);
                        self.rows[d[part as usize] as usize][lane] = value;
                    }
                }
                Space::Parameter => {
                    let parameters = state.context.launch.parameters;
                    let what = "load of parameters";
                    self.check_bounds(parameters.len(), address, whole, what, lane)?;
                    for part in 0..count {
                        let offset = address as usize + (part * bytes) as usize;
                        let value = extend(read_bytes(parameters, offset, bytes), bytes, is_signed);
                        self.rows[d[part as usize] as usize][lane] = value;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        state: &mut State<'_>,
        access: &Access,
        slots: &[Slot; 4],
        active: u32,
    ) -> Result<(), Box<Stop>> {
        let Access { space, bytes, count, address, .. } = *access;
        let whole = bytes * count;
        for lane in lanes(active) {
            let generic = self.address(address, lane);
            let (space, address) = resolve(space, generic);
            self.check_aligned(generic, whole, "store", lane)?;
            match space {
                Space::Global | Space::Generic => {
                    let region = state
                        .region(self.pc, address, whole, "store")
                        .map_err(|kind| self.stop(lane, kind))?;
                    let offset = address - region.start;
                    for part in 0..count {
                        let value = self.rows[slots[part as usize] as usize][lane];
                        region.write(offset + u64::from(part * bytes), bytes, value);
                    }
                }
                Space::Shared => {
                    self.check_shared(state, address, whole, "store", lane)?;
                    self.note(state, Kind::Write, lane, address, whole)?;
                    for part in 0..count {
                        let value = self.rows[slots[part as usize] as usize][lane];
                        let offset = address as usize + (part * bytes) as usize;
                        write_bytes(&mut state.shared, offset, bytes, value);
                    }
                }
                Space::Local => {
                    let start = self.local_offset(state, address, whole, "store", lane)?;
                    for part in 0..count {
                        let value = self.rows[slots[part as usize] as usize][lane];
                        let offset = start + (part * bytes) as usize;
                        write_bytes(&mut self.local, offset, bytes, value);
                    }
                }
                Space::Parameter | Space::Constant => {
                    return Err(self.stop(lane, FaultKind::ReadOnly(generic)));
                }
            }
        }
        Ok(())
    }

    #[inline]
    pub(super) fn check_aligned(
        &self,
        address: u64,
        bytes: u32,
        what: &'static str,
        lane: usize,
    ) -> Result<(), Box<Stop>> {
        if address & u64::from(bytes - 1) == 0 {
            return Ok(());
        }
        Err(self.stop(lane, FaultKind::Misaligned { what, address, bytes }))
    }

    #[inline]
    fn check_bounds(
        &self,
        memory_bytes: usize,
        address: u64,
        bytes: u32,
        what: &'static str,
        lane: usize,
    ) -> Result<(), Box<Stop>> {
        if address.saturating_add(u64::from(bytes)) <= memory_bytes as u64 {
            return Ok(());
        }
        let detail = format!("there are {memory_bytes} bytes");
        Err(self.stop(lane, FaultKind::OutOfBounds { what, address, bytes, detail }))
    }

    /// That an address of shared memory is aligned to the access and inside.
    #[inline]
    pub(super) fn check_shared(
        &self,
        state: &State<'_>,
        address: u64,
        bytes: u32,
        what: &'static str,
        lane: usize,
    ) -> Result<(), Box<Stop>> {
        self.check_aligned(address, bytes, what, lane)?;
        if address.saturating_add(u64::from(bytes)) <= state.shared.len() as u64 {
            return Ok(());
        }
        let detail = format!("the block has {} bytes of shared memory", state.shared.len());
        Err(self.stop(lane, FaultKind::OutOfBounds { what, address, bytes, detail }))
    }

    /// Where in the warp's local memory a lane's address is.
    #[inline]
    pub(super) fn local_offset(
        &self,
        state: &State<'_>,
        address: u64,
        bytes: u32,
        what: &'static str,
        lane: usize,
    ) -> Result<usize, Box<Stop>> {
        let own = state.context.entry.program.local_bytes as usize;
        self.check_bounds(own, address, bytes, what, lane)?;
        Ok(lane * own + address as usize)
    }

    /// An address that must be in shared memory, as an offset in it.
    pub(super) fn shared_address(
        &self,
        address: Address,
        is_generic: bool,
        lane: usize,
    ) -> Result<u64, Box<Stop>> {
        let generic = self.address(address, lane);
        if !is_generic {
            return Ok(generic);
        }
        match resolve(Space::Generic, generic) {
            (Space::Shared, address) => Ok(address),
            _ => {
                let what = "access to shared memory";
                let detail = "this generic address is not in shared memory".into();
                let kind = FaultKind::OutOfBounds { what, address: generic, bytes: 16, detail };
                Err(self.stop(lane, kind))
            }
        }
    }
}
