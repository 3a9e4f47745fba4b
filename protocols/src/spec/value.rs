//! How presence is said on either side, and the small conversions that all parts share.
//!
//! proto3 has no absent string, number, flag or list, the model has: here is where the one becomes
//! the other (the rule and its exceptions are in the [parent module](super)).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::OciSpecError;
use serde_json::from_str;

use super::SpecError;

/// An object of the model that holds only what `json` says.
///
/// The model's `Default` and builders fill in what a container engine might like: a shell, three
/// capabilities, mounts, namespaces. Reading is the one way to make an object that does not.
pub(super) fn blank<T: serde::de::DeserializeOwned>(field: &'static str, json: &str) -> Result<T, SpecError> {
    from_str(json).map_err(|e| SpecError::model(field)(OciSpecError::from(e)))
}

/// A string that may be absent.
pub(super) fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

/// A path that may be absent.
pub(super) fn path(value: &str) -> Option<PathBuf> {
    (!value.is_empty()).then(|| PathBuf::from(value))
}

/// A number that may be absent.
pub(super) fn number<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// A flag that may be absent.
pub(super) fn flag(value: bool) -> Option<bool> {
    value.then_some(true)
}

/// A list of plain values that may be absent.
pub(super) fn plain<T: Clone>(values: &[T]) -> Option<Vec<T>> {
    (!values.is_empty()).then(|| values.to_vec())
}

/// A map that may be absent.
pub(super) fn map(values: &HashMap<String, String>) -> Option<HashMap<String, String>> {
    (!values.is_empty()).then(|| values.clone())
}

/// A list that may be absent, each element converted.
pub(super) fn list<S, T>(
    values: &[S],
    convert: impl FnMut(&S) -> Result<T, SpecError>,
) -> Result<Option<Vec<T>>, SpecError> {
    if values.is_empty() { Ok(None) } else { each(values, convert).map(Some) }
}

/// A list, each element converted.
pub(super) fn each<S, T>(
    values: &[S],
    convert: impl FnMut(&S) -> Result<T, SpecError>,
) -> Result<Vec<T>, SpecError> {
    values.iter().map(convert).collect()
}

/// The elements of a list that may be absent.
pub(super) fn items<T>(values: &Option<Vec<T>>) -> &[T] {
    values.as_deref().unwrap_or_default()
}

/// A number as another type.
pub(super) fn narrow<S, T>(field: &'static str, value: S) -> Result<T, SpecError>
where
    S: Copy + Into<i128>,
    T: TryFrom<S>,
{
    T::try_from(value).map_err(|_| SpecError::out_of_range(field, value))
}

/// One of a fixed set of names.
pub(super) fn name<T: FromStr>(field: &'static str, value: &str) -> Result<T, SpecError> {
    value.parse().map_err(|_| SpecError::unknown(field, value))
}

/// A path as the wire's string.
pub(super) fn path_to_wire(field: &'static str, path: &Path) -> Result<String, SpecError> {
    path.to_str().map(str::to_owned).ok_or_else(|| SpecError::not_utf8(field, path))
}

/// A path that may be absent as the wire's string.
pub(super) fn path_or_empty(field: &'static str, path: &Option<PathBuf>) -> Result<String, SpecError> {
    path.as_deref().map_or_else(|| Ok(String::new()), |path| path_to_wire(field, path))
}

/// Refuses what the wire has no field for.
pub(super) fn not_carried(field: &'static str, present: bool) -> Result<(), SpecError> {
    if present { Err(SpecError::NotCarried { field }) } else { Ok(()) }
}

/// A number whose zero means something other than its absence, which the wire can't say.
pub(super) fn nonzero_or_absent<T: Default + PartialEq + Copy>(
    field: &'static str,
    value: Option<T>,
) -> Result<T, SpecError> {
    not_carried(field, value == Some(T::default()))?;
    Ok(value.unwrap_or_default())
}
