//! The YAML that programs write CDI specifications in: block mappings and sequences, and scalars on one line.
//!
//! Everything else of YAML (anchors, tags, blocks of text, several documents, flow collections that are not empty or
//! lists of scalars) is refused with its line. A library for all of it would be a tenth of the agent.

use serde_json::{Map, Number, Value};

/// The deepest nesting that is read.
const DEPTH: usize = 16;

/// Why a text is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub(super) struct YamlError {
    line: usize,
    problem: &'static str,
}

struct Line<'a> {
    number: usize,
    indent: usize,
    text: &'a str,
}

struct Lines<'a> {
    lines: Vec<Line<'a>>,
    at: usize,
}

type Read = Result<Value, YamlError>;

/// Reads a document.
pub(super) fn parse(text: &str) -> Read {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = without_comment(line).trim_end();
        let text = line.trim_start_matches(' ');
        if text.is_empty() || (lines.is_empty() && (text == "---" || text.starts_with('%'))) {
            continue;
        }
        if text.starts_with('\t') {
            return Err(YamlError { line: number, problem: "it is indented by a tab" });
        }
        lines.push(Line { number, indent: line.len().saturating_sub(text.len()), text });
    }
    let mut lines = Lines { lines, at: 0 };
    let value = match lines.peek() {
        None => Value::Null,
        Some((indent, _)) => lines.block(indent, DEPTH)?,
    };
    if lines.peek().is_some() {
        return Err(lines.error("it is indented less than what it belongs to, or a second document"));
    }
    Ok(value)
}

/// A comment begins the line or follows a blank, outside quotes.
fn without_comment(line: &str) -> &str {
    let (mut quote, mut before) = (None, ' ');
    for (at, letter) in line.char_indices() {
        match (quote, letter) {
            // Only double quotes know backslashes.
            (Some(open), _) if letter == open && (open == '\'' || before != '\\') => quote = None,
            (Some(_), _) => {}
            (None, '#') if before == ' ' => return line.get(..at).unwrap_or_default(),
            (None, '"' | '\'') if matches!(before, ' ' | '[' | ',') => quote = Some(letter),
            (None, _) => {}
        }
        before = letter;
    }
    line
}

fn is_item(text: &str) -> bool {
    text == "-" || text.starts_with("- ")
}

impl<'a> Lines<'a> {
    fn peek(&self) -> Option<(usize, &'a str)> {
        self.lines.get(self.at).map(|line| (line.indent, line.text))
    }

    fn error(&self, problem: &'static str) -> YamlError {
        let line = self.lines.get(self.at).or_else(|| self.lines.last()).map_or(0, |line| line.number);
        YamlError { line, problem }
    }

    fn block(&mut self, indent: usize, depth: usize) -> Read {
        let depth = depth.checked_sub(1).ok_or_else(|| self.error("it is nested too deep"))?;
        match self.peek() {
            Some((_, text)) if is_item(text) => self.sequence(indent, depth),
            Some((_, text)) if entry(text).is_some() => self.mapping(indent, depth),
            Some((_, text)) => {
                let value = self.scalar(text)?;
                self.at = self.at.saturating_add(1);
                Ok(value)
            }
            None => Ok(Value::Null),
        }
    }

    fn sequence(&mut self, indent: usize, depth: usize) -> Read {
        let mut items = Vec::new();
        while let Some((at, text)) = self.peek().filter(|(at, text)| *at == indent && is_item(text)) {
            let rest = text.trim_start_matches('-').trim_start();
            let item = if rest.is_empty() {
                self.at = self.at.saturating_add(1);
                self.below(at, false, depth)?
            } else {
                // The rest is a block of its own, as if it began the line.
                let inner = at.saturating_add(text.len().saturating_sub(rest.len()));
                if let Some(line) = self.lines.get_mut(self.at) {
                    (line.indent, line.text) = (inner, rest);
                }
                self.block(inner, depth)?
            };
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn mapping(&mut self, indent: usize, depth: usize) -> Read {
        let mut map = Map::new();
        while let Some((_, text)) = self.peek().filter(|(at, text)| *at == indent && !is_item(text)) {
            let (key, rest) = entry(text).ok_or_else(|| self.error("it is no key: value"))?;
            let key = match self.scalar(key)? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            let value = if rest.is_empty() {
                self.at = self.at.saturating_add(1);
                self.below(indent, true, depth)?
            } else {
                let value = self.scalar(rest)?;
                self.at = self.at.saturating_add(1);
                value
            };
            if map.insert(key, value).is_some() {
                return Err(self.error("a key before it is there twice"));
            }
        }
        if self.peek().is_some_and(|(at, _)| at > indent) {
            return Err(self.error("it is indented more than what it belongs to"));
        }
        Ok(Value::Object(map))
    }

    /// The block that belongs to the line before. A list may stand as far left as its key.
    fn below(&mut self, indent: usize, of_key: bool, depth: usize) -> Read {
        match self.peek() {
            Some((at, text)) if at > indent || (of_key && at == indent && is_item(text)) => {
                self.block(at, depth)
            }
            _ => Ok(Value::Null),
        }
    }

    fn scalar(&self, text: &str) -> Read {
        let fail = |problem| Err(self.error(problem));
        match text.as_bytes().first() {
            Some(b'"') => serde_json::from_str::<String>(text)
                .map(Value::String)
                .map_err(|_| self.error("its quotes don't end, or it has escapes that JSON has not")),
            Some(b'\'') => match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
                Some(text) => Ok(Value::String(text.replace("''", "'"))),
                None => fail("its quotes don't end"),
            },
            Some(b'[') => match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
                Some(list) if list.trim().is_empty() => Ok(Value::Array(Vec::new())),
                Some(list) if !list.contains(['[', '{', '"', '\'']) => list
                    .split(',')
                    .map(|item| self.scalar(item.trim()))
                    .collect::<Result<_, _>>()
                    .map(Value::Array),
                _ => fail("a list on one line that is not of plain words"),
            },
            Some(b'{') if text == "{}" => Ok(Value::Object(Map::new())),
            Some(b'{') => fail("a mapping on one line"),
            Some(b'|' | b'>') => fail("a block of text"),
            Some(b'&' | b'*' | b'!' | b'%' | b'@' | b'`') => fail("an anchor, a tag or a reserved letter"),
            _ => Ok(plain(text)),
        }
    }
}

/// Splits `key: value`; the value may be empty.
fn entry(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\''));
    if let Some(quote) = quote {
        let end = text.get(1..)?.find(quote)?.saturating_add(2);
        let rest = text.get(end..)?.trim_start().strip_prefix(':')?;
        return Some((text.get(..end)?, rest.trim_start()));
    }
    if let Some(key) = text.strip_suffix(':') {
        return Some((key, ""));
    }
    text.split_once(": ").map(|(key, rest)| (key, rest.trim_start()))
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" => return Value::Null,
        "true" | "True" => return Value::Bool(true),
        "false" | "False" => return Value::Bool(false),
        _ => {}
    }
    // YAML 1.1 writes octal numbers with a leading 0, YAML 1.2 with 0o.
    let octal = text.strip_prefix("0o").or_else(|| text.strip_prefix('0').filter(|rest| !rest.is_empty()));
    if let Some(number) = octal.and_then(|digits| i64::from_str_radix(digits, 8).ok().filter(|n| *n >= 0)) {
        return Value::Number(Number::from(number));
    }
    match text.parse::<i64>() {
        Ok(number) if !text.starts_with('+') => Value::Number(Number::from(number)),
        _ => Value::String(text.to_owned()),
    }
}
