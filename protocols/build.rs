//! Generates the message types and the async ttrpc stubs from `proto/`, with no external program.

use std::path::Path;
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const FILES: [&str; 7] = [
    "proto/agent.proto",
    "proto/confidential_data_hub.proto",
    "proto/csi.proto",
    "proto/google/protobuf/empty.proto",
    "proto/health.proto",
    "proto/oci.proto",
    "proto/types.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let out = std::env::var("OUT_DIR")?;
    Codegen::new()
        .out_dir(Path::new(&out))
        .include("proto")
        .inputs(FILES)
        .rust_protobuf()
        .customize(Customize { async_all: true, gen_mod: false, ..Default::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .run()?;
    declare_stub_modules(&Path::new(&out).join("mod.rs"))?;
    Ok(())
}

/// The message generator writes `mod.rs` without the modules of the ttrpc stubs: add them.
fn declare_stub_modules(mod_rs: &Path) -> std::io::Result<()> {
    let mut text = std::fs::read_to_string(mod_rs)?;
    for service_file in ["agent", "confidential_data_hub", "health"] {
        text.push_str(&format!("pub mod {service_file}_ttrpc;\n"));
    }
    std::fs::write(mod_rs, text)
}
