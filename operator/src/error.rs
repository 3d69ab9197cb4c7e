//! Why an operator can't start.

use std::{io, path::PathBuf};

/// Why an operator can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to read.
    #[error("{dir} is not a directory; name the directory that holds the manifests")]
    NotADirectory {
        /// What was named.
        dir: PathBuf,
    },
    /// The directory can't be read.
    #[error("the manifest directory {dir} can't be read: {source}")]
    Unreadable {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is nothing of this name.
    #[error("{path}: {source}; name a directory of manifests, or a file of them")]
    NoManifests {
        /// What was named.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// inotify refuses.
    #[error(
        "the manifest directory {dir} can't be watched: {source}; is fs.inotify.max_user_watches exhausted?"
    )]
    Unwatchable {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// The pipeline ended before all was compiled.
    #[error("the operator has stopped before everything was compiled; its log says why")]
    Stopped,
    /// A thread can't be started.
    #[error("can't start a thread: {0}")]
    Thread(#[source] io::Error),
}
