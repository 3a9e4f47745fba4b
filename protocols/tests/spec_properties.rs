//! Properties of the conversion between the wire's specification and the model.
//!
//! The wire's messages are generated from their descriptors, so that a field that is added to the
//! wire is in the tests at once: either it comes back, or a test fails. A field that takes names or
//! a range has its own values; in *wild* messages anything may stand there now and then.

use nakai_protocols::{oci, spec};
use oci_spec::runtime;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use protobuf::reflect::{FieldDescriptor, MessageDescriptor, ReflectValueBox, RuntimeFieldType, RuntimeType};
use protobuf::{MessageDyn, MessageFull};
use serde_json::{Value, json};

/// How often (of 40 values) a value that the specification doesn't allow is generated.
#[derive(Clone, Copy)]
struct Wild(u32);

const VALID: Wild = Wild(0);
const WILD: Wild = Wild(1);

// ---- messages of the wire, from their descriptors ----

#[derive(Debug)]
enum FieldValue {
    Singular(Option<ReflectValueBox>),
    Repeated(Vec<ReflectValueBox>),
    Map(Vec<(String, String)>),
}

fn message(descriptor: MessageDescriptor, wild: Wild) -> BoxedStrategy<Box<dyn MessageDyn>> {
    let fields: Vec<FieldDescriptor> = descriptor.fields().collect();
    let values: Vec<_> = fields.iter().map(|field| field_value(field, wild)).collect();
    values
        .prop_map(move |values| {
            let mut message = descriptor.new_instance();
            for (field, value) in fields.iter().zip(values) {
                set(&mut *message, field, value);
            }
            message
        })
        .boxed()
}

fn set(message: &mut dyn MessageDyn, field: &FieldDescriptor, value: FieldValue) {
    match value {
        FieldValue::Singular(None) => {}
        FieldValue::Singular(Some(value)) => field.set_singular_field(message, value),
        FieldValue::Repeated(values) => {
            let mut list = field.mut_repeated(message);
            values.into_iter().for_each(|value| list.push(value));
        }
        FieldValue::Map(entries) => {
            let mut map = field.mut_map(message);
            for (key, value) in entries {
                map.insert(ReflectValueBox::String(key), ReflectValueBox::String(value));
            }
        }
    }
}

fn field_value(field: &FieldDescriptor, wild: Wild) -> BoxedStrategy<FieldValue> {
    match field.runtime_field_type() {
        RuntimeFieldType::Singular(kind @ RuntimeType::Message(_)) => {
            proptest::option::weighted(0.8, value(field, &kind, wild)).prop_map(FieldValue::Singular).boxed()
        }
        RuntimeFieldType::Singular(kind) => {
            value(field, &kind, wild).prop_map(|value| FieldValue::Singular(Some(value))).boxed()
        }
        RuntimeFieldType::Repeated(kind) => {
            vec(value(field, &kind, wild), 0..3).prop_map(FieldValue::Repeated).boxed()
        }
        RuntimeFieldType::Map(RuntimeType::String, RuntimeType::String) => {
            vec((text(), text()), 0..3).prop_map(FieldValue::Map).boxed()
        }
        _ => panic!("{}: teach the test about maps of this kind", field.full_name()),
    }
}

fn value(field: &FieldDescriptor, kind: &RuntimeType, wild: Wild) -> BoxedStrategy<ReflectValueBox> {
    let (valid, any): (BoxedStrategy<ReflectValueBox>, BoxedStrategy<ReflectValueBox>) = match kind {
        RuntimeType::Message(descriptor) => {
            return message(descriptor.clone(), wild).prop_map(ReflectValueBox::Message).boxed();
        }
        RuntimeType::Bool => return any::<bool>().prop_map(ReflectValueBox::Bool).boxed(),
        RuntimeType::String => {
            let valid = names(field).map_or_else(|| text().boxed(), |names| select(names).boxed());
            (
                valid.prop_map(ReflectValueBox::String).boxed(),
                text().prop_map(ReflectValueBox::String).boxed(),
            )
        }
        RuntimeType::U32 => {
            let (valid, any) = numbers(field, u32::MAX.into());
            let as_value = |n: i128| ReflectValueBox::U32(n as u32);
            (valid.prop_map(as_value).boxed(), any.prop_map(as_value).boxed())
        }
        RuntimeType::U64 => {
            let (valid, any) = numbers(field, u64::MAX.into());
            let as_value = |n: i128| ReflectValueBox::U64(n as u64);
            (valid.prop_map(as_value).boxed(), any.prop_map(as_value).boxed())
        }
        RuntimeType::I64 => {
            let (valid, any) = numbers(field, i64::MAX.into());
            let as_value = |n: i128| ReflectValueBox::I64(n as i64);
            (valid.prop_map(as_value).boxed(), any.prop_map(as_value).boxed())
        }
        other => panic!("{}: teach the test about {other:?}", field.full_name()),
    };
    prop_oneof![40 - wild.0 => valid, wild.0 => any].boxed()
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![1 => Just(String::new()), 2 => "[a-z/=.:*-]{1,6}", 1 => any::<String>()]
}

