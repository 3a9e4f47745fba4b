//! What this program prints: to standard output with [`say!`], to standard error with [`tell!`].
//!
//! A reader that has gone (`ps | head -1`) wants no more, which is no failure; another failure is told once, at the end.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::Mutex;
use std::sync::PoisonError;

use super::error::CliError;

/// Why standard output can't be written; nothing more is written to it then.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line to standard output.
macro_rules! say {
    ($($words:tt)*) => { $crate::cli::say::line(format_args!($($words)*)) };
}

/// Prints a line to standard error, with this program's name.
macro_rules! tell {
    ($($words:tt)*) => { $crate::cli::say::tell_line(format_args!($($words)*)) };
}

pub(crate) use {say, tell};

pub(crate) fn line(words: fmt::Arguments<'_>) {
    let mut failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    if failed.is_none() {
        *failed = writeln!(io::stdout(), "{words}").err();
    }
}

pub(crate) fn tell_line(words: fmt::Arguments<'_>) {
    // There is nobody left to be told.
    let _ = writeln!(io::stderr(), "nakai-ctl: {words}");
}

/// Whether all that was to be printed has been, as far as anybody wants it.
pub(crate) fn finish() -> Result<(), CliError> {
    let mut failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = failed.take().or_else(|| io::stdout().flush().err());
    match failed {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::io("standard output")(error))
        }
        _ => Ok(()),
    }
}
