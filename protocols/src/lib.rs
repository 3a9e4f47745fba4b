//! The wire protocol between a host shim and the agent.
//!
//! **Messages and stubs.** One module for each `.proto` file, named after it; `<file>_ttrpc` holds
//! the client and the server trait of the services that the file declares. All of it is generated
//! at build time from `proto/`, with no external program. Names, numbers and types are those that
//! shims were built with, and fixed by the tables in `tests/wire/`; the comments in `proto/` say what
//! each call and field is for, its unit, and what an empty value means.
//!
//! | module | services | |
//! | --- | --- | --- |
//! | [`agent`] | [`grpc.AgentService`](agent_ttrpc::AgentService) | sandbox, containers, processes, network, guest |
//! | [`health`] | [`grpc.Health`](health_ttrpc::Health) | is the agent there, and which one |
//! | [`confidential_data_hub`] | [four](confidential_data_hub_ttrpc) of `api` | secrets, encrypted volumes, images; the agent is the client |
//! | [`oci`], [`types`], [`csi`], [`empty`] | | messages that the others use |
//!
//! **The specification.** A container's OCI specification travels as [`oci::Spec`], and is converted
//! to and from the model that the runtime takes in [`spec`].
//!
//! A method that a server does not override answers `NOT_FOUND`. Fields that are not known are kept
//! and ignored, so that newer shims can be served.

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
