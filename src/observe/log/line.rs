//! One record as one line of JSON.
//!
//! Bounded: a value longer than [`MAX_VALUE`] is cut, because messages carry texts that the host or a
//! container chose.

use std::fmt::{self, Write as _};

use slog::{KV as _, Key, Level, OwnedKVList, Record, Serializer};

use super::timestamp::Timestamp;

/// The longest text of a value, in bytes.
const MAX_VALUE: usize = 8 * 1024;
/// Ends a text that was cut.
const CUT: &str = "...";

/// The fields that every line begins with.
const RESERVED: [&str; 7] = ["msg", "level", "ts", "name", "source", "version", "pid"];

/// A line being written: an object that is still open.
pub(super) struct Line {
    text: String,
    seen: Vec<Key>,
}

impl Line {
    /// The line of a record, its end of line included.
    pub(super) fn of_record(record: &Record<'_>, values: &OwnedKVList) -> Vec<u8> {
        let mut line = Self::begin(record.level(), record.msg());
        // Neither can fail: our serializer only fails if a value's own Display does, and then the value is
        // cut.
        let _ = record.kv().serialize(record, &mut line);
        let _ = values.serialize(record, &mut line);
        line.end()
    }

    /// The line that tells of lost ones.
    pub(super) fn of_losses(count: u64) -> Vec<u8> {
        let mut line = Self::begin(Level::Warning, &format_args!("log lines were dropped"));
        let _ = line.emit_u64("dropped", count);
        line.end()
    }

    fn begin(level: Level, message: &fmt::Arguments<'_>) -> Self {
        let mut line = Self { text: String::with_capacity(256), seen: Vec::new() };
        line.text.push_str("{\"msg\":");
        line.push_text(message);
        line.push_field("level", &format_args!("{}", level.as_short_str()));
        line.push_field("ts", &format_args!("{}", Timestamp::now()));
        line.push_field("name", &format_args!("nakai"));
        line.push_field("source", &format_args!("agent"));
        line.push_field("version", &format_args!("{}", env!("CARGO_PKG_VERSION")));
        line.push_field("pid", &format_args!("{}", std::process::id()));
        line
    }

    fn end(mut self) -> Vec<u8> {
        if !self.seen.contains(&"subsystem") {
            self.push_field("subsystem", &format_args!("agent"));
        }
        self.text.push_str("}\n");
        self.text.into_bytes()
    }

    fn push_field(&mut self, key: &str, value: &fmt::Arguments<'_>) {
        self.push_key(key, "");
        self.push_text(value);
    }

    fn push_key(&mut self, key: &str, suffix: &str) {
        self.text.push(',');
        self.push_text(&format_args!("{key}{suffix}"));
        self.text.push(':');
    }

    /// A JSON string (RFC 8259, section 7).
    fn push_text(&mut self, value: &fmt::Arguments<'_>) {
        self.text.push('"');
        let mut escaped = Escaped { text: &mut self.text, room: MAX_VALUE };
        if escaped.write_fmt(*value).is_err() {
            self.text.push_str(CUT);
        }
        self.text.push('"');
    }

    /// Writes the key of a pair and says that its value may follow, unless the key was there before.
    fn begin_pair(&mut self, key: Key) -> bool {
        if self.seen.contains(&key) {
            return false;
        }
        self.seen.push(key);
        self.push_key(key, if RESERVED.contains(&key) { "_" } else { "" });
        true
    }

    /// Writes a pair whose value needs no quotes.
    fn emit_bare(&mut self, key: Key, value: impl fmt::Display) -> slog::Result {
        if self.begin_pair(key) {
            let _ = write!(self.text, "{value}");
        }
        Ok(())
    }
}

