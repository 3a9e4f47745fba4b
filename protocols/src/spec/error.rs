//! What can be wrong with a specification on either side of the conversion.
//!
//! Every variant names the field by its path in `config.json`, the name an operator knows it by. A
//! value is quoted, escaped and cut to [`SHOWN`] characters: it comes from the other end and goes
//! into logs and answers.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;

/// The number of characters of a refused value that an error shows.
const SHOWN: usize = 64;

/// Why a specification can't be converted.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A name stands where the specification has a fixed set of names, and is none of them.
    #[error("{field}: unknown name {value:?}")]
    UnknownName {
        /// Path of the field in `config.json`.
        field: &'static str,
        /// The name, cut to a length fit to print.
        value: String,
    },
    /// A number that the other side can't hold, or that the kernel would cut to another number.
    #[error("{field}: {value} is out of range")]
    OutOfRange {
        /// Path of the field in `config.json`.
        field: &'static str,
        /// The number.
        value: i128,
    },
    /// The specification asks for something that the wire has no field or no value for. Sending the
    /// rest would start a container that is not the one asked for.
    #[error("{field}: the agent protocol can't carry it")]
    NotCarried {
        /// Path of the field in `config.json`.
        field: &'static str,
    },
    /// A path that is not UTF-8, which a protobuf string must be.
    #[error("{field}: {path:?} is not UTF-8")]
    NotUtf8 {
        /// Path of the field in `config.json`.
        field: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The model of the specification refused to make an object.
    #[error("{field}: can't be made")]
    Model {
        /// Path of the field in `config.json`.
        field: &'static str,
        /// Its reason.
        #[source]
        source: OciSpecError,
    },
}

impl SpecError {
    pub(super) fn unknown(field: &'static str, value: &str) -> Self {
        Self::UnknownName { field, value: value.chars().take(SHOWN).collect() }
    }

    pub(super) fn out_of_range(field: &'static str, value: impl Into<i128>) -> Self {
        Self::OutOfRange { field, value: value.into() }
    }

    pub(super) fn not_utf8(field: &'static str, path: &Path) -> Self {
        Self::NotUtf8 { field, path: path.to_owned() }
    }

    /// For `map_err` on a model's builder.
    pub(super) fn model(field: &'static str) -> impl Fn(OciSpecError) -> Self {
        move |source| Self::Model { field, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_field_and_value_on_one_short_line() {
        let hostile = "x\n".repeat(1 << 20);
        let message = SpecError::unknown("linux.namespaces.type", &hostile).to_string();
        assert!(message.starts_with("linux.namespaces.type: unknown name \"x\\nx"), "{message}");
        assert!(!message.contains('\n') && message.len() < 200, "{} bytes", message.len());

        let message = SpecError::out_of_range("process.oomScoreAdj", i64::MIN).to_string();
        assert_eq!(message, "process.oomScoreAdj: -9223372036854775808 is out of range");
    }
}
