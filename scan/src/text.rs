//! Lines and numbers as the kernel writes them, in `/proc` and in cgroups.

/// The number that is all of the text, but for blanks around it.
#[must_use]
pub fn whole(text: &[u8]) -> Option<u64> {
    match digits(text) {
        (Some(value), b"" | b"\n") => Some(value),
        _ => words(text).trim().parse().ok(),
    }
}

/// Digits, if there are no more than surely make a number, and what follows them.
fn digits(text: &[u8]) -> (Option<u64>, &[u8]) {
    let (mut value, mut rest) = (0_u64, text);
    while let [digit @ b'0'..=b'9', tail @ ..] = rest {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit & 0xf));
        rest = tail;
    }
    (matches!(text.len().wrapping_sub(rest.len()), 1..=19).then_some(value), rest)
}

/// As text: nothing if it is not UTF-8.
#[must_use]
pub fn words(text: &[u8]) -> &str {
    std::str::from_utf8(text).unwrap_or_default()
}

/// Calls `found` for each line of `key value`, with keys in UTF-8. Others are passed over.
pub fn pairs<'a>(mut text: &'a [u8], found: &mut dyn FnMut(&'a [u8], u64)) {
    while let Some((key, value, rest)) = next_pair(text) {
        found(key, value);
        text = rest;
    }
}

/// The first of such lines, and what follows it. One look at each byte of a line as the kernel writes it.
fn next_pair(mut text: &[u8]) -> Option<(&[u8], u64, &[u8])> {
    while !text.is_empty() {
        let (mut rest, mut seen) = (text, 0_u8);
        while let [byte, tail @ ..] = rest
            && !matches!(byte, b' ' | b'\n')
        {
            seen |= byte;
            rest = tail;
        }
        let key = text.get(..text.len().wrapping_sub(rest.len())).unwrap_or_default();
        if let [b' ', tail @ ..] = rest
            && let (Some(value), rest @ ([] | [b'\n', ..])) = digits(tail)
            && seen.is_ascii()
        {
            return Some((key, value, rest.get(1..).unwrap_or_default()));
        }
        let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
        let line = text.get(..end).unwrap_or_default();
        text = text.get(end.wrapping_add(1)..).unwrap_or_default();
        if let Some((key, value)) = odd(line) {
            return Some((key, value, text));
        }
    }
    None
}

/// A line with more blanks, or more digits, or letters that are none of ASCII's.
#[cold]
fn odd(line: &[u8]) -> Option<(&[u8], u64)> {
    let (key, value) = words(line).split_once(' ')?;
    let value = value.trim_matches([' ', '\t', '\r']);
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    Some((key.as_bytes(), value.parse().ok().filter(|_| is_number)?))
}

/// Calls `found` for each line of `name: number number...` that has numbers enough for `all`. What is no number counts as
/// 0. A name may have colons, numbers don't.
pub fn named_numbers(mut text: &[u8], all: &mut [u64], found: &mut dyn FnMut(&[u8], &[u64])) {
    while !text.is_empty() {
        let line = text;
        let (mut name, mut count) = (None, 0);
        loop {
            while let [b' ' | b'\t' | b'\r', tail @ ..] = text {
                text = tail;
            }
            if let [] | [b'\n', ..] = text {
                break;
            }
            let mut word = text;
            while let [byte, tail @ ..] = text
                && !matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
            {
                text = tail;
                if *byte == b':' {
                    (name, count, word) = (line.get(..line.len().wrapping_sub(tail.len())), 0, tail);
                }
            }
            let word = word.get(..word.len().wrapping_sub(text.len())).unwrap_or_default();
            if let Some(place) = all.get_mut(count)
                && name.is_some()
                && !word.is_empty()
            {
                *place = whole(word).unwrap_or(0);
                count = count.wrapping_add(1);
            }
        }
        if let Some([name @ .., b':']) = name
            && count == all.len()
        {
            found(name.trim_ascii(), all);
        }
        text = text.get(1..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &[u8]) -> Vec<(&[u8], u64)> {
        let mut all = Vec::new();
        pairs(text, &mut |key, value| all.push((key, value)));
        all
    }

    #[test]
    fn lines_of_a_key_and_a_number_are_found() {
        let text = b"anon 12\n\nfile  3 \nno number\nx 1 2\ny -1\nz 18446744073709551615\nw 18446744073709551616\nlast 0";
        let expected: [(&[u8], u64); 4] = [(b"anon", 12), (b"file", 3), (b"z", u64::MAX), (b"last", 0)];
        assert_eq!(all(text), expected);
    }

    #[test]
    fn a_file_of_one_number_has_blanks_around_it_at_most() {
        for (text, expected) in [
            ("7\n", Some(7)),
            ("7", Some(7)),
            (" 7 \n", Some(7)),
            ("18446744073709551615\n", Some(u64::MAX)),
            ("18446744073709551616\n", None),
            ("max\n", None),
            ("7 8\n", None),
            ("\n", None),
            ("", None),
        ] {
            assert_eq!(whole(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn lines_of_a_name_and_enough_numbers_are_found() {
        let text = b"a heading\n  lo:1  22\tx 18446744073709551615 5\nfew: 1 2 3\n\nx:1: 2 3 4 5\n: 6 7 8 9";
        let mut found = Vec::new();
        named_numbers(text, &mut [0; 4], &mut |name, all| found.push((name.to_vec(), all.to_vec())));
        let expected: [(&[u8], [u64; 4]); 3] =
            [(b"lo", [1, 22, 0, u64::MAX]), (b"x:1", [2, 3, 4, 5]), (b"", [6, 7, 8, 9])];
        assert_eq!(found, expected.map(|(name, all)| (name.to_vec(), all.to_vec())));
    }

    proptest! {
        /// As the standard library would take them apart.
        #[test]
        fn any_text_is_taken_apart_alike(text in "[a-c\u{e9} \t0-9\n+-]{0,60}") {
            let digits = |value: &str| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let expected: Vec<_> = text
                .split('\n')
                .filter_map(|line| line.split_once(' '))
                .map(|(key, value)| (key, value.trim_matches([' ', '\t', '\r'])))
                .filter(|(_, value)| digits(value))
                .filter_map(|(key, value)| Some((key.as_bytes(), value.parse().ok()?)))
                .collect();
            prop_assert_eq!(all(text.as_bytes()), expected);
        }

        #[test]
        fn any_text_of_names_is_taken_apart_alike(text in "[a:\u{e9} \t0-9\n+-]{0,60}") {
            let number = |word: &str| word.parse().unwrap_or(0);
            let expected: Vec<_> = text
                .split('\n')
                .filter_map(|line| line.rsplit_once(':'))
                .map(|(name, words)| (name, words.split([' ', '\t']).filter(|word| !word.is_empty()).map(number)))
                .map(|(name, numbers)| (name.trim().as_bytes().to_vec(), numbers.take(2).collect::<Vec<_>>()))
                .filter(|(_, numbers)| numbers.len() == 2)
                .collect();
            let mut found = Vec::new();
            named_numbers(text.as_bytes(), &mut [0; 2], &mut |name, all| found.push((name.to_vec(), all.to_vec())));
            prop_assert_eq!(found, expected);
        }
    }
}
