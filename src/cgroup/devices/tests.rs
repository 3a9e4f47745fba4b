//! Programs are run by a small interpreter, against rules that are looked at one by one.

use super::instruction::*;
use super::program::{MAX_INSTRUCTIONS, ProgramError, compile};
use super::*;
use oci_spec::runtime::LinuxDeviceType as Type;
use proptest::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

const BLOCK: u32 = 1;
const CHAR: u32 = 2;
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

fn rule(
    allow: bool,
    kind: Option<Type>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_typ(kind).set_major(major).set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}

fn allow(kind: Type, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
    rule(true, Some(kind), Some(major), Some(minor), access)
}

fn deny(kind: Type, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
    rule(false, Some(kind), Some(major), Some(minor), access)
}

fn deny_all() -> LinuxDeviceCgroup {
    rule(false, Some(Type::A), None, None, "rwm")
}

/// Runs a program as the kernel would, and is as strict as its verifier with what is of use here.
fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let context = [(access << 16) | kind, major, minor];
    let mut registers: [Option<u64>; 4] = [None; 4];
    let mut at = 0;
    loop {
        let Instruction { opcode, registers: pair, offset, immediate } = program[at];
        let (destination, source) = (usize::from(pair & 15), usize::from(pair >> 4));
        assert!(destination != 1, "the context is overwritten");
        let operand = i64::from(immediate).cast_unsigned();
        let value = || registers[destination].expect("a register that was never set");
        at += 1;
        let taken = match opcode {
            EXIT => return registers[0].expect("no answer") == 1,
            LOAD_WORD => {
                assert!(source == 1 && offset % 4 == 0, "a load from elsewhere than the context");
                registers[destination] = Some(u64::from(context[usize::try_from(offset).unwrap() / 4]));
                continue;
            }
            MOVE => {
                registers[destination] = Some(operand);
                continue;
            }
            MOVE_REGISTER => {
                registers[destination] = registers[source];
                continue;
            }
            AND => {
                registers[destination] = Some(value() & operand);
                continue;
            }
            SHIFT_RIGHT => {
                registers[destination] = Some(value() >> operand);
                continue;
            }
            JUMP => true,
            JUMP_EQUAL => value() == operand,
            JUMP_SET => value() & operand != 0,
            JUMP_UNEQUAL => value() != operand,
            other => panic!("opcode {other:#x}"),
        };
        if taken {
            at += usize::try_from(offset).expect("a jump back");
        }
    }
}

/// What the rules say, access by access.
fn expected(rules: &[LinuxDeviceCgroup], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let number = |wanted: Option<i64>, number: u32| wanted.is_none_or(|n| n < 0 || n == i64::from(number));
    [(MKNOD, 'm'), (READ, 'r'), (WRITE, 'w')].into_iter().filter(|(bit, _)| access & bit != 0).all(
        |(_, letter)| {
            let mut allowed = false;
            for rule in rules {
                let kind = match rule.typ() {
                    None | Some(Type::A) => true,
                    Some(Type::B) => kind == BLOCK,
                    Some(Type::C | Type::U) => kind == CHAR,
                    Some(Type::P) => false,
                };
                let names = rule.access().as_deref().unwrap_or("").contains(letter);
                if kind && names && number(rule.major(), major) && number(rule.minor(), minor) {
                    allowed = rule.allow();
                }
            }
            allowed
        },
    )
}

/// The verifier refuses a program with an instruction that no path leads to, or a jump out of it.
fn assert_well_formed(program: &[Instruction]) {
    let mut reached = vec![false; program.len()];
    reached[0] = true;
    for (at, instruction) in program.iter().enumerate() {
        assert!(reached[at], "instruction {at} is not reached: {program:?}");
        let jumps = matches!(instruction.opcode, JUMP | JUMP_EQUAL | JUMP_SET | JUMP_UNEQUAL);
        if jumps {
            reached[at + 1 + usize::try_from(instruction.offset).unwrap()] = true;
        }
        if !matches!(instruction.opcode, JUMP | EXIT) {
            reached[at + 1] = true;
        }
    }
}

#[test]
fn accesses_are_decided_one_by_one() {
    use Type::{A, B, C};
    let any = |allow, kind, access| rule(allow, Some(kind), None, None, access);
    let cases: [(&str, Vec<LinuxDeviceCgroup>, u32, u32, bool); 17] = [
        ("no rules", vec![], CHAR, READ, false),
        ("nothing is asked for", vec![deny_all()], CHAR, 0, true),
        ("the device", vec![deny_all(), allow(C, 1, 3, "rwm")], CHAR, READ | WRITE, true),
        ("its number with the other kind", vec![allow(C, 1, 3, "rwm")], BLOCK, READ, false),
        ("another minor", vec![allow(C, 1, 5, "rwm")], CHAR, READ, false),
        ("another major", vec![allow(C, 2, 3, "rwm")], CHAR, READ, false),
        ("r of r", vec![allow(C, 1, 3, "r")], CHAR, READ, true),
        ("rw of r", vec![allow(C, 1, 3, "r")], CHAR, READ | WRITE, false),
        ("rw of r and w", vec![allow(C, 1, 3, "r"), any(true, C, "w")], CHAR, READ | WRITE, true),
        ("rw, w denied", vec![any(true, A, "rwm"), deny(C, 1, 3, "w")], CHAR, READ | WRITE, false),
        ("r, w denied", vec![any(true, A, "rwm"), deny(C, 1, 3, "w")], CHAR, READ, true),
        ("the last one decides", vec![allow(C, 1, 3, "rwm"), deny_all()], CHAR, READ, false),
        ("all but one", vec![any(true, B, "rwm"), deny(B, 1, 3, "rwm")], BLOCK, MKNOD, false),
        ("all but another", vec![any(true, B, "rwm"), deny(B, 1, 4, "rwm")], BLOCK, MKNOD, true),
        ("any minor", vec![rule(true, Some(C), Some(1), Some(-1), "rw")], CHAR, WRITE, true),
        ("any kind", vec![rule(true, None, Some(1), None, "m")], BLOCK, MKNOD, true),
        ("no device's number", vec![deny_all(), allow(C, 1 << 40, 3, "rwm")], CHAR, READ, false),
    ];
    for (name, rules, kind, access, answer) in cases {
        let program = compile(&rules).unwrap();
        assert_well_formed(&program);
        assert_eq!(run(&program, kind, access, 1, 3), answer, "{name}");
    }
}

