//! Sizes as people write them.

/// Bytes from `4096`, `64KiB`, `1MiB`, `2GiB`, `1TiB`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
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

/// Bytes for people: `4.27 GiB`.
#[allow(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn show(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::{parse, show};

    #[test]
    fn reads_what_the_contract_names_and_refuses_the_rest() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64KiB"), Ok(65_536));
        assert_eq!(parse("2GiB"), Ok(2 << 30));
        for text in ["", "KiB", "1.5GiB", "-1", "4 parsecs", "99999999999TiB"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(show(1536), "1.50 KiB");
    }
}
