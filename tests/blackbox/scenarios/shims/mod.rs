//! What unchanged clients send, call by call: the Go shim, the Rust one, and the tool that developers drive an agent
//! with. Each replay holds the answers to what that client goes on from.

mod agent_ctl;
mod go;
mod profile;
mod rust;
mod spec;

use nakai_ctl::{CallError, Client};
use nakai_protocols::agent::{
    ARPNeighbors, AddARPNeighborsRequest, Device, GetOOMEventRequest, OOMEvent, OnlineCPUMemRequest, Routes,
    UpdateContainerRequest, UpdateRoutesRequest,
};
use nakai_protocols::oci::LinuxResources;
use tokio::task::JoinHandle;

use crate::harness::{Fallible, Scenario, scenario};
use agent_ctl::a_developers_tool_makes_a_container;
use go::a_pod_by_the_go_shim;
use rust::a_pod_by_the_rust_shim;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_pod_by_the_go_shim).ends_its_agent(),
        scenario!(a_pod_by_the_rust_shim).own_agent(),
        scenario!(a_developers_tool_makes_a_container).ends_its_agent(),
    ]
}

/// How much both shims ask for in one read.
const READ: u32 = 32 << 10;

/// A stream of a process that a shim copies to its end.
type Copied = JoinHandle<Result<Vec<u8>, CallError>>;

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

/// Copies a stream as shims do, beside everything else.
fn copy(client: &Client, container: &str, exec: &str, stream: Stream) -> Copied {
    let (client, container, exec) = (client.clone(), container.to_owned(), exec.to_owned());
    tokio::spawn(async move {
        let mut all = Vec::new();
        loop {
            let data = match stream {
                Stream::Stdout => client.read_stdout(&container, &exec, READ).await?,
                Stream::Stderr => client.read_stderr(&container, &exec, READ).await?,
            };
            if data.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&data);
        }
    })
}

/// Waits for a process, beside everything else.
fn wait(client: &Client, container: &str, exec: &str) -> JoinHandle<Result<i32, CallError>> {
    let (client, container, exec) = (client.clone(), container.to_owned(), exec.to_owned());
    tokio::spawn(async move { client.wait_process(&container, &exec).await })
}

/// Waits for an OOM kill, beside everything else.
fn oom_event(client: &Client) -> JoinHandle<ttrpc::Result<OOMEvent>> {
    let client = client.clone();
    tokio::spawn(async move {
        client.agent().get_oom_event(ttrpc::context::Context::default(), &GetOOMEventRequest::new()).await
    })
}

async fn update(client: &Client, id: &str, resources: LinuxResources) -> Fallible<()> {
    let request = UpdateContainerRequest {
        container_id: id.to_owned(),
        resources: Some(resources).into(),
        ..Default::default()
    };
    client.agent().update_container(client.context(), &request).await?;
    Ok(())
}

/// What shims say of a network without cards, before there is a sandbox.
async fn network(client: &Client) -> Fallible<()> {
    let routes = UpdateRoutesRequest { routes: Some(Routes::new()).into(), ..Default::default() };
    client.agent().update_routes(client.context(), &routes).await?;
    let neighbors =
        AddARPNeighborsRequest { neighbors: Some(ARPNeighbors::new()).into(), ..Default::default() };
    client.agent().add_arp_neighbors(client.context(), &neighbors).await?;
    Ok(())
}

/// What shims say before a container starts, also when nothing has been plugged.
async fn online(client: &Client, cpus: u32, cpu_only: bool) -> Fallible<()> {
    let request = OnlineCPUMemRequest { nb_cpus: cpus, cpu_only, ..Default::default() };
    client.agent().online_cpu_mem(client.context(), &request).await?;
    Ok(())
}

/// None: a list that shims always send.
const NO_DEVICES: Vec<Device> = Vec::new();
