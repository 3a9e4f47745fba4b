//! The same filter in fewer instructions.
//!
//! For each name of a profile libseccomp's program has a comparison and a node of its search tree, for each architecture
//! anew. The kernel checks, translates and compiles every instruction for each process that loads the program, which
//! on an emulated processor is most of what a profile costs. But numbers with the same answer lie side by side: two
//! hundred names are some sixty ranges.
//!
//! So the program is run for each architecture and number that it tells apart, up to its answer or to where it looks at
//! anything else, an argument. What comes of it, by ranges, is laid out anew as a search tree; what looks at arguments is
//! taken over as it is.

use std::collections::BTreeSet;

use super::layout::Layout;
use super::{AND, ARCH, IF_SET, JUMP, LOAD, NUMBER, Op, RETURN};

/// What a call comes to that is known by its architecture and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// That answer.
    Answer(u32),
    /// That instruction, which loads something else.
    Further(usize),
}

/// Values from that one on, up to the next one's, and what becomes of them.
pub(super) type Ranges<T> = Vec<(u32, T)>;

/// A shorter program that answers all calls as `program` does. `None` if that has instructions or habits that are not
/// known here, or no shorter one is found.
pub(in crate::worker) fn condense(program: &[u64]) -> Option<Vec<u64>> {
    laid_out(program).filter(|short| short.len() < program.len())
}

/// The same, as long as it comes.
pub(super) fn laid_out(program: &[u64]) -> Option<Vec<u64>> {
    let ops: Vec<Op> = program.iter().map(|word| Op::of(*word)).collect();
    let Cuts { archs, numbers } = Cuts::of(&ops)?;
    let ends = |arch| {
        let ends = numbers.iter().map(|number| Some((*number, walk(&ops, arch, *number)?)));
        ends.collect::<Option<Vec<_>>>().map(merge)
    };
    let archs = archs.iter().map(|arch| Some((*arch, ends(*arch)?)));
    let archs = merge(archs.collect::<Option<Vec<_>>>()?);
    Some(Layout::of(&ops, &archs)?.into_iter().map(Op::word).collect())
}

/// Joins neighbours that are the same.
fn merge<T: PartialEq>(mut ranges: Ranges<T>) -> Ranges<T> {
    ranges.dedup_by(|(_, next), (_, before)| next == before);
    ranges
}

/// Runs the program.
fn walk(ops: &[Op], arch: u32, number: u32) -> Option<End> {
    let (mut at, mut loaded) = (0, None);
    loop {
        let op = *ops.get(at)?;
        at = match (op.code, op.value) {
            (LOAD, NUMBER | ARCH) => {
                loaded = Some(if op.value == ARCH { arch } else { number });
                at.checked_add(1)?
            }
            (LOAD, _) => return Some(End::Further(at)),
            (JUMP, _) => op.target(at),
            (RETURN, answer) => return Some(End::Answer(answer)),
            _ => {
                let [yes, no] = op.branches(at);
                if op.compare(loaded?)? { yes } else { no }
            }
        };
    }
}

/// Where architectures and numbers begin to be told apart from those below them.
struct Cuts {
    archs: BTreeSet<u32>,
    numbers: BTreeSet<u32>,
}

/// What may be loaded where an instruction is, one bit for each.
const IS_NUMBER: u8 = 1;
const IS_ARCH: u8 = 2;
const IS_OTHER: u8 = 4;
/// Nothing yet.
const IS_NOTHING: u8 = 8;

impl Cuts {
    /// All jumps go forward, so that one look at each instruction is enough.
    fn of(ops: &[Op]) -> Option<Self> {
        let mut cuts = Self { archs: BTreeSet::from([0]), numbers: BTreeSet::from([0]) };
        let mut held = vec![0_u8; ops.len()];
        *held.first_mut()? = IS_NOTHING;
        for (at, op) in ops.iter().enumerate() {
            let now = *held.get(at)?;
            if now == 0 {
                continue;
            }
            let mut goes = |to: usize, with: u8| held.get_mut(to).map(|held| *held |= with);
            match op.code {
                LOAD => {
                    let loaded = match op.value {
                        NUMBER => IS_NUMBER,
                        ARCH => IS_ARCH,
                        _ => IS_OTHER,
                    };
                    goes(at.checked_add(1)?, loaded)?;
                }
                AND if now == IS_OTHER => goes(at.checked_add(1)?, now)?,
                JUMP => goes(op.target(at), now)?,
                RETURN => {}
                _ => {
                    op.compare(0)?;
                    for (bit, cuts) in [(IS_NUMBER, &mut cuts.numbers), (IS_ARCH, &mut cuts.archs)] {
                        if now & bit != 0 {
                            cut(cuts, *op)?;
                        }
                    }
                    for to in op.branches(at) {
                        goes(to, now)?;
                    }
                }
            }
        }
        Some(cuts)
    }
}

/// Adds where the answer to a comparison changes.
fn cut(cuts: &mut BTreeSet<u32>, op: Op) -> Option<()> {
    if op.code != IF_SET {
        // Whichever of the two it is.
        cuts.extend([Some(op.value), op.value.checked_add(1)].into_iter().flatten());
        return Some(());
    }
    // It may change at each multiple of the lowest bit. Who looks at low ones sees other ranges than these.
    let lowest = op.value.trailing_zeros();
    if lowest < 28 {
        return None;
    }
    cuts.extend((0_u32..16).filter_map(|count| count.checked_mul(1_u32.checked_shl(lowest)?)));
    Some(())
}
