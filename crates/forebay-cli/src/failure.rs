//! How the command says that the work failed: one line, its causes, a remedy.

use crate::output::shown;
use std::error::Error as StdError;
use std::fmt;

/// Why the command ends with exit status 1.
pub(crate) struct Failure {
    message: String,
    causes: Vec<String>,
    remedy: Option<String>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>, remedy: Option<&str>) -> Self {
        let remedy = remedy.map(ToOwned::to_owned);
        Self { message: message.into(), causes: Vec::new(), remedy }
    }

    pub(crate) fn caused(message: impl Into<String>, cause: &dyn StdError) -> Self {
        Self { message: message.into(), causes: chain(Some(cause)), remedy: None }
    }

    /// In one line, where it is not the verdict.
    pub(crate) fn as_notice(&self) -> String {
        let causes = self.causes.iter().map(|cause| format!(": {cause}")).collect::<String>();
        one_line(&format!("notice: {}{causes}", self.message))
    }

    pub(crate) fn cancelled() -> Self {
        forebay::Error::Cancelled.into()
    }
}

impl From<forebay::Error> for Failure {
    fn from(error: forebay::Error) -> Self {
        Self { message: error.to_string(), causes: chain(error.source()), remedy: error.remedy() }
    }
}

fn chain(mut cause: Option<&dyn StdError>) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes
}

/// Names of tensors and files are a stranger's, and may be made to look like lines of their own.
fn one_line(text: &str) -> String {
    shown(&text.replace('\n', " "))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", one_line(&self.message))?;
        for cause in &self.causes {
            writeln!(f, "  because: {}", one_line(cause))?;
        }
        if let Some(remedy) = &self.remedy {
            writeln!(f, "  remedy: {}", one_line(remedy))?;
        }
        Ok(())
    }
}
