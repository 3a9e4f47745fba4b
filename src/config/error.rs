//! What can be wrong with a configuration: errors stop the agent, warnings are logged once it runs.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The kernel's command line.
    Kernel,
    /// The environment.
    Environment,
    /// The configuration file.
    File,
    /// The command line.
    Arguments,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel parameter",
            Self::Environment => "environment variable",
            Self::File => "configuration key",
            Self::Arguments => "option",
        })
    }
}

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that its option does not take.
    #[error("{source_kind} {name}: {value:?}: {reason}")]
    Value {
        /// Where it stood.
        source_kind: Source,
        /// The option's name there.
        name: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An option on the command line without the value it needs.
    #[error("option {option} needs a value")]
    NoValue {
        /// The option as given.
        option: String,
    },
    /// An argument that the agent does not know.
    #[error("unknown argument {argument:?}, see --help")]
    Argument {
        /// What was given.
        argument: String,
    },
    /// The configuration file can't be read.
    #[error("configuration file {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration file is not TOML.
    #[error("configuration file {path}: {reason}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what, in one line.
        reason: String,
    },
}

/// What was ignored.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    /// A value that its option does not take; the earlier one stays.
    #[error("{source_kind} {name}={value:?} ignored: {reason}")]
    Value {
        /// Where it stood.
        source_kind: Source,
        /// The option's name there.
        name: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that the agent does not know, perhaps a typing error.
    #[error("{source_kind} {name} ignored: unknown")]
    Unknown {
        /// Where it stood.
        source_kind: Source,
        /// The name.
        name: String,
    },
    /// A name that other agents of this protocol know and that changes nothing here.
    #[error("{source_kind} {name} has no effect in this agent")]
    NoEffect {
        /// Where it stood.
        source_kind: Source,
        /// The name.
        name: String,
    },
    /// An argument that the kernel passed on to PID 1 because nothing else took it.
    #[error("argument {argument:?} ignored: unknown")]
    Argument {
        /// What was given.
        argument: String,
    },
    /// The file that a kernel parameter names; none of it is used.
    #[error("all of it ignored: {error}")]
    File {
        /// What is wrong with it.
        error: ConfigError,
    },
}

impl Warning {
    pub(super) fn value(source_kind: Source, name: &str, value: &str, reason: String) -> Self {
        Self::Value { source_kind, name: name.to_owned(), value: value.to_owned(), reason }
    }
}
