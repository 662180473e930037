//! Options as people write them: the keys and values of the command line's flags.

use crate::error::Error;
use crate::options::Options;
use std::str::FromStr;

impl Options {
    /// Sets the option that the command line calls `--key` from its text: `load-mode` to
    /// `device=dio,cpu=mmap`, `gpu-layers` to `20`, `staging` to `64MiB`. `place` adds a rule behind
    /// those already there; `no-fallback` is `on` or `off`.
    ///
    /// # Errors
    /// [`Error::Option`] for a key that is none, and for what the option can't be. Nothing has
    /// changed then.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), Error> {
        match key {
            "device" => self.device = parse("--device", value)?,
            "split" => self.split = parse("--split", value)?,
            "gpu-layers" => self.gpu_layers = parse("--gpu-layers", value)?,
            "place" => self.place.push(parse("--place", value)?),
            "load-mode" => self.load_mode = parse("--load-mode", value)?,
            "no-fallback" => self.no_fallback = on_or_off("--no-fallback", value)?,
            "engine" => self.engine = parse("--engine", value)?,
            "chunk" => self.chunk_bytes = size_or_auto("--chunk", value)?,
            "queue-depth" => self.queue_depth = count_or_auto("--queue-depth", value)?,
            "staging" => self.staging_bytes = size_or_auto("--staging", value)?,
            "reclaim" => self.reclaim = parse("--reclaim", value)?,
            "prefetch" => self.prefetch = parse("--prefetch", value)?,
            "repack" => self.repack = parse("--repack", value)?,
            "numa" => self.numa = parse("--numa", value)?,
            _ => {
                let cause = format!("'{key}' is no option");
                let keys = "name one of device, split, gpu-layers, place, load-mode, no-fallback, \
                            engine, chunk, queue-depth, staging, reclaim, prefetch, repack, numa";
                return Err(Error::option("options", &cause, keys));
            }
        }
        Ok(())
    }
}

/// Bytes from `4096`, `64KiB`, `1MiB`, `2GiB`, `1TiB`.
///
/// # Errors
/// What is wrong with it, for people.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(format!("'{unit}' is no unit: KiB, MiB, GiB or TiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("'{text}' is no size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

fn refuse(option: &'static str) -> impl FnOnce(String) -> Error {
    move |cause| Error::option(option, &cause, "spell it as `forebay load --help` does")
}

fn parse<T: FromStr<Err = String>>(option: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(refuse(option))
}

fn on_or_off(option: &'static str, text: &str) -> Result<bool, Error> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(refuse(option)(format!("'{text}' is neither on nor off"))),
    }
}

fn size_or_auto(option: &'static str, text: &str) -> Result<Option<u64>, Error> {
    if text == "auto" { Ok(None) } else { parse_size(text).map(Some).map_err(refuse(option)) }
}

fn count_or_auto(option: &'static str, text: &str) -> Result<Option<usize>, Error> {
    if text == "auto" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| refuse(option)(format!("'{text}' is no number")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{EngineChoice, GpuLayers};

    #[test]
    fn every_flag_of_a_load_can_be_set() {
        let mut options = Options::default();
        for (key, value) in [
            ("device", "host"),
            ("split", "rows"),
            ("gpu-layers", "20"),
            ("place", "embd=cpu"),
            ("place", "output=host"),
            ("load-mode", "device=dio,cpu=mmap"),
            ("no-fallback", "on"),
            ("engine", "threads"),
            ("chunk", "64KiB"),
            ("queue-depth", "8"),
            ("staging", "1MiB"),
            ("reclaim", "off"),
            ("prefetch", "on"),
            ("repack", "on"),
            ("numa", "interleave"),
        ] {
            let before = format!("{options:?}");
            options.set(key, value).unwrap();
            assert_ne!(format!("{options:?}"), before, "{key}");
        }
        assert_eq!((options.gpu_layers, options.place.len()), (GpuLayers::Count(20), 2));
        assert_eq!((options.engine, options.no_fallback), (EngineChoice::Threads, true));
        assert_eq!((options.chunk_bytes, options.staging_bytes), (Some(65_536), Some(1 << 20)));
        options.set("staging", "auto").unwrap();
        options.set("queue-depth", "auto").unwrap();
        assert_eq!((options.staging_bytes, options.queue_depth), (None, None));
    }

    #[test]
    fn what_is_wrong_is_named_and_changes_nothing() {
        let mut options = Options::default();
        for (key, value) in [
            ("load-mod", "dio"),
            ("", ""),
            ("load-mode", "fast"),
            ("no-fallback", "yes"),
            ("chunk", "1.5MiB"),
            ("queue-depth", "many"),
            ("place", "no equals sign"),
        ] {
            let error = options.set(key, value).unwrap_err();
            assert!(matches!(error, Error::Option { .. }) && error.remedy().is_some(), "{key}");
        }
        assert_eq!(format!("{options:?}"), format!("{:?}", Options::default()));
    }

    #[test]
    fn sizes_are_those_of_the_contract_and_the_rest_is_refused() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        for text in ["", "KiB", "1.5GiB", "-1", "4 parsecs", "99999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
