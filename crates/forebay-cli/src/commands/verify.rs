//! `forebay verify`: is every tensor, where it landed, what the manifest says?

use super::load::load_each;
use crate::args::VerifyArguments;
use crate::failure::Failure;
use crate::output;
use forebay::{DigestKind, Digester, Loader};
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
    let kind = manifest.as_ref().map_or(arguments.digest, |manifest| manifest.kind);
    let mut digester = Digester::new(kind);
    let loader = Loader::new(&arguments.model).options(arguments.policy.options());
    let loaded = load_each(loader, arguments.trace.as_deref(), |tensor| digester.take(tensor))?;
    let digests = digester.finish()?;
    drop(loaded);
    let Some(manifest) = manifest else {
        return write(&arguments.manifest, kind, &digests, arguments.json);
    };
    let verified = compare(&manifest.digests, &digests);
    if arguments.json {
        output::json(&verified)?;
    } else {
        for (what, names) in [
            ("different", &verified.different),
            ("missing in the model", &verified.missing),
            ("not in the manifest", &verified.extra),
        ] {
            for name in names {
                output::line(&format!("{what}: {name}"))?;
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

/// What a digest begins with. Those of sha256 have nothing before them, as `sha256sum` prints them.
const BLAKE3: &str = "blake3:";

fn write(
    path: &Path,
    kind: DigestKind,
    digests: &BTreeMap<String, String>,
    json: bool,
) -> Result<(), Failure> {
    let prefix = if kind == DigestKind::Blake3 { BLAKE3 } else { "" };
    if let Some(name) = digests.keys().find(|name| name.contains('\n')) {
        let message = format!("tensor '{}': its name takes two lines", output::shown(name));
        return Err(Failure::new(message, Some("a manifest has one line a tensor: rename it")));
    }
    let mut text = String::new();
    for (name, digest) in digests {
        writeln!(text, "{prefix}{digest}  {name}")
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

struct Manifest {
    kind: DigestKind,
    digests: BTreeMap<String, String>,
}

fn read(path: &Path) -> Result<Manifest, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::caused(format!("{}: can't be read", path.display()), &error)
    };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let (mut digests, mut found) = (BTreeMap::new(), None);
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let refuse = |cause: &str| {
            let message = format!("{}: line {}: {cause}", path.display(), number + 1);
            Failure::new(
                message,
                Some(
                    "each line is a digest in hex (of BLAKE3 with 'blake3:' before it), two spaces, and a tensor's name",
                ),
            )
        };
        let (digest, name) =
            line.split_once("  ").ok_or_else(|| refuse("is not `digest  name`"))?;
        let (kind, digest) = match digest.strip_prefix(BLAKE3) {
            Some(digest) => (DigestKind::Blake3, digest),
            None => (DigestKind::Sha256, digest),
        };
        if *found.get_or_insert(kind) != kind {
            return Err(refuse("has another kind of digest than those before"));
        }
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refuse("does not begin with a digest of 64 hex digits"));
        }
        if digests.insert(name.to_owned(), digest.to_ascii_lowercase()).is_some() {
            return Err(refuse("names a tensor a second time"));
        }
    }
    Ok(Manifest { kind: found.unwrap_or_default(), digests })
}
