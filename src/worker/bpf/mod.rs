//! The instructions of seccomp filters: classic BPF (linux/filter.h), as much of it as libseccomp and we use, and how a
//! program of them becomes a short one ([`condense()`]).

mod condense;
mod layout;

pub(super) use condense::condense;

/// Operations, see linux/bpf_common.h: load a word, keep some of its bits, jump by comparisons or at once, return.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const IF_EQUAL: u16 = 0x15;
pub(super) const IF_ABOVE: u16 = 0x25;
pub(super) const IF_AT_LEAST: u16 = 0x35;
pub(super) const IF_SET: u16 = 0x45;
pub(super) const JUMP: u16 = 0x05;
pub(super) const RETURN: u16 = 0x06;

/// Where `struct seccomp_data` has the number and the architecture.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCH: u32 = 4;

/// One instruction, `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) code: u16,
    /// How many instructions a comparison skips that is true,
    pub(super) yes: u8,
    /// or not.
    pub(super) no: u8,
    pub(super) value: u32,
}

impl Op {
    /// One that compares nothing.
    pub(super) fn plain(code: u16, value: u32) -> Self {
        Self { code, yes: 0, no: 0, value }
    }

    /// As the kernel has it.
    pub(super) fn word(self) -> u64 {
        let ([c, o], [v, a, l, u]) = (self.code.to_ne_bytes(), self.value.to_ne_bytes());
        u64::from_ne_bytes([c, o, self.yes, self.no, v, a, l, u])
    }

    pub(super) fn of(word: u64) -> Self {
        let [c, o, yes, no, v, a, l, u] = word.to_ne_bytes();
        Self { code: u16::from_ne_bytes([c, o]), yes, no, value: u32::from_ne_bytes([v, a, l, u]) }
    }

    /// What a comparison says of `loaded`; `None` if it is none.
    fn compare(self, loaded: u32) -> Option<bool> {
        Some(match self.code {
            IF_EQUAL => loaded == self.value,
            IF_ABOVE => loaded > self.value,
            IF_AT_LEAST => loaded >= self.value,
            IF_SET => loaded & self.value != 0,
            _ => return None,
        })
    }

    /// Where it goes on from `at`, if it is a comparison: if that is true, and if not.
    fn branches(self, at: usize) -> [usize; 2] {
        [self.yes, self.no].map(|skipped| at.saturating_add(1).saturating_add(skipped.into()))
    }

    /// Where it jumps to from `at`, if it does.
    fn target(self, at: usize) -> usize {
        at.saturating_add(1).saturating_add(usize::try_from(self.value).unwrap_or(usize::MAX))
    }
}

/// What the kernel would answer to a call; `data` are the words of `struct seccomp_data`.
#[cfg(test)]
pub(super) fn run(program: &[u64], data: &[u32; 16]) -> u32 {
    let (mut at, mut loaded) = (0, 0);
    loop {
        let op = Op::of(program[at]);
        at = match op.code {
            LOAD => {
                loaded = data[op.value as usize / 4];
                at + 1
            }
            AND => {
                loaded &= op.value;
                at + 1
            }
            JUMP => op.target(at),
            RETURN => return op.value,
            _ => op.branches(at)[usize::from(!op.compare(loaded).unwrap())],
        };
    }
}

#[cfg(test)]
mod tests;
