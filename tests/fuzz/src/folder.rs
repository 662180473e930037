//! Files for those targets that open some.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::LazyLock;

/// The folder of this process. `tests/fuzz/run` has it in memory, and takes it away afterwards.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("forebay-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for the model");
    folder
});

/// Where a file of this name is.
pub fn path(name: &str) -> PathBuf {
    FOLDER.join(name)
}

/// Puts a file of so many bytes there that begins with `start`; behind it are zeros that take no
/// room.
pub fn put(name: &str, start: &[u8], bytes: u64) -> PathBuf {
    let path = path(name);
    // A new one each time: whoever still has the one before open is not to see it change.
    let _ = fs::remove_file(&path);
    let mut file = File::create_new(&path).expect("room for the model");
    file.write_all(start).expect("room for the model");
    file.set_len(bytes).expect("room for the model");
    path
}
