//! The generated crate against the tables of the wire in `wire/*.tsv`: what a shim was built with.
//!
//! The tables are compared with the descriptors that the generated code carries, not with the text
//! of the `.proto` files, and as whole sets: a missing row, an extra one, a moved number and a
//! changed type all fail. `google.protobuf.Empty` is the well-known type and stands outside.

use std::collections::BTreeSet;
use std::sync::Arc;

use nakai_protocols::{
    agent, agent_ttrpc, confidential_data_hub, confidential_data_hub_ttrpc, csi, health, health_ttrpc, oci,
    types,
};
use protobuf::descriptor::field_descriptor_proto::{Label, Type};
use protobuf::descriptor::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};

/// A table's row, its columns joined with tabs.
type Rows = BTreeSet<String>;

fn files() -> Vec<&'static FileDescriptorProto> {
    [
        agent::file_descriptor(),
        confidential_data_hub::file_descriptor(),
        csi::file_descriptor(),
        health::file_descriptor(),
        oci::file_descriptor(),
        types::file_descriptor(),
    ]
    .into_iter()
    .map(|file| file.proto())
    .collect()
}

/// The rows of a table, less its heading.
fn table(text: &str) -> Rows {
    let rows: Vec<String> = text.lines().skip(1).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let set: Rows = rows.iter().cloned().collect();
    assert_eq!(set.len(), rows.len(), "a row stands twice in the table");
    set
}

#[track_caller]
fn assert_same(what: &str, table: &Rows, ours: &Rows) {
    let missing: Vec<_> = table.difference(ours).collect();
    let extra: Vec<_> = ours.difference(table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{what}: the crate lacks {missing:#?}\nand has beyond the table {extra:#?}"
    );
}

/// Calls `visit` with each message of the file and its full name, nested ones included; the entry
/// types that stand for maps are not messages of the wire tables.
fn each_message<'a>(file: &'a FileDescriptorProto, visit: &mut dyn FnMut(&str, &'a DescriptorProto)) {
    fn walk<'a>(scope: &str, message: &'a DescriptorProto, visit: &mut dyn FnMut(&str, &'a DescriptorProto)) {
        if message.options.map_entry() {
            return;
        }
        let name = format!("{scope}.{}", message.name());
        visit(&name, message);
        for nested in &message.nested_type {
            walk(&name, nested, visit);
        }
    }
    for message in &file.message_type {
        walk(file.package(), message, visit);
    }
}

/// A type's name as the tables write it: `string`, `grpc.Spec`.
fn type_name(field: &FieldDescriptorProto) -> String {
    match field.type_() {
        Type::TYPE_MESSAGE | Type::TYPE_ENUM => field.type_name().trim_start_matches('.').to_owned(),
        scalar => format!("{scalar:?}").trim_start_matches("TYPE_").to_lowercase(),
    }
}

/// A field's label and type as the tables write them.
fn label_and_type(message: &DescriptorProto, field: &FieldDescriptorProto) -> (&'static str, String) {
    let local_name = field.type_name().rsplit('.').next().unwrap_or_default();
    let entry = message.nested_type.iter().find(|n| n.options.map_entry() && n.name() == local_name);
    if let Some(entry) = entry {
        let (key, value) = (type_name(&entry.field[0]), type_name(&entry.field[1]));
        return ("map", format!("map<{key},{value}>"));
    }
    let label = match field.label() {
        Label::LABEL_REPEATED => "repeated",
        Label::LABEL_OPTIONAL if field.proto3_optional() => "optional",
        Label::LABEL_OPTIONAL => "singular",
        Label::LABEL_REQUIRED => "required",
    };
    (label, type_name(field))
}

#[test]
fn messages_and_fields_are_those_of_the_table() {
    let mut ours = Rows::new();
    for file in files() {
        each_message(file, &mut |name, message| {
            let file = file.name();
            if message.field.is_empty() {
                ours.insert(format!("{file}\t{name}\t-\t-\t-\t-"));
            }
            for field in &message.field {
                let (label, kind) = label_and_type(message, field);
                let (field, number) = (field.name(), field.number());
                ours.insert(format!("{file}\t{name}\t{field}\t{number}\t{label}\t{kind}"));
            }
        });
    }
    assert_same("fields", &table(include_str!("wire/fields.tsv")), &ours);
}

/// The tables know no oneof; `optional` fields have a synthetic one each.
#[test]
fn no_message_has_a_oneof() {
    for file in files() {
        each_message(file, &mut |name, message| {
            let optional = message.field.iter().filter(|f| f.proto3_optional()).count();
            assert_eq!(message.oneof_decl.len(), optional, "oneofs in {name}");
        });
    }
}

#[test]
fn enums_and_values_are_those_of_the_table() {
    fn insert(rows: &mut Rows, file: &str, scope: &str, item: &EnumDescriptorProto) {
        for value in &item.value {
            let (name, value, number) = (item.name(), value.name(), value.number());
            rows.insert(format!("{file}\t{scope}.{name}\t{value}\t{number}"));
        }
    }
    let mut ours = Rows::new();
    for file in files() {
        for item in &file.enum_type {
            insert(&mut ours, file.name(), file.package(), item);
        }
        each_message(file, &mut |name, message| {
            for item in &message.enum_type {
                insert(&mut ours, file.name(), name, item);
            }
        });
    }
    assert_same("enums", &table(include_str!("wire/enums.tsv")), &ours);
}

#[test]
fn services_and_methods_are_those_of_the_table() {
    let mut ours = Rows::new();
    for file in files() {
        for service in &file.service {
            let full_name = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                assert!(
                    !method.client_streaming() && !method.server_streaming(),
                    "{} streams",
                    method.name()
                );
                let request = method.input_type().trim_start_matches('.');
                let response = method.output_type().trim_start_matches('.');
                let (file, name) = (file.name(), method.name());
                ours.insert(format!("{file}\t{full_name}\t{name}\t{request}\t{response}"));
            }
        }
    }
    assert_same("methods", &table(include_str!("wire/rpcs.tsv")), &ours);
}

