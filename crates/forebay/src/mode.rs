//! How a backend's tensors are loaded.

use crate::backend::Backend;
use std::fmt;
use std::str::FromStr;

/// The way bytes take from the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadMode {
    /// The best that the file, the page cache and the backend allow.
    #[default]
    Auto,
    /// Plain buffered reads into memory of our own.
    None,
    /// A mapping of the file: used in place on the CPU, copied from for a device.
    Mmap,
    /// Mapped and locked; what the system refuses to lock is reported and left unlocked.
    Mlock,
    /// Mapped and locked; a refusal is an error.
    MlockStrict,
    /// Direct reads past the page cache into memory of our own.
    Dio,
}

impl LoadMode {
    /// Whether tensors of the CPU stay in their mapping.
    pub(crate) fn maps(self) -> bool {
        matches!(self, Self::Mmap | Self::Mlock | Self::MlockStrict)
    }

    /// The name in flags and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Mmap => "mmap",
            Self::Mlock => "mlock",
            Self::MlockStrict => "mlock-strict",
            Self::Dio => "dio",
        }
    }
}

impl fmt::Display for LoadMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LoadMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let modes = [Self::Auto, Self::None, Self::Mmap, Self::Mlock, Self::MlockStrict, Self::Dio];
        modes.into_iter().find(|mode| mode.name() == text).ok_or_else(|| {
            format!("'{text}' is no load mode: auto, none, mmap, mlock, mlock-strict or dio")
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    All,
    Device,
    AnyCuda,
    One(Backend),
}

impl FromStr for Whose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "device" => Ok(Self::Device),
            "cuda" => Ok(Self::AnyCuda),
            _ => text
                .parse()
                .map(Self::One)
                .map_err(|_| format!("'{text}' is no backend: cpu, host, cuda, cuda:N or device")),
        }
    }
}

/// Load modes for all backends (`dio`) or for each (`device=dio,cpu=mmap`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModeSpec {
    entries: Vec<(Whose, LoadMode)>,
}

impl ModeSpec {
    /// One mode for every backend.
    #[must_use]
    pub fn all(mode: LoadMode) -> Self {
        Self { entries: vec![(Whose::All, mode)] }
    }

    /// The mode that was asked for `backend`; `auto` if none was. The most particular entry
    /// counts: `cuda:1` before `cuda` before `device`.
    #[must_use]
    pub fn requested(&self, backend: Backend) -> LoadMode {
        let rank = |whose: Whose| match whose {
            Whose::One(one) if one == backend => Some(3),
            Whose::AnyCuda if matches!(backend, Backend::Cuda(_)) => Some(2),
            Whose::Device if backend != Backend::Cpu => Some(1),
            Whose::All => Some(0),
            _ => None,
        };
        (self.entries.iter())
            .filter_map(|&(whose, mode)| rank(whose).map(|rank| (rank, mode)))
            .max_by_key(|&(rank, _)| rank)
            .map_or(LoadMode::Auto, |(_, mode)| mode)
    }

    /// The entries for devices that have no tensor, as they are written. Of entries for the CPU or for
    /// whatever is offloaded that is nothing odd.
    pub(crate) fn idle(&self, has: impl Fn(Backend) -> bool, has_cuda: bool) -> Vec<String> {
        let idle = self.entries.iter().filter_map(|&(whose, mode)| match whose {
            Whose::One(backend) if backend != Backend::Cpu && !has(backend) => {
                Some(format!("{backend}={mode}"))
            }
            Whose::AnyCuda if !has_cuda => Some(format!("cuda={mode}")),
            _ => None,
        });
        idle.collect()
    }
}

impl FromStr for ModeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('=') {
            return text.parse().map(Self::all);
        }
        let mut entries: Vec<(Whose, LoadMode)> = Vec::new();
        for part in text.split(',') {
            let (backend, mode) = part
                .split_once('=')
                .ok_or_else(|| format!("'{part}' in '{text}' is not BACKEND=MODE"))?;
            let whose = backend.trim().parse()?;
            if entries.iter().any(|&(other, _)| other == whose) {
                return Err(format!("'{backend}' has two load modes in '{text}'"));
            }
            entries.push((whose, mode.trim().parse()?));
        }
        Ok(Self { entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_serves_all_and_the_particular_wins() {
        let all: ModeSpec = "dio".parse().unwrap();
        assert_eq!(all.requested(Backend::Cpu), LoadMode::Dio);
        let each: ModeSpec = "device=none,cuda=dio,cuda:1=mmap,cpu=mlock-strict".parse().unwrap();
        assert_eq!(each.requested(Backend::Host), LoadMode::None);
        assert_eq!(each.requested(Backend::Cuda(0)), LoadMode::Dio);
        assert_eq!(each.requested(Backend::Cuda(1)), LoadMode::Mmap);
        assert_eq!(each.requested(Backend::Cpu), LoadMode::MlockStrict);
        assert_eq!(ModeSpec::default().requested(Backend::Cpu), LoadMode::Auto);
    }

    #[test]
    fn entries_for_devices_without_tensors_are_idle() {
        let spec: ModeSpec = "cuda:9=mmap,cuda=dio,host=none,cpu=mmap,device=dio".parse().unwrap();
        let none = spec.idle(|_| false, false);
        assert_eq!(none, ["cuda:9=mmap", "cuda=dio", "host=none"]);
        assert_eq!(spec.idle(|backend| backend == Backend::Cuda(9), true), ["host=none"]);
        assert!(ModeSpec::all(LoadMode::Dio).idle(|_| false, false).is_empty());
    }

    #[test]
    fn nonsense_is_named() {
        for text in ["direct", "cpu=", "gpu=dio", "cpu=dio,mmap", "cpu=dio,cpu=mmap", ""] {
            assert!(text.parse::<ModeSpec>().is_err(), "{text}");
        }
    }
}
