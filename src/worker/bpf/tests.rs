//! Condensed programs answer as the ones that they were made of.

use oci_spec::runtime::LinuxSeccomp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::filter::program;
use super::condense::laid_out;
use super::{IF_AT_LEAST, JUMP, LOAD, Op, RETURN, condense, run};

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

fn compiled(profile: Value) -> Vec<u64> {
    let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
    program(&profile).unwrap()
}

/// Calls by any number that may be told from its neighbours, of those architectures and others, with those arguments.
fn assert_same(long: &[u64], short: &[u64], args: &[[u32; 4]]) {
    let numbers = (0..600).flat_map(|n| [n, n | 1 << 30, n | 1 << 31, n | 3 << 30]);
    let numbers: Vec<u32> = numbers.chain([u32::MAX, u32::MAX - 1, (1 << 30) - 1]).collect();
    for arch in [X86_64, I386, X86_64 - 1, X86_64 + 1, I386 - 1, I386 + 1, 0, u32::MAX, 0x4000_0028] {
        for number in &numbers {
            for args in args {
                let mut data = [0; 16];
                (data[0], data[1]) = (*number, arch);
                data[4..8].copy_from_slice(args);
                assert_eq!(run(short, &data), run(long, &data), "{arch:#x} {number} {args:?}");
            }
        }
    }
}

/// All names that there are.
fn names() -> Vec<String> {
    let name = |number| libseccomp::ScmpSyscall::from(number).get_name().ok();
    (0..470).filter_map(name).collect()
}

fn rule() -> impl Strategy<Value = Value> {
    let action = prop::sample::select(vec![
        json!({"action": "SCMP_ACT_ALLOW"}),
        json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 38}),
        json!({"action": "SCMP_ACT_TRAP"}),
    ]);
    let op = prop::sample::select(vec![
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ]);
    let arg = (0_u32..2, prop::sample::select(vec![0_u64, 1, 8, 0x7e02_0000, 1 << 33]), op)
        .prop_map(|(index, value, op)| json!({"index": index, "value": value, "valueTwo": 0, "op": op}));
    let names = prop::sample::subsequence(names(), 1..120);
    (names, action, prop::collection::vec(arg, 0..2)).prop_map(|(names, mut rule, args)| {
        rule["names"] = json!(names);
        rule["args"] = json!(args);
        rule
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]
    #[test]
    fn a_condensed_program_answers_as_before(
        default in prop::sample::select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"]),
        archs in prop::sample::subsequence(vec!["SCMP_ARCH_X86", "SCMP_ARCH_X32"], 0..=2),
        rules in prop::collection::vec(rule(), 0..4),
        args in prop::collection::vec(prop::array::uniform4(prop::sample::select(vec![0, 1, 2, 8, 0x7e02_0000, u32::MAX])), 4),
    ) {
        let profile = json!({"defaultAction": default, "architectures": archs, "syscalls": rules});
        // Rules may contradict each other.
        let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
        if let Ok(long) = program(&profile) {
            let short = laid_out(&long).unwrap();
            assert_same(&long, &short, &args);
        }
    }
}

#[test]
fn many_names_become_few_instructions() {
    let names: Vec<String> = names().into_iter().filter(|name| !name.starts_with("io_")).collect();
    let long = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["io_setup"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
        ],
    }));
    let short = condense(&long).unwrap();
    assert!(short.len() < long.len() / 4, "{} of {}", short.len(), long.len());
    assert_same(&long, &short, &[[0; 4], [8, 0, 0, 0], [8, 1, 0, 0]]);
}

/// More instructions than a comparison may skip.
#[test]
fn what_is_far_away_is_reached() {
    let names = names();
    let rule = |(i, name)| {
        json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": i % 5 + 2,
            "args": [{"index": 0, "value": i, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 1, "op": "SCMP_CMP_GE"}]})
    };
    let mut rules: Vec<Value> = names.iter().step_by(5).enumerate().map(rule).collect();
    let plain: Vec<&String> = names
        .iter()
        .enumerate()
        .filter_map(|(i, name)| (![0, 2].contains(&(i % 5))).then_some(name))
        .collect();
    rules.push(json!({"names": plain, "action": "SCMP_ACT_ALLOW"}));
    let long = compiled(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
    let short = laid_out(&long).unwrap();
    assert!(short.len() > 400, "{}", short.len());
    assert_same(&long, &short, &[[0; 4], [1, 0, 1, 0], [2, 0, 0, 1], [0, 0, 2, 0]]);
}

#[test]
fn what_is_not_known_here_stays_as_it_is() {
    let program = |ops: &[(u16, u8, u8, u32)]| {
        let op = |(code, yes, no, value)| Op { code, yes, no, value }.word();
        let mut ops: Vec<u64> = ops.iter().copied().map(op).collect();
        // Room to become shorter.
        ops.extend([Op::plain(RETURN, 0).word(); 8]);
        ops
    };
    assert_eq!(
        condense(&program(&[(LOAD, 0, 0, 0), (IF_AT_LEAST, 1, 0, 9), (RETURN, 0, 0, 1)])).unwrap().len(),
        4
    );
    // Loads its length, stores it, jumps past the end, compares what it has not loaded, keeps bits of the number.
    for ops in [
        &[(0x80, 0, 0, 0)][..],
        &[(LOAD, 0, 0, 0), (0x02, 0, 0, 0)],
        &[(JUMP, 0, 0, 99)],
        &[(LOAD, 0, 0, 0), (IF_AT_LEAST, 99, 0, 9)],
        &[(LOAD, 0, 0, 0), (0x54, 0, 0, 3)],
        &[(LOAD, 0, 0, 0), (0x45, 0, 1, 3)],
    ] {
        assert_eq!(condense(&program(ops)), None, "{ops:?}");
    }
    assert_eq!(condense(&[]), None);
}
