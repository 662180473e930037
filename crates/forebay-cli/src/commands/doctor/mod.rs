//! `forebay doctor`: what this machine and this path can do, and what to change.

mod machine;
mod path;

use crate::args::DoctorArguments;
use crate::failure::Failure;
use crate::output;
use serde::Serialize;

/// One thing that was looked at.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    /// `None` where it is neither good nor bad, or can't be known.
    ok: Option<bool>,
    found: String,
    remedy: Option<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, ok: Some(true), found: found.into(), remedy: None }
    }

    fn bad(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, ok: Some(false), found: found.into(), remedy: Some(remedy.into()) }
    }

    fn fact(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, ok: None, found: found.into(), remedy: None }
    }
}

#[derive(Serialize)]
struct Diagnosis {
    checks: Vec<Check>,
}

pub(crate) fn run(arguments: &DoctorArguments) -> Result<(), Failure> {
    let mut checks = machine::checks();
    checks.extend(path::checks(&arguments.path)?);
    if arguments.json {
        return output::json(&Diagnosis { checks });
    }
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &checks {
        let mark = match check.ok {
            Some(true) => "ok  ",
            Some(false) => "bad ",
            None => "    ",
        };
        output::line(&format!("{mark}{:width$}  {}", check.name, check.found))?;
        if let Some(remedy) = &check.remedy {
            output::line(&format!("    {:width$}  → {remedy}", ""))?;
        }
    }
    Ok(())
}
