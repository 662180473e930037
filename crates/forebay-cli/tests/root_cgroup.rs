//! A cgroup that holds less than the model: nothing is prefetched into it or locked in it that it
//! can't hold, for the kernel does not refuse that: it kills whoever asks.
//!
//! For root, and only with `FOREBAY_ROOT_TESTS=1`. Makes a cgroup below one that may have any, and
//! takes it away again; only the commands that are tested are ever in it.

#[path = "support/model.rs"]
mod model;
#[path = "support/root.rs"]
mod root;
mod support;

use model::{Model, forget};
use root::{may_run, skipped};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use support::text;

const MIB: u64 = 1 << 20;
/// Of the model; a cgroup of half as much is enough for all that is no weight.
const MODEL_BYTES: u64 = 192 * MIB;

/// A cgroup with a limit, until dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `None`, and said so, where none can be made.
    fn new(limit_bytes: u64) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("forebay-root-{}-{number}", std::process::id());
        for (parent, limit) in parents() {
            let cgroup = Self(parent.join(&name));
            if fs::create_dir(&cgroup.0).is_ok() {
                let limited = fs::write(cgroup.0.join(limit), limit_bytes.to_string());
                // What is swapped out is no longer limited; without swap there is no such file.
                let _ = fs::write(cgroup.0.join("memory.swap.max"), "0");
                if limited.is_ok() {
                    return Some(cgroup);
                }
            }
        }
        skipped("no cgroup with a limit of memory can be made here");
        None
    }

    /// Runs the command in it.
    fn run(&self, arguments: &[&str]) -> Output {
        let enter = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", enter, text(&self.0), env!("CARGO_BIN_EXE_forebay")]);
        command.args(arguments).output().unwrap()
    }

    /// Runs it on the model, which is not in the page cache at the start; it must not be killed.
    fn forebay(&self, command: &str, model: &Model, flags: &[&str]) -> Output {
        forget(&model.path);
        let arguments = [&[command, text(&model.path), "--json", "--device", "host"], flags];
        let output = self.run(&arguments.concat());
        let what = format!("{command} {flags:?}");
        assert!(output.status.code().is_some(), "{what}: killed: {}", output.status);
        output
    }

    /// A load that must succeed, with the right digests.
    fn load(&self, model: &Model, flags: &[&str]) -> Value {
        let output = self.forebay("load", model, &[&["--digest"], flags].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{flags:?}: {said}");
        let report = serde_json::from_slice(&output.stdout).unwrap();
        model.expect_in(&report, &format!("{flags:?}"));
        report
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last process may still be on its way out of it.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        skipped(&format!("{} could not be removed", self.0.display()));
    }
}

/// The cgroups below which one with a limit might be made, and what the limit is called there.
fn parents() -> Vec<(PathBuf, &'static str)> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut parents = Vec::new();
    for line in text.lines() {
        let parts: Vec<_> = line.splitn(3, ':').collect();
        let within = Path::new(parts[2].trim_start_matches('/'));
        if parts[1].split(',').any(|one| one == "memory") {
            let own = Path::new("/sys/fs/cgroup/memory").join(within);
            parents.push((own, "memory.limit_in_bytes"));
        } else if parts[1].is_empty() {
            let folders = within.ancestors().map(|above| Path::new("/sys/fs/cgroup").join(above));
            let shares = |folder: &PathBuf| {
                let shared = fs::read_to_string(folder.join("cgroup.subtree_control"));
                shared.is_ok_and(|shared| shared.split_whitespace().any(|one| one == "memory"))
            };
            parents.extend(folders.filter(shares).map(|folder| (folder, "memory.max")));
        }
    }
    parents
}

