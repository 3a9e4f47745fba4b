//! Expectations that several scenarios have.

use std::fmt::Debug;

use nakai_ctl::CallError;
use nakai_ctl::stdio::Finished;
use ttrpc::Code;

/// The call is refused with `code`, in one line that has all of `words` in it.
#[track_caller]
pub(crate) fn refused<T: Debug>(result: Result<T, CallError>, code: Code, words: &[&str]) {
    let error = match result {
        Ok(value) => panic!("accepted with {value:?}, expected {code:?} about {words:?}"),
        Err(error) => error,
    };
    assert_eq!(error.code, code, "{error}");
    for word in words {
        assert!(error.message.contains(word), "{word:?} is not in: {error}");
    }
    assert!(!error.message.contains('\n'), "more than one line: {error}");
}

/// The program ended with 0 and wrote nothing but its output, which is returned without the last line's end.
#[track_caller]
pub(crate) fn succeeded(finished: Finished) -> String {
    let stderr = String::from_utf8_lossy(&finished.stderr);
    let stdout = String::from_utf8_lossy(&finished.stdout);
    assert_eq!((finished.status, &*stderr), (0, ""), "its output: {stdout}");
    stdout.strip_suffix('\n').unwrap_or(&stdout).to_owned()
}

/// Bytes that look random, the same for the same seed (xorshift64).
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Both are the same bytes; else where they part, without printing megabytes.
#[track_caller]
pub(crate) fn same_bytes(seen: &[u8], expected: &[u8]) {
    let differ = seen.iter().zip(expected).position(|(a, b)| a != b);
    assert!(differ.is_none(), "byte {} differs", differ.unwrap_or(0));
    assert_eq!(seen.len(), expected.len(), "so many bytes came");
}
