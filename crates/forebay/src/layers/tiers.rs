//! Which units stay on the device, which in pinned memory, and which come from storage each time.
//! Pure arithmetic.
//!
//! Passes go over the units in a cycle, so the least recently used one is the next that is needed:
//! no cache that follows use would ever hit. A fixed set stays instead, spread evenly, so that
//! while some compute from where they are, the next ones are on their way.

use std::time::Duration;

/// Bays for streamed units at most: more would only be filled earlier.
const DEPTH_MAX: usize = 4;

/// Where a unit is between passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// On the device, always.
    Resident,
    /// In pinned host memory; it is uploaded for each pass.
    Host,
    /// In its file; it is read and uploaded for each pass.
    Streamed,
}

/// What a unit takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnitSize {
    /// On the device.
    pub(super) device_bytes: u64,
    /// Its part of the files.
    pub(super) read_bytes: u64,
    /// In slots of host memory.
    pub(super) slots: usize,
}

/// What there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) device_bytes: u64,
    /// Slots that keep what they hold.
    pub(super) host_slots: usize,
}

/// How fast everything goes.
#[derive(Clone, Debug)]
pub(super) struct Rates {
    /// Bytes per second from storage.
    pub(super) read: f64,
    /// Bytes per second to the device.
    pub(super) upload: f64,
    /// How long the caller computes on each unit.
    pub(super) compute: Vec<Duration>,
}

/// What goes where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) tiers: Vec<Tier>,
    /// Bays for units that come and go.
    pub(super) depth: usize,
    /// The size of one.
    pub(super) bay_bytes: u64,
}

impl Split {
    /// The best split into that room; before anything was measured, the one that lets one unit come
    /// while another is computed on. `None` if not even one unit after the other fits.
    pub(super) fn choose(units: &[UnitSize], room: Room, rates: Option<&Rates>) -> Option<Self> {
        let splits = (1..=DEPTH_MAX).filter_map(|depth| Self::of_depth(units, room, depth));
        match rates {
            None => splits.min_by_key(|split| split.depth.abs_diff(2)),
            Some(rates) => {
                let timed = splits.map(|split| (split.pass_time(units, rates), split));
                timed.min_by_key(|(time, split)| (*time, split.depth)).map(|(_, split)| split)
            }
        }
    }

    /// As many resident units as leave room for `depth` bays.
    fn of_depth(units: &[UnitSize], room: Room, depth: usize) -> Option<Self> {
        let fits = |resident: usize| {
            let mut tiers = vec![Tier::Streamed; units.len()];
            let mut taken = 0_u64;
            for index in spread(resident, units.len()) {
                tiers[index] = Tier::Resident;
                taken = taken.checked_add(aligned(units[index].device_bytes))?;
            }
            let streamed = || (0..units.len()).filter(|&index| tiers[index] == Tier::Streamed);
            let bay_bytes = streamed().map(|index| aligned(units[index].device_bytes)).max();
            let depth = depth.min(streamed().count());
            let bay_bytes = bay_bytes.unwrap_or(0);
            let bays = bay_bytes.checked_mul(depth as u64)?;
            let fits = taken.checked_add(bays)? <= room.device_bytes;
            fits.then(|| Self { tiers: tiers.clone(), depth, bay_bytes })
        };
        let mut split = (0..=units.len()).rev().find_map(fits)?;
        split.hold(units, room.host_slots);
        Some(split)
    }

    /// Keeps as many of the streamed units in host memory as there are slots for.
    fn hold(&mut self, units: &[UnitSize], slots: usize) {
        let streamed: Vec<usize> =
            (0..units.len()).filter(|&index| self.tiers[index] == Tier::Streamed).collect();
        let held = |count: usize| -> Vec<usize> {
            spread(count, streamed.len()).map(|index| streamed[index]).collect()
        };
        let taken = |held: &Vec<usize>| held.iter().map(|&index| units[index].slots).sum::<usize>();
        let held = (0..=streamed.len()).rev().map(held).find(|held| taken(held) <= slots);
        for index in held.unwrap_or_default() {
            self.tiers[index] = Tier::Host;
        }
    }