/// Escapes what passes through, and fails once there is no room.
struct Escaped<'a> {
    text: &'a mut String,
    room: usize,
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for c in part.chars() {
            self.room = self.room.checked_sub(c.len_utf8()).ok_or(fmt::Error)?;
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\t' => self.text.push_str("\\t"),
                // C1 controls are legal in JSON, but a terminal obeys them.
                c if c.is_control() => write!(self.text, "\\u{:04x}", u32::from(c))?,
                c => self.text.push(c),
            }
        }
        Ok(())
    }
}

macro_rules! bare {
    ($($name:ident: $kind:ty),* $(,)?) => {
        $(fn $name(&mut self, key: Key, value: $kind) -> slog::Result {
            self.emit_bare(key, value)
        })*
    };
}

impl Serializer for Line {
    bare! {
        emit_usize: usize, emit_isize: isize, emit_u8: u8, emit_i8: i8, emit_u16: u16, emit_i16: i16, emit_u32: u32,
        emit_i32: i32, emit_u64: u64, emit_i64: i64, emit_u128: u128, emit_i128: i128, emit_bool: bool,
    }

    fn emit_f64(&mut self, key: Key, value: f64) -> slog::Result {
        if value.is_finite() { self.emit_bare(key, value) } else { self.emit_none(key) }
    }

    fn emit_f32(&mut self, key: Key, value: f32) -> slog::Result {
        self.emit_f64(key, f64::from(value))
    }

    fn emit_unit(&mut self, key: Key) -> slog::Result {
        self.emit_none(key)
    }

    fn emit_none(&mut self, key: Key) -> slog::Result {
        self.emit_bare(key, "null")
    }

    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        if self.begin_pair(key) {
            self.push_text(value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use slog::{b, o, record};

    use super::*;

    /// The pairs of a line that `kv` and the logger's `values` make.
    fn line(
        values: slog::OwnedKV<impl slog::SendSyncRefUnwindSafeKV + 'static>,
        kv: slog::BorrowedKV<'_>,
    ) -> Value {
        let text = Line::of_record(&record!(Level::Info, "", &format_args!("m"), kv), &values.into());
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.find('\n'), Some(text.len() - 1), "one line: {text:?}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn values_keep_their_types() {
        let found = line(
            o!(),
            b!("u" => u64::MAX, "i" => -1, "b" => false, "f" => 1.5, "nan" => f64::NAN, "none" => None::<u8>,
               "unit" => (), "c" => 'c', "s" => "s", "fmt" => format_args!("{}", 7), "some" => Some(1)),
        );
        for (key, value) in [
            ("u", json!(u64::MAX)),
            ("i", json!(-1)),
            ("b", json!(false)),
            ("f", json!(1.5)),
            ("nan", Value::Null),
            ("none", Value::Null),
            ("unit", Value::Null),
            ("c", json!("c")),
            ("s", json!("s")),
            ("fmt", json!("7")),
            ("some", json!(1)),
        ] {
            assert_eq!(found[key], value, "{key}");
        }
    }

    #[test]
    fn no_key_is_there_twice() {
        let found =
            line(o!("cid" => "far", "subsystem" => "s"), b!("cid" => "near", "pid" => 7, "msg" => "x"));
        assert_eq!(found["cid"], "near");
        assert_eq!(found["subsystem"], "s");
        assert_eq!(found["pid"], std::process::id().to_string());
        assert_eq!((&found["pid_"], &found["msg_"]), (&json!(7), &json!("x")));
        assert_eq!(found["msg"], "m");
    }

    #[test]
    fn long_values_are_cut() {
        let long = "é".repeat(MAX_VALUE);
        let found = line(o!(), b!("long" => &long, "next" => 1));
        assert_eq!(found["long"].as_str().unwrap().len(), MAX_VALUE + CUT.len());
        assert_eq!(found["next"], 1);
    }

    proptest::proptest! {
        #[test]
        fn any_text_comes_back(text in ".*") {
            let found = line(o!(), b!("t" => &text));
            proptest::prop_assert_eq!(found["t"].as_str(), Some(text.as_str()));
        }
    }
}