/// Small numbers and the ends of the type, wrapped to it by the caller; and those that are valid
/// in the field.
fn numbers(field: &FieldDescriptor, max: i128) -> (BoxedStrategy<i128>, BoxedStrategy<i128>) {
    let any = prop_oneof![Just(0), Just(1), Just(-1), -9..9_i128, Just(max), Just(max - 1), any::<i128>()];
    let valid = match range(field) {
        Some((min, max)) => prop_oneof![Just(min), Just(max), min..=max].boxed(),
        None => any.clone().boxed(),
    };
    (valid, any.boxed())
}

/// The range of numbers that the specification or the kernel allows, if less than the type's.
fn range(field: &FieldDescriptor) -> Option<(i128, i128)> {
    match field.full_name().as_str() {
        "grpc.Process.OOMScoreAdj" => Some((i32::MIN.into(), i32::MAX.into())),
        "grpc.Hook.Timeout" => Some((0, i64::MAX.into())),
        "grpc.LinuxDevice.Major" => Some((0, 0xfff)),
        "grpc.LinuxDevice.Minor" => Some((0, 0xf_ffff)),
        "grpc.LinuxBlockIO.Weight"
        | "grpc.LinuxBlockIO.LeafWeight"
        | "grpc.LinuxWeightDevice.Weight"
        | "grpc.LinuxWeightDevice.LeafWeight"
        | "grpc.LinuxSyscall.errnoret" => Some((0, u16::MAX.into())),
        "grpc.LinuxSeccompArg.Index" => Some((0, 5)),
        _ => None,
    }
}

/// The names that a field takes, if it takes names.
fn names(field: &FieldDescriptor) -> Option<Vec<String>> {
    let (prefix, names): (_, &[&str]) = match field.full_name().as_str() {
        "grpc.POSIXRlimit.Type" => ("RLIMIT_", &["CPU", "NOFILE", "AS", "RTTIME"]),
        "grpc.LinuxNamespace.Type" => {
            ("", &["mount", "mnt", "pid", "network", "net", "ipc", "uts", "user", "cgroup", "time"])
        }
        "grpc.LinuxDevice.Type" => ("", &["b", "c", "u", "p"]),
        "grpc.LinuxDeviceCgroup.Type" => ("", &["", "a", "b", "c"]),
        "grpc.LinuxSeccomp.DefaultAction" | "grpc.LinuxSyscall.Action" => {
            ("SCMP_ACT_", &["ALLOW", "ERRNO", "KILL_PROCESS", "TRACE", "LOG"])
        }
        "grpc.LinuxSeccomp.Architectures" => ("SCMP_ARCH_", &["X86_64", "X86", "X32", "AARCH64"]),
        "grpc.LinuxSeccomp.Flags" => ("SECCOMP_FILTER_FLAG_", &["LOG", "TSYNC", "SPEC_ALLOW"]),
        "grpc.LinuxSeccompArg.Op" => ("SCMP_CMP_", &["EQ", "NE", "MASKED_EQ"]),
        name if name.starts_with("grpc.LinuxCapabilities.") => {
            ("CAP_", &["SYS_ADMIN", "CHOWN", "KILL", "NET_RAW"])
        }
        _ => return None,
    };
    Some(names.iter().map(|name| format!("{prefix}{name}")).collect())
}

fn wire_spec(wild: Wild) -> impl Strategy<Value = oci::Spec> {
    message(oci::Spec::descriptor(), wild)
        .prop_map(|message| *message.downcast_box::<oci::Spec>().expect("a message of its own descriptor"))
}

// ---- what is documented not to come back ----

/// The wire's specification as it comes back: see the tables in `nakai_protocols::spec`.
fn normalised(mut wire: oci::Spec) -> oci::Spec {
    wire.Solaris = None.into();
    wire.Windows = None.into();
    if wire.Version.is_empty() {
        wire.Version = runtime::VERSION.into();
    }
    if let Some(process) = wire.Process.as_mut() {
        process.User.mut_or_insert_default();
        if let Some(sets) = process.Capabilities.as_mut() {
            for set in [
                &mut sets.Bounding,
                &mut sets.Effective,
                &mut sets.Inheritable,
                &mut sets.Permitted,
                &mut sets.Ambient,
            ] {
                set.sort();
                set.dedup();
            }
        }
    }
    if let Some(linux) = wire.Linux.as_mut() {
        for namespace in &mut linux.Namespaces {
            match namespace.Type.as_str() {
                "mnt" => namespace.Type = "mount".into(),
                "net" => namespace.Type = "network".into(),
                _ => {}
            }
        }
        linux.Resources.as_mut().into_iter().for_each(normalise_resources);
    }
    wire
}