    /// The slots that keep what they hold.
    pub(super) fn held_slots(&self, units: &[UnitSize]) -> usize {
        self.of(units, Tier::Host).map(|unit| unit.slots).sum()
    }

    /// The device's memory that it takes.
    pub(super) fn device_bytes(&self, units: &[UnitSize]) -> u64 {
        let resident: u64 =
            self.of(units, Tier::Resident).map(|unit| aligned(unit.device_bytes)).sum();
        resident + self.bay_bytes * self.depth as u64
    }

    /// Of each unit: the room that it keeps for itself.
    pub(super) fn reserved(&self, units: &[UnitSize]) -> Vec<u64> {
        let kept = |(tier, unit): (&Tier, &UnitSize)| match tier {
            Tier::Resident => aligned(unit.device_bytes),
            Tier::Host | Tier::Streamed => 0,
        };
        self.tiers.iter().zip(units).map(kept).collect()
    }

    pub(super) fn of<'a>(
        &'a self,
        units: &'a [UnitSize],
        tier: Tier,
    ) -> impl Iterator<Item = &'a UnitSize> {
        self.tiers.iter().zip(units).filter(move |(of, _)| **of == tier).map(|(_, unit)| unit)
    }

    /// How long a pass takes when passes follow each other, by going through three of them: reads
    /// one after the other, uploads too, products too, and no unit comes before there is a bay.
    pub(super) fn pass_time(&self, units: &[UnitSize], rates: &Rates) -> Duration {
        let (mut reader, mut link, mut compute) = (0.0_f64, 0.0_f64, 0.0_f64);
        let mut bays = std::collections::VecDeque::from(vec![0.0_f64; self.depth]);
        let (mut begun, mut ended) = (0.0, 0.0);
        for _pass in 0..3 {
            begun = ended;
            for (index, unit) in units.iter().enumerate() {
                let computes = rates.compute.get(index).map_or(0.0, Duration::as_secs_f64);
                if self.tiers[index] == Tier::Resident {
                    compute += computes;
                    continue;
                }
                let bay = bays.pop_front().unwrap_or(0.0);
                let upload = unit.device_bytes as f64 / rates.upload;
                let there = if self.tiers[index] == Tier::Host {
                    bay.max(link) + upload
                } else {
                    let starts = bay.max(reader);
                    reader = starts + unit.read_bytes as f64 / rates.read;
                    (starts.max(link) + upload).max(reader)
                };
                link = there;
                compute = compute.max(there) + computes;
                bays.push_back(compute);
            }
            ended = compute;
        }
        Duration::from_secs_f64((ended - begun).max(0.0))
    }

    /// The least room on the device that any split fits in: one bay for the largest unit.
    pub(super) fn least_bytes(units: &[UnitSize]) -> u64 {
        units.iter().map(|unit| aligned(unit.device_bytes)).max().unwrap_or(0)
    }
}

/// Bays start at multiples of this.
fn aligned(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(256).unwrap_or(u64::MAX)
}

