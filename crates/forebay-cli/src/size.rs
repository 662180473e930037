//! Sizes as people write and read them.

pub(crate) use forebay::parse_size as parse;

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
    use super::show;

    #[test]
    fn small_sizes_are_exact_and_large_ones_are_rounded() {
        assert_eq!(show(512), "512 B");
        assert_eq!(show(1536), "1.50 KiB");
    }
}
