//! Checked identifiers: what the host names containers, processes and places with.
//!
//! A string from the wire becomes one of these at the edge (`rpc`), so everything below can use it as
//! a file name or a map key without looking again. Invariants: an id is a single harmless path
//! component; a [`GuestPath`] is absolute, has no `.` or `..` component and no NUL byte.

use std::borrow::Borrow;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// The longest id accepted, in bytes. containerd stops at 76; file names at 255.
pub const MAX_ID_LEN: usize = 128;

/// Why a string from the host is not an id or a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("{what} is empty")]
    Empty {
        /// Which kind of name it is.
        what: &'static str,
    },
    /// Longer than [`MAX_ID_LEN`].
    #[error("{what} has {len} bytes, the limit is {MAX_ID_LEN}")]
    TooLong {
        /// Which kind of name it is.
        what: &'static str,
        /// How long it is, in bytes.
        len: usize,
    },
    /// A character outside `[A-Za-z0-9._-]`, or a first one that is no letter or digit.
    #[error(
        "{what} {id:?} must start with a letter or digit and hold only letters, digits, '.', '_' and '-'"
    )]
    Character {
        /// Which kind of name it is.
        what: &'static str,
        /// What was given.
        id: String,
    },
    /// A path that is relative, or that climbs.
    #[error("path {path:?} must be absolute, without '.', '..' or NUL")]
    Path {
        /// What was given.
        path: String,
    },
}

fn check_id(what: &'static str, id: &str) -> Result<(), IdError> {
    if id.is_empty() {
        return Err(IdError::Empty { what });
    }
    if id.len() > MAX_ID_LEN {
        return Err(IdError::TooLong { what, len: id.len() });
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let starts_well = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !starts_well || !id.bytes().all(allowed) {
        return Err(IdError::Character { what, id: id.to_owned() });
    }
    Ok(())
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<&str> for $name {
            type Error = IdError;

            fn try_from(id: &str) -> Result<Self, IdError> {
                check_id($what, id)?;
                Ok(Self(Arc::from(id)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id_type!(
    /// Names a container in its sandbox.
    ContainerId,
    "container id"
);
id_type!(
    /// Names an exec'd process in its container.
    ExecId,
    "exec id"
);

/// An absolute path in the guest, as the host gave it, with nothing in it that climbs.
///
/// Symbolic links are another matter: a path beneath a root that others can write to must still be
/// resolved with openat2(2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestPath(PathBuf);

impl GuestPath {
    /// The path, absolute and without doubled slashes.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<&str> for GuestPath {
    type Error = IdError;

    fn try_from(path: &str) -> Result<Self, IdError> {
        let refuse = || IdError::Path { path: path.to_owned() };
        if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == ".") {
            return Err(refuse());
        }
        let mut clean = PathBuf::from("/");
        for component in Path::new(path).components() {
            match component {
                Component::RootDir => {}
                Component::Normal(name) => clean.push(name),
                _ => return Err(refuse()),
            }
        }
        Ok(Self(clean))
    }
}

impl AsRef<Path> for GuestPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_single_harmless_path_components() {
        for good in ["a", "0", "abc-1.2_3", &"x".repeat(MAX_ID_LEN)] {
            assert_eq!(ContainerId::try_from(good).unwrap().as_str(), good);
        }
        let too_long = "x".repeat(MAX_ID_LEN + 1);
        for bad in ["", ".", "..", "-a", "_a", "a/b", "a b", "a\0", "ä", "a\n", too_long.as_str()] {
            assert!(ContainerId::try_from(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn guest_paths_are_absolute_and_do_not_climb() {
        assert_eq!(GuestPath::try_from("//run//x/").unwrap().as_path(), Path::new("/run/x"));
        assert_eq!(GuestPath::try_from("/").unwrap().as_path(), Path::new("/"));
        for bad in ["", "run", "./x", "/a/../b", "/..", "/a/./b", "/a/.", "/a\0b"] {
            assert!(GuestPath::try_from(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