/// `count` of `of` indices, spread evenly.
fn spread(count: usize, of: usize) -> impl Iterator<Item = usize> {
    (0..of).filter(move |index| (index + 1) * count / of > index * count / of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uniform(count: usize) -> Vec<UnitSize> {
        vec![UnitSize { device_bytes: 1000, read_bytes: 1000, slots: 2 }; count]
    }

    fn room(device_bytes: u64, host_slots: usize) -> Room {
        Room { device_bytes, host_slots }
    }

    fn rates(compute_s: f64, units: usize) -> Rates {
        let compute = vec![Duration::from_secs_f64(compute_s); units];
        Rates { read: 1000.0, upload: 4000.0, compute }
    }

    #[test]
    fn resident_units_are_spread_and_the_rest_has_its_bays() {
        let units = uniform(8);
        let split = Split::choose(&units, room(6 * 1024, 4), None).unwrap();
        let of = |tier| split.tiers.iter().filter(|it| **it == tier).count();
        assert_eq!((split.depth, split.bay_bytes), (2, 1024));
        assert_eq!((of(Tier::Resident), of(Tier::Host), of(Tier::Streamed)), (4, 2, 2));
        assert!(split.tiers.chunks(2).all(|pair| pair.contains(&Tier::Resident)));
        assert_eq!(split.device_bytes(&units), 6 * 1024);
        assert_eq!(split.held_slots(&units), 4);
    }

    #[test]
    fn what_fits_is_resident_and_what_does_not_fit_is_refused() {
        let units = uniform(4);
        let all = Split::choose(&units, room(4096, 0), None).unwrap();
        assert_eq!((all.depth, &all.tiers[..]), (0, &[Tier::Resident; 4][..]));
        assert!(Split::choose(&units, room(1023, 100), None).is_none());
        assert_eq!(Split::least_bytes(&units), 1024);
        assert_eq!(Split::choose(&units, room(1024, 0), None).unwrap().depth, 1);
        assert!(Split::choose(&[], room(0, 0), None).is_some());
    }

    #[test]
    fn depth_follows_the_time_that_products_take() {
        let units = uniform(16);
        // Nothing to hide behind: a bay more would be a resident unit less.
        let split = Split::choose(&units, room(8 * 1024, 0), Some(&rates(0.0, 16))).unwrap();
        assert_eq!(split.depth, 1);
        // As long as a read: without a second bay, the two would take turns.
        let split = Split::choose(&units, room(3 * 1024, 0), Some(&rates(1.0, 16))).unwrap();
        assert_eq!(split.depth, 2);
        let one = Split::of_depth(&units, room(3 * 1024, 0), 1).unwrap();
        let slow = rates(1.0, 16);
        assert!(one.pass_time(&units, &slow) > split.pass_time(&units, &slow).mul_f64(1.3));
    }

    proptest! {
        /// Whatever the sizes, the budget holds, and no pass is predicted to be faster than its
        /// slowest stage alone, nor slower than all stages in turn.
        #[test]
        fn budgets_hold_and_predictions_are_possible(
            sizes in prop::collection::vec((1_u64..5000, 1_usize..9), 1..40),
            device in 0_u64..60_000,
            host_slots in 0_usize..60,
            compute_ms in 0_u64..3000,
        ) {
            let units: Vec<UnitSize> = sizes
                .iter()
                .map(|&(bytes, slots)| UnitSize { device_bytes: bytes, read_bytes: bytes, slots })
                .collect();
            let rates = rates(compute_ms as f64 / 1e3, units.len());
            for rates_known in [None, Some(&rates)] {
                match Split::choose(&units, room(device, host_slots), rates_known) {
                    None => prop_assert!(Split::least_bytes(&units) > device),
                    Some(split) => {
                        prop_assert!(split.device_bytes(&units) <= device);
                        prop_assert!(split.held_slots(&units) <= host_slots);
                        let reads: u64 = split.of(&units, Tier::Streamed).map(|it| it.read_bytes).sum();
                        let held: u64 = split.of(&units, Tier::Host).map(|it| it.device_bytes).sum();
                        let (read, upload) = (reads as f64 / 1000.0, (reads + held) as f64 / 4000.0);
                        let compute = compute_ms as f64 / 1e3 * units.len() as f64;
                        let time = split.pass_time(&units, &rates).as_secs_f64();
                        prop_assert!(time >= read.max(upload).max(compute) - 1e-6, "{time}");
                        prop_assert!(time <= read + upload + compute + 1e-6, "{time}");
                    }
                }
            }
        }
    }
}