fn model(folder: &Path) -> Model {
    Model::gguf_of(folder, &format!("{}MiB", MODEL_BYTES / MIB))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

const STAYS: [&str; 2] = ["--gpu-layers", "0"];

#[test]
fn a_prefetch_that_the_cgroup_cannot_hold_is_left_out_and_the_plan_says_so() {
    if !may_run(&[]) {
        return;
    }
    let Some(cgroup) = Cgroup::new(MODEL_BYTES / 2) else { return };
    let folder = support::scratch();
    let model = model(folder.path());
    let why = |flags: &[&str]| {
        let output = cgroup.forebay("plan", &model, flags);
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let sentences = plan["why"].as_array().unwrap().iter();
        sentences.map(|why| why.as_str().unwrap().to_owned()).collect::<Vec<_>>().join("\n")
    };
    let told = why(&STAYS);
    assert!(told.contains("not prefetched") && told.contains("cgroup's limit"), "{told}");
    let bytes = fs::metadata(&model.path).unwrap().len();
    let left = told.split("leaves ").nth(1).unwrap().split(' ').next().unwrap();
    assert!((1..=MODEL_BYTES / 2).contains(&left.parse().unwrap()), "{told}");
    let report = cgroup.load(&model, &STAYS);
    assert_eq!(report["memory"]["prefetched_bytes"], 0);
    // Whoever asks for it gets it, and keeps what fits; page cache kills nobody.
    let asked = [&STAYS[..], &["--prefetch", "on"]].concat();
    assert!(why(&asked).contains("prefetched: asked for"));
    let report = cgroup.load(&model, &asked);
    let memory = &report["memory"];
    assert!(number(&memory["prefetched_bytes"]) > bytes / 10 * 9, "{memory}");
    assert!(number(&memory["resident_bytes"]) <= MODEL_BYTES / 2, "{memory}");
    // A quarter of it would fit, but for the memory of what is copied to `host`.
    let told = why(&["--place", "ffn=host", "--gpu-layers", "0"]);
    assert!(told.contains("not prefetched") && told.contains("other tensors"), "{told}");
}

#[test]
fn what_the_cgroup_holds_is_prefetched_and_locked() {
    if !may_run(&[]) {
        return;
    }
    let Some(cgroup) = Cgroup::new(MODEL_BYTES * 2) else { return };
    let folder = support::scratch();
    let model = model(folder.path());
    for mode in ["mmap", "mlock", "mlock-strict"] {
        let report = cgroup.load(&model, &[&STAYS[..], &["-lm", mode]].concat());
        let memory = &report["memory"];
        assert!(number(&memory["prefetched_bytes"]) > MODEL_BYTES / 10 * 9, "{memory}");
        assert_eq!(memory["resident_bytes"], memory["prefetched_bytes"]);
        assert_eq!(memory["lock_refused_bytes"], 0, "{memory}");
        let locked = number(&memory["locked_bytes"]);
        assert_eq!(locked > MODEL_BYTES / 10 * 9, mode != "mmap", "{memory}");
    }
}

#[test]
fn what_the_cgroup_cannot_hold_is_refused_to_a_strict_lock_by_name() {
    if !may_run(&[]) {
        return;
    }
    let Some(cgroup) = Cgroup::new(MODEL_BYTES / 2) else { return };
    let folder = support::scratch();
    let model = model(folder.path());
    let output = cgroup.forebay("load", &model, &[&STAYS[..], &["-lm", "mlock-strict"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in ["error: mlock-strict", "the cgroup has", "memory.max", "--load-mode mlock"] {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
}

/// The kernel refuses no lock that a cgroup can't hold. It kills the process when the pages come,
/// or a moment later, when it wants one more page for itself.
#[test]
fn a_lock_takes_no_more_than_the_cgroup_can_hold() {
    if !may_run(&[]) {
        return;
    }
    let Some(cgroup) = Cgroup::new(MODEL_BYTES / 2) else { return };
    let folder = support::scratch();
    let model = model(folder.path());
    for prefetch in ["auto", "on", "off"] {
        let flags = [&STAYS[..], &["-lm", "mlock", "--prefetch", prefetch]].concat();
        let report = cgroup.load(&model, &flags);
        let memory = &report["memory"];
        let (locked, refused) =
            (number(&memory["locked_bytes"]), number(&memory["lock_refused_bytes"]));
        assert!(locked < MODEL_BYTES / 2, "{memory}");
        assert!(locked > MODEL_BYTES / 8, "{memory}");
        assert!(locked + refused > MODEL_BYTES / 10 * 9, "{memory}");
        assert_eq!(memory["lock_errno"], "ENOMEM");
    }
}

/// What is copied to `host` needs memory too, later than the locks are asked for.
#[test]
fn a_lock_leaves_room_in_the_cgroup_for_what_is_copied() {
    if !may_run(&[]) {
        return;
    }
    let Some(cgroup) = Cgroup::new(MODEL_BYTES / 8 * 6) else { return };
    let folder = support::scratch();
    let model = model(folder.path());
    // A third is copied, two thirds are locked, and three quarters fit.
    let flags = ["-lm", "device=dio,cpu=mlock", "--place", "ffn_down=host", "--gpu-layers", "0"];
    let report = cgroup.load(&model, &flags);
    assert!(number(&report["memory"]["lock_refused_bytes"]) > 0, "{}", report["memory"]);
}
