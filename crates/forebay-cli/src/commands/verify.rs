//! `forebay verify`: is every tensor, where it landed, what the manifest says?

use super::load::load;
use crate::args::VerifyArguments;
use crate::failure::Failure;
use crate::output;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

#[derive(Serialize)]
struct Verified {
    tensors: usize,
    equal: usize,
    different: Vec<String>,
    missing: Vec<String>,
    extra: Vec<String>,
}

pub(crate) fn run(arguments: &VerifyArguments) -> Result<(), Failure> {
    // A manifest that can't be read is known before minutes are spent on the load.
    let manifest = if arguments.write { None } else { Some(read(&arguments.manifest)?) };
    let loaded = load(&arguments.model, arguments.policy.options(), arguments.trace.as_deref())?;
    let digests = loaded.digests()?;
    let Some(manifest) = manifest else {
        return write(&arguments.manifest, &digests, arguments.json);
    };
    let verified = compare(&manifest, &digests);
    if arguments.json {
        output::json(&verified)?;
    } else {
        for (what, names) in [
            ("different", &verified.different),
            ("missing in the model", &verified.missing),
            ("not in the manifest", &verified.extra),
        ] {
            for name in names {
                output::line(&format!("{what}: {}", output::shown(name)))?;
            }
        }
        output::line(&format!("{} of {} tensors equal", verified.equal, verified.tensors))?;
    }
    let wrong = verified.different.len() + verified.missing.len() + verified.extra.len();
    if wrong == 0 {
        return Ok(());
    }
    let message =
        format!("{}: {wrong} tensors differ from the manifest", arguments.model.display());
    Err(Failure::new(message, Some("get the model again, or the manifest that belongs to it")))
}

fn compare(manifest: &BTreeMap<String, String>, digests: &BTreeMap<String, String>) -> Verified {
    let mut verified = Verified {
        tensors: digests.len(),
        equal: 0,
        different: Vec::new(),
        missing: manifest.keys().filter(|name| !digests.contains_key(*name)).cloned().collect(),
        extra: Vec::new(),
    };
    for (name, digest) in digests {
        match manifest.get(name) {
            Some(expected) if expected == digest => verified.equal += 1,
            Some(_) => verified.different.push(name.clone()),
            None => verified.extra.push(name.clone()),
        }
    }
    verified
}

fn write(path: &Path, digests: &BTreeMap<String, String>, json: bool) -> Result<(), Failure> {
    if let Some(name) = digests.keys().find(|name| name.contains('\n')) {
        let message = format!("tensor '{}': its name takes two lines", output::shown(name));
        return Err(Failure::new(message, Some("a manifest has one line a tensor: rename it")));
    }
    let mut text = String::new();
    for (name, digest) in digests {
        writeln!(text, "{digest}  {}", name)
            .map_err(|error| Failure::caused("can't write the manifest", &error))?;
    }
    let failed = |error: std::io::Error| {
        Failure::caused(format!("{}: can't be written", path.display()), &error)
    };
    std::fs::write(path, text).map_err(failed)?;
    let verified = Verified {
        tensors: digests.len(),
        equal: digests.len(),
        different: Vec::new(),
        missing: Vec::new(),
        extra: Vec::new(),
    };
    if json {
        return output::json(&verified);
    }
    output::line(&format!("{}: {} digests written", path.display(), digests.len()))
}

fn read(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::caused(format!("{}: can't be read", path.display()), &error)
    };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let mut manifest = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let refuse = |cause: &str| {
            let message = format!("{}: line {}: {cause}", path.display(), number + 1);
            Failure::new(
                message,
                Some("each line is a sha256 in hex, two spaces, and a tensor's name"),
            )
        };
        let (digest, name) =
            line.split_once("  ").ok_or_else(|| refuse("is not `sha256  name`"))?;
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refuse("does not begin with a sha256"));
        }
        if manifest.insert(name.to_owned(), digest.to_ascii_lowercase()).is_some() {
            return Err(refuse("names a tensor a second time"));
        }
    }
    Ok(manifest)
}
