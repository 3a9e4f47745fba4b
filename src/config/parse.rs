//! From an option's text to its value. Each parser says what it expected, for the person who reads the
//! message.

use std::path::PathBuf;
use std::time::Duration;

use slog::Level;

/// The reason why a text is refused.
type Parsed<T> = Result<T, String>;

/// `true` or `false`, a number (0 is false), or what systemd takes for its own parameters.
pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        other => match other.parse::<i64>() {
            Ok(number) => Ok(number != 0),
            Err(_) => Err("expected true or false".to_owned()),
        },
    }
}

/// A level by the names that peers take.
pub(super) fn level(text: &str) -> Parsed<Level> {
    match text.to_ascii_lowercase().as_str() {
        "fatal" | "panic" | "critical" => Ok(Level::Critical),
        "error" => Ok(Level::Error),
        "warn" | "warning" => Ok(Level::Warning),
        "info" => Ok(Level::Info),
        "debug" => Ok(Level::Debug),
        "trace" => Ok(Level::Trace),
        _ => Err("expected critical, error, warning, info, debug or trace".to_owned()),
    }
}

/// A whole number of seconds, at least one.
pub(super) fn seconds(text: &str) -> Parsed<Duration> {
    positive(text).map(Duration::from_secs).ok_or_else(|| "expected a number of seconds above 0".to_owned())
}

/// A whole number of milliseconds, at least one.
pub(super) fn milliseconds(text: &str) -> Parsed<Duration> {
    positive(text)
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a number of milliseconds above 0".to_owned())
}

/// Above zero, and small enough to be added to any clock.
fn positive(text: &str) -> Option<u64> {
    text.parse::<u32>().ok().filter(|n| *n > 0).map(u64::from)
}

/// A vsock port; 0 switches its service off.
pub(super) fn port(text: &str) -> Parsed<Option<u32>> {
    match text.parse::<u32>() {
        Ok(0) => Ok(None),
        Ok(port) if port < u32::MAX => Ok(Some(port)),
        _ => Err("expected a port, or 0 for none".to_owned()),
    }
}

/// A number of bytes that fcntl(2) `F_SETPIPE_SZ` takes; 0 leaves it to the kernel.
pub(super) fn pipe_size(text: &str) -> Parsed<Option<u32>> {
    match text.parse::<i32>().map(u32::try_from) {
        Ok(Ok(0)) => Ok(None),
        Ok(Ok(bytes)) => Ok(Some(bytes)),
        _ => Err("expected a number of bytes from 0 to 2147483647".to_owned()),
    }
}

/// A whole number up to `most`.
pub(super) fn up_to<T: TryFrom<u64>>(text: &str, most: u64) -> Parsed<T> {
    let number = text.parse::<u64>().ok().filter(|number| *number <= most);
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("expected a number from 0 to {most}"))
}

/// An absolute path.
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if text.starts_with('/') && !text.contains('\0') {
        Ok(PathBuf::from(text))
    } else {
        Err("expected an absolute path".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans() {
        for (text, value) in [
            ("true", true),
            ("TRUE", true),
            ("1", true),
            ("-1", true),
            ("on", true),
            ("0", false),
            ("no", false),
        ] {
            assert_eq!(boolean(text), Ok(value), "{text}");
        }
        for text in ["", "maybe", "1.0", "tru"] {
            assert!(boolean(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn levels() {
        for (text, value) in [
            ("fatal", Level::Critical),
            ("panic", Level::Critical),
            ("error", Level::Error),
            ("warn", Level::Warning),
            ("warning", Level::Warning),
            ("Info", Level::Info),
            ("debug", Level::Debug),
            ("trace", Level::Trace),
        ] {
            assert_eq!(level(text), Ok(value), "{text}");
        }
        assert!(level("loud").is_err());
    }

    #[test]
    fn numbers() {
        assert_eq!(seconds("3"), Ok(Duration::from_secs(3)));
        assert_eq!(milliseconds("200"), Ok(Duration::from_millis(200)));
        for text in ["", "0", "-1", "3s", "99999999999"] {
            assert!(seconds(text).is_err(), "{text:?}");
        }
        assert_eq!((port("0"), port("1026")), (Ok(None), Ok(Some(1026))));
        assert!(port("-1").is_err() && port("4294967295").is_err());
        assert_eq!((pipe_size("0"), pipe_size("65536")), (Ok(None), Ok(Some(65536))));
        assert!(pipe_size("-1").is_err() && pipe_size("2147483648").is_err());
    }
}
