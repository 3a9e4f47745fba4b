//! Names of CDI devices.

use std::fmt;
use std::str::FromStr;

use super::CdiError;

/// `vendor.com/class=device`, or all devices of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiName {
    /// `vendor.com/class`.
    pub(super) kind: String,
    /// The device's name; `None` for all that there are.
    pub(super) device: Option<String>,
}

fn is_word(text: &str, also: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || also.as_bytes().contains(byte))
}

/// Checks a kind: the vendor begins with a letter and is like a host name, the class like a name of a program.
pub(super) fn check_kind(kind: &str) -> Result<(), &'static str> {
    let (vendor, class) = kind.split_once('/').ok_or("its kind is not vendor/class")?;
    let letter = |text: &str| text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if !(letter(vendor) && is_word(vendor, "_-.")) {
        return Err("its vendor is not letters, digits, '_', '-' and '.'");
    }
    if !(letter(class) && is_word(class, "_-")) {
        return Err("its class is not letters, digits, '_' and '-'");
    }
    Ok(())
}

impl FromStr for CdiName {
    type Err = CdiError;

    fn from_str(text: &str) -> Result<Self, CdiError> {
        let refuse = |reason| CdiError::Name { name: text.chars().take(100).collect(), reason };
        let (kind, device) = text.split_once('=').ok_or_else(|| refuse("it is not vendor/class=device"))?;
        check_kind(kind).map_err(refuse)?;
        if !is_word(device, "_-.:") {
            return Err(refuse("the device is not letters, digits, '_', '-', '.' and ':'"));
        }
        Ok(Self { kind: kind.to_owned(), device: Some(device.to_owned()) })
    }
}

impl fmt::Display for CdiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device.as_deref().unwrap_or("all"))
    }
}

/// The names in `VISIBLE_CDI_DEVICES`: `<kind>=all`, `<kind>=0,1`, several of them parted by colons.
pub(super) fn visible(value: &str) -> Result<Vec<CdiName>, CdiError> {
    if matches!(value, "" | "none" | "void") {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for part in value.split(':') {
        let refuse = |reason| CdiError::Name { name: part.chars().take(100).collect(), reason };
        let (kind, list) = part.split_once('=').ok_or_else(|| refuse("it is not vendor/class=device"))?;
        if list == "all" {
            check_kind(kind).map_err(refuse)?;
            names.push(CdiName { kind: kind.to_owned(), device: None });
            continue;
        }
        for device in list.split(',') {
            names.push(format!("{kind}={device}").parse()?);
        }
    }
    Ok(names)
}
