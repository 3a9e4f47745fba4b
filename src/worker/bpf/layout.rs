//! A program laid out from its end to its beginning.
//!
//! Jumps go forward, and a comparison's no further than 255 instructions. So what is jumped to is there first, and where
//! it has come too far away a copy of it, or a jump to it, is put nearer.

use std::collections::HashMap;

use super::condense::{End, Ranges};
use super::{ARCH, IF_AT_LEAST, IF_EQUAL, JUMP, LOAD, NUMBER, Op, RETURN};

/// How many instructions a comparison may skip, with room for what is put between.
const FAR: usize = 250;

/// An instruction that is there: how many are behind it.
type Label = usize;

/// Ranges that go on the same way, but for a few single values between them: a comparison for each of those does,
/// where the ranges themselves would take two.
struct Group {
    from: u32,
    single: Vec<(u32, Label)>,
    rest: Label,
}

/// Not more, as each takes a step.
const SINGLES: usize = 5;

impl Group {
    fn all(ranges: &[(u32, Label)]) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        let mut left = ranges;
        loop {
            left = match (left, groups.last_mut()) {
                ([(value, label), (after, behind), rest @ ..], Some(group))
                    if group.rest == *behind
                        && value.checked_add(1) == Some(*after)
                        && group.single.len() < SINGLES =>
                {
                    group.single.push((*value, *label));
                    rest
                }
                ([(from, label), rest @ ..], _) => {
                    groups.push(Self { from: *from, single: Vec::new(), rest: *label });
                    rest
                }
                ([], _) => return groups,
            };
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Layout {
    /// The last one first.
    ops: Vec<Op>,
    /// What stands nearer for one that is far away.
    nearer: HashMap<Label, Label>,
    answers: HashMap<u32, Label>,
    /// The instructions that were taken over, by where they were.
    taken: HashMap<usize, Label>,
}

impl Layout {
    /// The program that does what `archs` says for each architecture and number; `old` is where [`End::Further`] points.
    pub(super) fn of(old: &[Op], archs: &Ranges<Ranges<End>>) -> Option<Vec<Op>> {
        let mut layout = Self::default();
        let ends = || archs.iter().flat_map(|(_, numbers)| numbers).map(|(_, end)| *end);
        layout.take_over(old, ends())?;
        let archs: Option<Ranges<Label>> =
            archs.iter().map(|(arch, numbers)| Some((*arch, layout.section(numbers)?))).collect();
        let first = layout.choice(ARCH, &archs?)?;
        layout.fall_to(first)?;
        layout.ops.reverse();
        Some(layout.ops)
    }

    /// What is done for an architecture.
    fn section(&mut self, numbers: &Ranges<End>) -> Option<Label> {
        let label = |(number, end): &(u32, End)| {
            let label = match end {
                End::Answer(answer) => self.answer(*answer)?,
                End::Further(at) => *self.taken.get(at)?,
            };
            Some((*number, label))
        };
        let numbers: Option<Ranges<Label>> = numbers.iter().map(label).collect();
        self.choice(NUMBER, &numbers?)
    }

    /// Loads what is to be chosen by, if there is a choice.
    fn choice(&mut self, by: u32, ranges: &[(u32, Label)]) -> Option<Label> {
        let first = self.tree(&Group::all(ranges))?;
        Some(if ranges.len() > 1 { self.push(Op::plain(LOAD, by)) } else { first })
    }

    fn tree(&mut self, groups: &[Group]) -> Option<Label> {
        if let [Group { rest, single, .. }] = groups {
            return single
                .iter()
                .rev()
                .try_fold(*rest, |rest, (value, label)| self.compare(IF_EQUAL, *value, *label, rest));
        }
        let (below, above) = groups.split_at_checked(groups.len().div_euclid(2))?;
        let from = above.first()?.from;
        let above = self.tree(above)?;
        let below = self.tree(below)?;
        self.compare(IF_AT_LEAST, from, above, below)
    }

    /// Takes over what of the old program may run from those ends on.
    fn take_over(&mut self, old: &[Op], ends: impl Iterator<Item = End>) -> Option<()> {
        let mut runs = vec![false; old.len()];
        for end in ends {
            if let End::Further(at) = end {
                *runs.get_mut(at)? = true;
            }
        }
        for (at, op) in old.iter().enumerate() {
            if !*runs.get(at)? {
                continue;
            }
            let next = match op.code {
                RETURN => continue,
                JUMP => [op.target(at); 2],
                LOAD | super::AND => [at.checked_add(1)?; 2],
                _ => op.branches(at),
            };
            for at in next {
                *runs.get_mut(at)? = true;
            }
        }
        for (at, op) in old.iter().enumerate().rev() {
            if !*runs.get(at)? {
                continue;
            }
            let label = match op.code {
                RETURN => self.answer(op.value)?,
                JUMP => *self.taken.get(&op.target(at))?,
                LOAD | super::AND => {
                    self.fall_to(*self.taken.get(&at.checked_add(1)?)?)?;
                    self.push(*op)
                }
                code => {
                    let [yes, no] = op.branches(at).map(|at| self.taken.get(&at).copied());
                    self.compare(code, op.value, yes?, no?)?
                }
            };
            self.taken.insert(at, label);
        }
        Some(())
    }

    fn answer(&mut self, answer: u32) -> Option<Label> {
        if let Some(label) = self.answers.get(&answer) {
            return Some(*label);
        }
        let label = self.push(Op::plain(RETURN, answer));
        self.answers.insert(answer, label);
        Some(label)
    }

    fn compare(&mut self, code: u16, value: u32, yes: Label, no: Label) -> Option<Label> {
        let (yes, no) = (self.near(yes)?, self.near(no)?);
        let skipped = |label| u8::try_from(self.behind(label)?).ok();
        let op = Op { code, yes: skipped(yes)?, no: skipped(no)?, value };
        Some(self.push(op))
    }

    /// How many instructions there are between the next one to be pushed and that.
    fn behind(&self, label: Label) -> Option<usize> {
        self.ops.len().checked_sub(1)?.checked_sub(label)
    }

    /// The same where a comparison that is pushed next can jump to it.
    fn near(&mut self, label: Label) -> Option<Label> {
        let nearest = self.nearer.get(&label).copied().unwrap_or(label);
        if self.behind(nearest)? <= FAR {
            return Some(nearest);
        }
        let nearest = self.stand_in(label)?;
        self.nearer.insert(label, nearest);
        Some(nearest)
    }

    /// Puts what is done at `label` where the next instruction that is pushed falls through to.
    fn fall_to(&mut self, label: Label) -> Option<()> {
        if self.behind(label)? > 0 {
            self.stand_in(label)?;
        }
        Some(())
    }

    fn stand_in(&mut self, label: Label) -> Option<Label> {
        let op = *self.ops.get(label)?;
        let jump = Op::plain(JUMP, u32::try_from(self.behind(label)?).ok()?);
        Some(self.push(if op.code == RETURN { op } else { jump }))
    }

    fn push(&mut self, op: Op) -> Label {
        self.ops.push(op);
        self.ops.len().saturating_sub(1)
    }
}
