//! A request as a policy sees it.
//!
//! Policies for agents of this protocol are written against JSON that a serializer made of the messages' Rust
//! structures. So fields have the names of the `.proto` files (a keyword of Rust has `_` behind it: `type_`),
//! every field is there, a message that is not set is null, an enum is its number, bytes are a list of numbers.
//!
//! CopyFile is the exception: its data is left out, its type and the target of a link are text.

use nakai_protocols::agent::CopyFileRequest;
use nix::libc;
use protobuf::MessageDyn;
use protobuf::reflect::{ReflectFieldRef, ReflectValueRef, RuntimeFieldType, RuntimeType};
use serde_json::{Map, Value, json};

/// The `input` of the rules about this request.
pub(super) fn of(request: &dyn MessageDyn) -> Value {
    match request.downcast_ref::<CopyFileRequest>() {
        Some(request) => copy_file(request),
        None => message(request),
    }
}

fn message(message: &dyn MessageDyn) -> Value {
    let descriptor = message.descriptor_dyn();
    let fields = descriptor.fields().map(|field| {
        let value = match field.get_reflect(message) {
            ReflectFieldRef::Optional(optional) => match (optional.value(), field.runtime_field_type()) {
                (Some(value), _) => scalar(value),
                (None, _) if field.proto().proto3_optional() => Value::Null,
                (None, RuntimeFieldType::Singular(RuntimeType::Message(_))) => Value::Null,
                (None, _) => scalar(field.singular_default_value()),
            },
            ReflectFieldRef::Repeated(list) => list.into_iter().map(scalar).collect(),
            ReflectFieldRef::Map(map) => {
                let entries = map.into_iter().map(|(key, value)| (key.to_string(), scalar(value)));
                Value::Object(entries.collect())
            }
        };
        (rust_name(field.name()), value)
    });
    Value::Object(fields.collect::<Map<_, _>>())
}

fn scalar(value: ReflectValueRef<'_>) -> Value {
    match value {
        ReflectValueRef::U32(number) => number.into(),
        ReflectValueRef::U64(number) => number.into(),
        ReflectValueRef::I32(number) => number.into(),
        ReflectValueRef::I64(number) => number.into(),
        ReflectValueRef::F32(number) => number.into(),
        ReflectValueRef::F64(number) => number.into(),
        ReflectValueRef::Bool(value) => value.into(),
        ReflectValueRef::String(text) => text.into(),
        ReflectValueRef::Bytes(bytes) => bytes.into(),
        ReflectValueRef::Enum(_, number) => number.into(),
        ReflectValueRef::Message(inner) => message(&*inner),
    }
}

/// The field's name in the generated structure.
fn rust_name(name: &str) -> String {
    match name {
        "type" | "match" | "ref" | "move" | "use" | "mod" | "loop" | "where" | "impl" | "fn" | "self" => {
            format!("{name}_")
        }
        _ => name.to_owned(),
    }
}

fn copy_file(request: &CopyFileRequest) -> Value {
    let (file_type, target) = match request.file_mode & libc::S_IFMT {
        libc::S_IFREG => ("Regular", Value::Null),
        libc::S_IFDIR => ("Directory", Value::Null),
        libc::S_IFLNK => ("Symlink", String::from_utf8_lossy(&request.data).into_owned().into()),
        _ => ("Unknown", Value::Null),
    };
    json!({
        "path": request.path,
        "file_type": file_type,
        "symlink_target": target,
        "file_size": request.file_size,
        "file_mode": request.file_mode,
        "dir_mode": request.dir_mode,
        "uid": request.uid,
        "gid": request.gid,
        "offset": request.offset,
    })
}
