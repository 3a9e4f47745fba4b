//! The guest's own host name, until a sandbox brings one.

use std::io;
use std::path::Path;

use nix::unistd::sethostname;

/// The name of a guest that has none.
const DEFAULT: &str = "localhost";

/// The kernel refuses a name, perhaps because it has more than 64 bytes.
#[derive(Debug, thiserror::Error)]
#[error("set hostname {name:?}: {source}")]
pub struct HostnameError {
    /// The name.
    pub name: String,
    /// Why.
    pub source: io::Error,
}

/// Sets the host name of this UTS namespace.
///
/// # Errors
///
/// [`HostnameError`].
pub fn set(name: &str) -> Result<(), HostnameError> {
    sethostname(name).map_err(|errno| HostnameError { name: name.to_owned(), source: errno.into() })
}

/// Sets the host name that `file` holds, or `localhost` if there is no such file or name.
///
/// # Errors
///
/// [`HostnameError`].
pub fn set_from(file: &Path) -> Result<(), HostnameError> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    set(first_name(&text))
}

/// The first word that is not in a comment (hostname(5)).
fn first_name(text: &str) -> &str {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(str::split_whitespace).next().unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_is_the_name() {
        for (text, name) in [
            ("", "localhost"),
            ("\n \n", "localhost"),
            ("guest\n", "guest"),
            ("# a comment\n  guest other\nlast", "guest"),
        ] {
            assert_eq!(first_name(text), name, "{text:?}");
        }
    }
}
