//! `forebay verify`: is every tensor, where it landed, what the manifest says?

use super::load::load_each;
use crate::args::VerifyArguments;
use crate::failure::Failure;
use crate::output;
use forebay::{DigestKind, Digester, Loader, Model, digests_outside};
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
    /// Files whose header, metadata or padding is another.
    different_files: Vec<String>,
}

/// The digests of a model: of its tensors by name, and of what else is in each of its files.
struct Digests {
    tensors: BTreeMap<String, String>,
    /// Name and digest, in the order of the model's files. Not in manifests of other programs.
    files: Vec<(String, String)>,
}

pub(crate) fn run(arguments: &VerifyArguments) -> Result<(), Failure> {
    // A manifest that can't be read is known before minutes are spent on the load.
    let manifest = if arguments.write { None } else { Some(read(&arguments.manifest)?) };
    let kind = manifest.as_ref().map_or(arguments.digest, |manifest| manifest.kind);
    let mut digester = Digester::new(kind);
    let loader = Loader::new(&arguments.model).options(arguments.policy.options());
    let loaded = load_each(loader, arguments.trace.as_deref(), |tensor| digester.take(tensor))?;
    let tensors = digester.finish()?;
    drop(loaded);
    let model = Model::open(&arguments.model)?;
    let names = model.catalog().files().iter().map(|file| file.name.clone());
    let files = names.zip(digests_outside(&model, kind)?).collect();
    let digests = Digests { tensors, files };
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
            ("different outside of tensors (header, metadata, padding)", &verified.different_files),
        ] {
            for name in names {
                output::line(&format!("{what}: {name}"))?;
            }
        }
        output::line(&format!("{} of {} tensors equal", verified.equal, verified.tensors))?;
    }
    let wrong = verified.different.len() + verified.missing.len() + verified.extra.len();
    let files = verified.different_files.len();
    let what = match (wrong, files) {
        (0, 0) => return Ok(()),
        (0, files) => format!("what no tensor has of {files} files differs"),
        (wrong, _) => format!("{wrong} tensors differ"),
    };
    let message = format!("{}: {what} from the manifest", arguments.model.display());
    Err(Failure::new(message, Some("get the model again, or the manifest that belongs to it")))
}

fn compare(manifest: &Digests, digests: &Digests) -> Verified {
    let is_gone = |name: &&String| !digests.tensors.contains_key(*name);
    // By their order: files may be renamed.
    let files = digests.files.iter().enumerate().filter(|(file, (_, digest))| {
        manifest.files.get(*file).is_none_or(|(_, expected)| expected != digest)
    });
    let mut verified = Verified {
        tensors: digests.tensors.len(),
        equal: 0,
        different: Vec::new(),
        missing: manifest.tensors.keys().filter(is_gone).cloned().collect(),
        extra: Vec::new(),
        different_files: match manifest.files.is_empty() {
            true => Vec::new(),
            false => files.map(|(_, (name, _))| name.clone()).collect(),
        },
    };
    for (name, digest) in &digests.tensors {
        match manifest.tensors.get(name) {
            Some(expected) if expected == digest => verified.equal += 1,
            Some(_) => verified.different.push(name.clone()),
            None => verified.extra.push(name.clone()),
        }
    }
    verified
}

/// What a digest begins with. Those of sha256 have nothing before them, as `sha256sum` prints them.
const BLAKE3: &str = "blake3:";

/// What a line begins with that is not of a tensor: a comment to programs that know only those.
const OUTSIDE: &str = "# outside of tensors: ";

fn write(path: &Path, kind: DigestKind, digests: &Digests, json: bool) -> Result<(), Failure> {
    let prefix = if kind == DigestKind::Blake3 { BLAKE3 } else { "" };
    let tensors = digests.tensors.iter().map(|(name, digest)| ("", name, digest));
    let files = digests.files.iter().map(|(name, digest)| (OUTSIDE, name, digest));
    let mut text = String::new();
    for (start, name, digest) in tensors.chain(files) {
        if name.contains('\n') {
            let message = format!("'{}': this name takes two lines", output::shown(name));
            return Err(Failure::new(message, Some("a manifest has a line for each: rename it")));
        }
        writeln!(text, "{start}{prefix}{digest}  {name}")
            .map_err(|error| Failure::caused("can't write the manifest", &error))?;
    }
    let failed = |error: std::io::Error| {
        Failure::caused(format!("{}: can't be written", path.display()), &error)
    };
    std::fs::write(path, text).map_err(failed)?;
    if json {
        return output::json(&compare(digests, digests));
    }
    output::line(&format!("{}: {} digests written", path.display(), digests.tensors.len()))
}

struct Manifest {
    kind: DigestKind,
    digests: Digests,
}

fn read(path: &Path) -> Result<Manifest, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::caused(format!("{}: can't be read", path.display()), &error)
    };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let (mut digests, mut found) = (Digests { tensors: BTreeMap::new(), files: Vec::new() }, None);
    for (number, line) in text.lines().enumerate() {
        let outside = line.strip_prefix(OUTSIDE);
        if line.trim().is_empty() || (line.starts_with('#') && outside.is_none()) {
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
        let (digest, name) = outside
            .unwrap_or(line)
            .split_once("  ")
            .ok_or_else(|| refuse("is not `digest  name`"))?;
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
        let (name, digest) = (name.to_owned(), digest.to_ascii_lowercase());
        if outside.is_some() {
            digests.files.push((name, digest));
        } else if digests.tensors.insert(name, digest).is_some() {
            return Err(refuse("names a tensor a second time"));
        }
    }
    Ok(Manifest { kind: found.unwrap_or_default(), digests })
}