fn normalise_resources(resources: &mut oci::LinuxResources) {
    if let Some(pids) = resources.Pids.as_mut() {
        pids.Limit = if pids.Limit > 0 { pids.Limit } else { -1 };
    }
    for limit in &mut resources.HugepageLimits {
        limit.Limit = limit.Limit.min(i64::MAX as u64);
    }
    for rule in &mut resources.Devices {
        let all_types = ["", "a"].contains(&rule.Type.as_str());
        let any_minor = rule.Minor < 0 || rule.Minor == 0 && (all_types || rule.Major == 0);
        (rule.Major, rule.Minor) = match (rule.Major <= 0, any_minor) {
            (true, true) => (0, 0),
            (true, false) if rule.Minor == 0 => (-1, 0),
            (true, false) => (0, rule.Minor),
            (false, true) if all_types => (rule.Major, 0),
            (false, true) => (rule.Major, -1),
            (false, false) => (rule.Major, rule.Minor),
        };
    }
}

// ---- empty values of the model, which the wire can't tell from absent ones ----

/// A place in `config.json` and an empty value for it: with it the specification asks for the same.
fn empty_values() -> Vec<(&'static str, Value)> {
    let (no, none, text) = (json!(false), json!([]), json!(""));
    let mut values = vec![
        ("/root/readonly", no.clone()),
        ("/process/terminal", no.clone()),
        ("/process/noNewPrivileges", no.clone()),
        ("/linux/resources/memory/disableOOMKiller", no.clone()),
        ("/linux/resources/memory/checkBeforeUpdate", no),
        ("/annotations", json!({})),
        ("/linux/sysctl", json!({})),
        ("/linux/timeOffsets", json!({})),
        ("/linux/resources/unified", json!({})),
    ];
    for place in [
        "/mounts",
        "/process/args",
        "/process/env",
        "/process/rlimits",
        "/process/user/additionalGids",
        "/hooks/prestart",
        "/hooks/poststop",
        "/linux/uidMappings",
        "/linux/namespaces",
        "/linux/devices",
        "/linux/maskedPaths",
        "/linux/readonlyPaths",
        "/linux/resources/devices",
        "/linux/resources/hugepageLimits",
        "/linux/resources/network/priorities",
        "/linux/resources/blockIO/weightDevice",
        "/linux/seccomp/architectures",
        "/linux/seccomp/syscalls",
    ] {
        values.push((place, none.clone()));
    }
    for place in [
        "/hostname",
        "/process/apparmorProfile",
        "/process/selinuxLabel",
        "/process/user/username",
        "/linux/cgroupsPath",
        "/linux/mountLabel",
        "/linux/rootfsPropagation",
        "/linux/resources/cpu/cpus",
        "/linux/intelRdt/l3CacheSchema",
    ] {
        values.push((place, text.clone()));
    }
    for place in [
        "/linux/resources/memory/limit",
        "/linux/resources/memory/swap",
        "/linux/resources/cpu/shares",
        "/linux/resources/cpu/quota",
        "/linux/resources/cpu/burst",
        "/linux/resources/blockIO/weight",
        "/linux/resources/network/classID",
    ] {
        values.push((place, json!(0)));
    }
    values
}

/// Puts the empty values in where the object is there and says nothing of them.
fn with_empty_values(spec: &runtime::Spec, chosen: &[bool]) -> runtime::Spec {
    let mut value = serde_json::to_value(spec).expect("a specification is JSON");
    for ((place, empty), _) in empty_values().into_iter().zip(chosen).filter(|(_, chosen)| **chosen) {
        let (parent, key) = place.rsplit_once('/').expect("a place is a pointer");
        if let Some(Value::Object(object)) = value.pointer_mut(parent) {
            object.entry(key).or_insert(empty);
        }
    }
    serde_json::from_value(value).expect("the model knows its own JSON")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Any message gets an answer, and what is taken can be sent again.
    #[test]
    fn no_message_panics(wire in wire_spec(WILD)) {
        if let Ok(read) = spec::from_wire(&wire) {
            let sent = spec::to_wire(&read);
            prop_assert!(sent.is_ok(), "{sent:?}");
        }
    }

    /// An error is one line of a bounded length, whatever the message held.
    #[test]
    fn errors_are_short(wire in wire_spec(Wild(40))) {
        if let Err(error) = spec::from_wire(&wire) {
            let text = error.to_string();
            prop_assert!(text.len() < 1024 && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn wire_to_model_and_back(wire in wire_spec(VALID)) {
        let read = spec::from_wire(&wire).expect("a valid message");
        let sent = spec::to_wire(&read).expect("what came off the wire goes on it");
        prop_assert_eq!(sent, normalised(wire));
    }

    /// The worker reads the specification as JSON: that way too, nothing is lost or added.
    #[test]
    fn model_to_json_and_back(wire in wire_spec(VALID)) {
        let spec = spec::from_wire(&wire).expect("a valid message");
        let text = serde_json::to_string(&spec).expect("a specification is JSON");
        let again: runtime::Spec = serde_json::from_str(&text).expect("the model knows its own JSON");
        prop_assert_eq!(again, spec);
    }

    #[test]
    fn model_to_wire_and_back(
        wire in wire_spec(VALID),
        chosen in vec(any::<bool>(), empty_values().len()),
    ) {
        let plain = spec::from_wire(&wire).expect("a valid message");
        let spec = with_empty_values(&plain, &chosen);
        let sent = spec::to_wire(&spec).expect("empty values can be sent");
        prop_assert_eq!(spec::from_wire(&sent).expect("what was sent is valid"), plain);
    }
}