/// proto3 throughout: presence of scalars, packed lists and UTF-8 checks depend on it.
#[test]
fn every_file_is_proto3() {
    for file in files() {
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
    }
}

/// A server that overrides nothing: only what it is registered under matters here.
struct Bare;
impl agent_ttrpc::AgentService for Bare {}
impl health_ttrpc::Health for Bare {}
impl confidential_data_hub_ttrpc::SealedSecretService for Bare {}
impl confidential_data_hub_ttrpc::SecureMountService for Bare {}
impl confidential_data_hub_ttrpc::GetResourceService for Bare {}
impl confidential_data_hub_ttrpc::ImagePullService for Bare {}

/// The paths under which a ttrpc server finds the generated stubs: service and method by name.
#[test]
fn stubs_are_registered_under_the_names_of_the_table() {
    let server = Arc::new(Bare);
    let services = [
        agent_ttrpc::create_agent_service(server.clone()),
        health_ttrpc::create_health(server.clone()),
        confidential_data_hub_ttrpc::create_sealed_secret_service(server.clone()),
        confidential_data_hub_ttrpc::create_secure_mount_service(server.clone()),
        confidential_data_hub_ttrpc::create_get_resource_service(server.clone()),
        confidential_data_hub_ttrpc::create_image_pull_service(server),
    ];
    let mut ours = Rows::new();
    for (name, service) in services.iter().flatten() {
        assert!(service.streams.is_empty(), "{name} has streams");
        ours.extend(service.methods.keys().map(|method| format!("{name}/{method}")));
    }
    let expected: Rows = table(include_str!("wire/rpcs.tsv"))
        .iter()
        .map(|row| {
            let columns: Vec<&str> = row.split('\t').collect();
            format!("{}/{}", columns[1], columns[2])
        })
        .collect();
    assert_same("paths", &expected, &ours);
    assert!(ours.contains("grpc.AgentService/CreateContainer") && ours.contains("grpc.Health/Check"));
}
