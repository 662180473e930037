//! Why a read job ended without its bytes.

use crate::ladder::{Access, Performer};
use nix::errno::Errno;

/// The cause of a [`ReadFailure`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// The kernel answered an error that no other way of reading would mend, or the last rung
    /// refused as well.
    Errno(Errno),
    /// The file ended before the plan's bytes did: it was cut short after it was opened.
    EndOfFile,
    /// A rung was refused and stepping down is forbidden.
    FallbackForbidden {
        /// What the kernel answered.
        errno: Errno,
        /// The access that was refused, or wanted when the performer was refused.
        access: Access,
        /// Who was to perform it.
        performer: Performer,
    },
    /// The answer "try again" came without end.
    Stalled(Errno),
    /// The ring stopped answering while the kernel had reads of it.
    RingLost(Errno),
    /// Somebody asked the load to stop.
    Cancelled,
    /// The uploader went away; its own error says why.
    ReceiverGone,
}

/// The end of a read job, with the place where it happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub struct ReadFailure {
    /// Why.
    pub kind: FailureKind,
    /// Index of the read in the schedule, where one is to blame.
    pub read: Option<usize>,
    /// Index of the file.
    pub file: Option<usize>,
    /// Offset in the file of the first byte that did not come.
    pub offset: u64,
}

impl ReadFailure {
    /// A failure that no single read is to blame for.
    #[must_use]
    pub fn general(kind: FailureKind) -> Self {
        Self { kind, read: None, file: None, offset: 0 }
    }

    fn describe(&self) -> String {
        match &self.kind {
            FailureKind::Errno(errno) => format!("read at offset {} failed: {errno}", self.offset),
            FailureKind::EndOfFile => format!("the file ends at byte {}", self.offset),
            FailureKind::FallbackForbidden { errno, performer, .. } if self.file.is_none() => {
                format!(
                    "{} is refused here ({errno}), and falling back is forbidden",
                    performer.name()
                )
            }
            FailureKind::FallbackForbidden { errno, access, performer } => format!(
                "{} reads by {} were refused at offset {} ({errno}), and falling back is forbidden",
                access.name(),
                performer.name(),
                self.offset
            ),
            FailureKind::Stalled(errno) => {
                format!("read at offset {} was put off without end: {errno}", self.offset)
            }
            FailureKind::RingLost(errno) => {
                format!("io_uring stopped answering while reads were in flight: {errno}")
            }
            FailureKind::Cancelled => "cancelled".to_owned(),
            FailureKind::ReceiverGone => "the uploader stopped".to_owned(),
        }
    }
}
