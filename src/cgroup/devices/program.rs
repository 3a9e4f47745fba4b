//! From device rules to a program of the kind BPF_PROG_TYPE_CGROUP_DEVICE. Pure.
//!
//! The kernel runs the program at each open(2) and mknod(2) of a device by a process of the cgroup, with the
//! requested accesses: one or more of mknod, read and write (`struct bpf_cgroup_dev_ctx` in linux/bpf.h). The
//! rules decide **for each access by itself**: the last rule that matches the device and names the access.
//! The request is allowed if each of its accesses is; what no rule decides is denied.
//!
//! So the program walks the rules backwards with the accesses that are still undecided in a register:
//! - a denial that names one of them: the answer is no;
//! - a permission takes those that it names away: if none is left the answer is yes.
//!
//! A request without any access (search permission of a device node, say) asks for nothing and is allowed.
//!
//! Character and block devices have a list of their own, so that the kind is looked at once. The verifier
//! follows every path through a program, unless it comes by a place with the same knowledge again: therefore
//! numbers are loaded for each rule anew instead of being kept in registers, which makes its work linear in
//! the number of rules. It also refuses instructions that can't be reached: nothing is put out after a rule that
//! leaves no question open.

use super::instruction::{
    AND, EXIT, Instruction, JUMP, JUMP_EQUAL, JUMP_SET, JUMP_UNEQUAL, LOAD_WORD, MOVE, MOVE_REGISTER,
    Register, SHIFT_RIGHT,
};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType as Type};

/// BPF_MAXINSNS, what every kernel takes. It is room for about 680 rules with a number.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

// linux/bpf.h: BPF_DEVCG_ACC_* and BPF_DEVCG_DEV_*.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

// Where the fields of the context are. The first has the kind in its lower half, the accesses in its upper.
const ACCESS_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;

/// The context, all through the program.
const CONTEXT: Register = Register::R1;
/// The accesses that are still undecided: never 0, and none beyond [`ALL`].
const UNDECIDED: Register = Register::R2;
/// What is being looked at.
const LOOKED_AT: Register = Register::R3;
/// The answer: 1 for yes, 0 for EPERM.
const ANSWER: Register = Register::R0;

/// Why there is no program for a list of rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// An access that is neither `r`, `w` nor `m`.
    #[error("device rule {rule:?}: access {access:?} is none of r, w and m")]
    Access {
        /// The rule, as cgroup v1 would have it written.
        rule: String,
        /// What is wrong with it.
        access: char,
    },
    /// More than a program has room for.
    #[error("{rules} device rules do not fit into a program of {MAX_INSTRUCTIONS} instructions")]
    TooManyRules {
        /// How many there are.
        rules: usize,
    },
}

/// The program for `rules`, of which the last that matches decides.
pub(super) fn compile(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Instruction>, ProgramError> {
    let parsed = rules.iter().map(Rule::parse).collect::<Result<Vec<_>, _>>()?;
    assemble(&parsed).ok_or(ProgramError::TooManyRules { rules: rules.len() })
}

/// `None` if the program would be too long.
fn assemble(rules: &[Rule]) -> Option<Vec<Instruction>> {
    let mut program = Assembler::default();
    program.load(UNDECIDED, ACCESS_TYPE);
    program.put(MOVE_REGISTER, LOOKED_AT, UNDECIDED, 0);
    program.change(AND, LOOKED_AT, 0xffff);
    program.change(SHIFT_RIGHT, UNDECIDED, 16);
    // An access that the kernel may come to know.
    program.jump(JUMP_SET, UNDECIDED, !ALL, Label::Deny);
    program.jump(JUMP_EQUAL, UNDECIDED, 0, Label::Allow);
    program.jump(JUMP_EQUAL, LOOKED_AT, BLOCK, Label::Blocks);
    program.jump(JUMP_UNEQUAL, LOOKED_AT, CHAR, Label::Deny);
    list(&mut program, rules.iter().rev().filter(|rule| rule.chars))?;
    program.bind(Label::Blocks)?;
    list(&mut program, rules.iter().rev().filter(|rule| rule.blocks))?;
    program.bind(Label::Deny)?;
    program.answer(0);
    program.bind(Label::Allow)?;
    program.answer(1);
    program.finish()
}

/// The rules for one kind of device, the last one first.
fn list<'a>(program: &mut Assembler, rules: impl Iterator<Item = &'a Rule>) -> Option<()> {
    // What is undecided as far as can be told without a request.
    let mut open = ALL;
    for rule in rules {
        let named = rule.access & open;
        if named == 0 {
            continue;
        }
        for (field, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(number) = number {
                program.load(LOOKED_AT, field);
                program.jump(JUMP_UNEQUAL, LOOKED_AT, number, Label::Next);
            }
        }
        match (rule.allow, named == open) {
            (true, true) => program.jump(JUMP, ANSWER, 0, Label::Allow),
            (false, true) => program.jump(JUMP, ANSWER, 0, Label::Deny),
            (true, false) => {
                program.change(AND, UNDECIDED, !named);
                program.jump(JUMP_EQUAL, UNDECIDED, 0, Label::Allow);
            }
            (false, false) => program.jump(JUMP_SET, UNDECIDED, named, Label::Deny),
        }
        program.bind(Label::Next)?;
        if rule.major.is_none() && rule.minor.is_none() {
            open &= !named;
        }
        if open == 0 {
            return Some(());
        }
    }
    program.jump(JUMP, ANSWER, 0, Label::Deny);
    Some(())
}

