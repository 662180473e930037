//! The first lines of a PTX text: which drivers and devices it is for.

/// The newest PTX that a driver's compiler takes, by the table in the PTX manual.
pub(crate) fn newest_version(driver: i32) -> (u32, u32) {
    let (major, minor) = (driver / 1000, driver % 1000 / 10);
    let (major, minor) = match (major, minor) {
        (..=10, _) => (6, 5),
        (11, minor) => (7, minor.min(8)),
        (12, 0..=5) => (8, minor),
        (12, minor) => (8, (minor - 1).min(8)),
        (major, minor) => (major - 4, minor),
    };
    (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0))
}

/// The first word behind a directive, with its line from 1.
pub(crate) fn word_after<'text>(text: &'text str, directive: &str) -> Option<(usize, &'text str)> {
    let code = text.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    let mut words = code
        .enumerate()
        .flat_map(|(line, code)| code.split_whitespace().map(move |word| (line + 1, word)));
    words.find(|(_, word)| *word == directive)?;
    words.next().map(|(line, word)| (line, word.trim_end_matches([',', ';'])))
}

pub(crate) fn two_numbers(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The 90 of `sm_90a`.
pub(crate) fn target_number(target: &str) -> Option<u32> {
    target.strip_prefix("sm_")?.trim_end_matches(['a', 'f']).parse().ok()
}

/// Whether a device runs a target: `a` is that capability alone, `f` none of another family. What
/// is no target is for the parser to refuse.
pub(crate) fn runs_on(target: &str, (major, minor): (i32, i32)) -> bool {
    let device = u32::try_from(major * 10 + minor).unwrap_or(0);
    match target_number(target) {
        None => true,
        Some(needed) if target.ends_with('a') => needed == device,
        Some(needed) if target.ends_with('f') => needed <= device && needed / 10 == device / 10,
        Some(needed) => needed <= device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_take_ptx_of_their_time() {
        let versions = [11040, 12000, 12050, 12060, 12080, 12090, 13000, 13010].map(newest_version);
        let expected = [(7, 4), (8, 0), (8, 5), (8, 5), (8, 7), (8, 8), (9, 0), (9, 1)];
        assert_eq!(versions, expected);
    }

    #[test]
    fn targets_run_on_what_is_as_new() {
        let devices = [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (10, 3)];
        let runs = |target: &str| devices.map(|device| u8::from(runs_on(target, device)));
        assert_eq!(runs("sm_80"), [0, 1, 1, 1, 1, 1]);
        assert_eq!(runs("sm_90a"), [0, 0, 0, 1, 0, 0]);
        assert_eq!(runs("sm_100f"), [0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn directives_are_found_behind_comments() {
        let text = "// .version 1.0\n.version 8.3 .target\n sm_80, debug\n";
        assert_eq!(word_after(text, ".version"), Some((2, "8.3")));
        assert_eq!(word_after(text, ".target"), Some((3, "sm_80")));
    }
}
