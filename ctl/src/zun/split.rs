//! Splits a command as Python's `shlex.split` does, which Zun uses.

/// Words, by white space; quotes and backslashes keep it. There are no comments.
///
/// # Errors
///
/// A quote has no end, or a backslash nothing behind it.
pub fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a single quote has no end".to_owned()),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err("a double quote has no end".to_owned()),
                        },
                        Some(c) => word.push(c),
                        None => return Err("a double quote has no end".to_owned()),
                    }
                }
            }
            '\\' => {
                let escaped = chars.next().ok_or("nothing is behind the last backslash")?;
                word.get_or_insert_default().push(escaped);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let table: [(&str, &[&str]); 8] = [
            ("", &[]),
            (" a  b\tc ", &["a", "b", "c"]),
            ("sh -c 'echo a  b'", &["sh", "-c", "echo a  b"]),
            (r#"a "b \"c\" \d" e"#, &["a", r#"b "c" \d"#, "e"]),
            (r"a\ b \\", &["a b", r"\"]),
            ("''", &[""]),
            ("a'b'\"c\"", &["abc"]),
            ("a #b", &["a", "#b"]),
        ];
        for (text, words) in table {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        for text in ["'a", "\"a", "a\\"] {
            assert!(split(text).is_err(), "{text}");
        }
    }
}