/// A rule in the kernel's terms.
struct Rule {
    allow: bool,
    access: i32,
    chars: bool,
    blocks: bool,
    /// `None`: any.
    major: Option<i32>,
    minor: Option<i32>,
}

impl Rule {
    fn parse(rule: &LinuxDeviceCgroup) -> Result<Self, ProgramError> {
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or_default().chars() {
            access |= match letter {
                'm' => MKNOD,
                'r' => READ,
                'w' => WRITE,
                access => return Err(ProgramError::Access { rule: rule.to_string(), access }),
            };
        }
        let kind = rule.typ().unwrap_or(Type::A);
        // A negative number is any. One beyond the kernel's (12 bits for major, 20 for minor) is no device's.
        let number = |number: Option<i64>| number.filter(|n| *n >= 0).map(i32::try_from).transpose();
        let (major, minor) = (number(rule.major()), number(rule.minor()));
        let none = major.is_err() || minor.is_err();
        Ok(Self {
            allow: rule.allow(),
            access,
            chars: !none && matches!(kind, Type::A | Type::C | Type::U),
            blocks: !none && matches!(kind, Type::A | Type::B),
            major: major.unwrap_or_default(),
            minor: minor.unwrap_or_default(),
        })
    }
}

/// A place that is jumped to from above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    /// The next rule.
    Next,
    /// The list for block devices.
    Blocks,
    Deny,
    Allow,
}

/// Instructions so far, and the jumps among them that don't know yet where they lead.
#[derive(Default)]
struct Assembler {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn put(&mut self, opcode: u8, destination: Register, source: Register, immediate: i32) {
        self.instructions.push(Instruction::new(opcode, destination, source, immediate));
    }

    fn change(&mut self, opcode: u8, register: Register, immediate: i32) {
        self.put(opcode, register, Register::R0, immediate);
    }

    fn load(&mut self, register: Register, field: i16) {
        self.instructions.push(Instruction::new(LOAD_WORD, register, CONTEXT, 0).with_offset(field));
    }

    fn jump(&mut self, opcode: u8, register: Register, immediate: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.change(opcode, register, immediate);
    }

    fn answer(&mut self, answer: i32) {
        self.change(MOVE, ANSWER, answer);
        self.change(EXIT, ANSWER, 0);
    }

    /// Lets every jump to `label` so far lead to what comes next. `None` if that is too far.
    fn bind(&mut self, label: Label) -> Option<()> {
        let here = self.instructions.len();
        if here > MAX_INSTRUCTIONS {
            return None;
        }
        for (at, _) in self.jumps.extract_if(.., |(_, to)| *to == label) {
            let offset = here.checked_sub(at)?.checked_sub(1)?;
            self.instructions.get_mut(at)?.offset = i16::try_from(offset).ok()?;
        }
        Some(())
    }

    fn finish(self) -> Option<Vec<Instruction>> {
        (self.jumps.is_empty() && self.instructions.len() <= MAX_INSTRUCTIONS).then_some(self.instructions)
    }
}