#[test]
fn what_every_container_needs_is_allowed_and_the_rest_is_not() {
    let mut rules = vec![deny_all()];
    rules.extend(crate::spec::default_rules());
    rules.push(deny(Type::B, 254, 0, "rwm"));
    let program = compile(&rules).unwrap();
    let ask = |kind, access, major, minor| run(&program, kind, access, major, minor);
    assert!(ask(CHAR, READ | WRITE, 1, 3) && ask(CHAR, READ | WRITE, 136, 7) && ask(CHAR, READ, 5, 0));
    assert!(ask(CHAR, MKNOD, 4, 64) && !ask(CHAR, READ, 4, 64) && !ask(CHAR, MKNOD | READ, 4, 64));
    assert!(ask(BLOCK, MKNOD, 8, 0) && !ask(BLOCK, READ, 8, 0));
    assert!(!ask(BLOCK, MKNOD, 254, 0));
    assert!(!ask(CHAR | BLOCK, READ, 1, 3) && !ask(CHAR, 8 | READ, 1, 3), "what no kernel says today");
}

#[test]
fn an_access_that_is_none_is_refused_wherever_it_stands() {
    let rules = [allow(Type::C, 1, 3, "rx"), deny_all()];
    let error = compile(&rules).unwrap_err();
    assert_eq!(error, ProgramError::Access { rule: "c 1:3 rx".to_owned(), access: 'x' });
}

#[test]
fn a_program_has_a_bound() {
    let rules = |n: i64| -> Vec<_> { (0..n).map(|minor| allow(Type::C, 7, minor, "rw")).collect() };
    let longest = (1..1000).find(|n| compile(&rules(*n)).is_err()).unwrap() - 1;
    let program = compile(&rules(longest)).unwrap();
    assert!(
        longest > 600 && program.len() > MAX_INSTRUCTIONS - 8,
        "{longest} rules, {} instructions",
        program.len()
    );
    assert_well_formed(&program);
    let last = u32::try_from(longest).unwrap() - 1;
    assert!(run(&program, CHAR, READ, 7, 0) && run(&program, CHAR, READ, 7, last));
    assert!(!run(&program, CHAR, READ, 7, last + 1));
    assert_eq!(compile(&rules(100_000)).unwrap_err(), ProgramError::TooManyRules { rules: 100_000 });
    // What a later rule covers takes no room.
    let mut covered = rules(100_000);
    covered.push(deny_all());
    assert!(compile(&covered).unwrap().len() < 20);
}

#[test]
fn v1_needs_its_controller_and_v2_the_cgroup() {
    let at = |hierarchy| Cgroup::new(Arc::new(hierarchy), PathBuf::from("pod/one")).unwrap();
    let v1 = at(Hierarchy::V1 { controllers: Default::default() });
    assert!(matches!(v1.enforce_devices(&[deny_all()]), Err(CgroupError::NoController { .. })));
    let v2 = at(Hierarchy::V2 { mount_point: "/nowhere".into() });
    assert!(matches!(v2.enforce_devices(&[deny_all()]), Err(CgroupError::NotFound { .. })));
    let error = v2.enforce_devices(&[allow(Type::C, 1, 3, "x")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cgroup \"pod/one\": device rule \"c 1:3 x\": access 'x' is none of r, w and m"
    );
}

#[test]
fn the_verifiers_reason_is_its_last_line_before_the_statistics() {
    let log = b"0: (95) exit\nR0 !read_ok\nprocessed 1 insns (limit 1000000) max_states_per_insn 0\n\0\0\0";
    assert_eq!(attach::last_words(log).unwrap(), "the verifier: R0 !read_ok");
    assert_eq!(attach::last_words(b"\0\0"), None);
}

fn any_rule() -> impl Strategy<Value = LinuxDeviceCgroup> {
    let kinds = [None, Some(Type::A), Some(Type::B), Some(Type::C), Some(Type::U), Some(Type::P)];
    let number = || prop::option::of(prop_oneof![8 => 0i64..4, 2 => Just(-1), 1 => Just(1i64 << 32)]);
    let access = prop::sample::subsequence(vec!["r", "w", "m"], 0..=3).prop_map(|letters| letters.concat());
    (any::<bool>(), prop::sample::select(kinds.to_vec()), number(), number(), access)
        .prop_map(|(allow, kind, major, minor, access)| rule(allow, kind, major, minor, &access))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_program_says_what_its_rules_say(rules in prop::collection::vec(any_rule(), 0..12)) {
        let program = compile(&rules).unwrap();
        assert_well_formed(&program);
        for (kind, access) in [BLOCK, CHAR].into_iter().flat_map(|kind| (0..8).map(move |access| (kind, access))) {
            for (major, minor) in (0..4).flat_map(|major| (0..4).map(move |minor| (major, minor))) {
                let answer = run(&program, kind, access, major, minor);
                let said = expected(&rules, kind, access, major, minor);
                prop_assert_eq!(answer, said, "kind {} access {} of {}:{}", kind, access, major, minor);
            }
        }
    }
}
