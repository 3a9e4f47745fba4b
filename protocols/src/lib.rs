//! The wire protocol between a host shim and the agent: messages, ttrpc stubs, and the OCI
//! specification as it travels on the wire.
//!
//! One module for each `.proto` file, named after it; `<file>_ttrpc` holds the client and the
//! server trait of the services that the file declares. All of it is generated at build time from
//! `proto/`, with no external program.

#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unused,
    rustdoc::all,
    reason = "generated code"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub mod spec;

pub use generated::{
    agent, agent_ttrpc, confidential_data_hub, confidential_data_hub_ttrpc, csi, empty, health, health_ttrpc,
    oci, types,
};
