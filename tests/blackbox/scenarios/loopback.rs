//! vsock of a guest whose kernel connects it to itself: a container is not the host.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nakai_ctl::sandbox;
use nakai_ctl::vm::VmConfig;
use nakai_protocols::agent::KernelModule;

use crate::harness::context::SHELL_LIMIT;
use crate::harness::{Ctx, Outcome, Scenario, elf, own_vm, scenario};

/// All that the agent can listen on.
const PARAMETERS: &str = "agent.debug_console agent.debug_console_vport=1026 agent.log_vport=1025 \
                          agent.passfd_listener_port=1027";
/// The calls, the log, the debug console, streams.
const PORTS: [u32; 4] = [1024, 1025, 1026, 1027];
/// `VMADDR_CID_LOCAL`, and what QEMU's guests are.
const OWN_ADDRESSES: [u32; 2] = [1, 3];
/// A connection that is closed unanswered, as whoever writes and reads sees it: the end, SIGPIPE, ECONNRESET.
const CLOSED: [i32; 3] = [0, 128 + 13, 256 - 104];

const MODULE: &str = "vsock_loopback";

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_container_is_not_the_host_over_vsock)
            .kernel_parameter(PARAMETERS)
            .machine(with_vsock_to_itself),
    ]
}

/// The guest that `make image` builds has no such module.
fn with_vsock_to_itself(config: &mut VmConfig, files: &Path) -> Outcome {
    let initrd = files.join("initrd-with-loopback");
    own_vm::add_module(&config.initrd, MODULE, &initrd)?;
    config.initrd = initrd;
    Ok(())
}

/// A program that connects to a port, asks Health's Check there, and ends with what reading the first byte of the
/// answer returned: 1, 0 at the end, or the errno that was in the way, negated.
fn knocker(cid: u32, port: u32) -> Vec<u8> {
    const CODE: u32 = 82;
    const REQUEST: &[u8] = b"\0\0\0\x14\0\0\0\x01\x01\0\x0a\x0bgrpc.Health\x12\x05Check";
    let address = elf::TEXT + CODE;
    let load = |instruction: u8, value: u32| [&[instruction][..], &value.to_le_bytes()].concat();
    let (eax, edx, esi, edi) = (0xb8, 0xba, 0xbe, 0xbf);
    let system_call = || vec![0x0f, 0x05];
    let length = u32::try_from(REQUEST.len()).unwrap();
    let code = [
        // socket(AF_VSOCK, SOCK_STREAM, 0), kept in edi.
        [load(eax, 41), load(edi, 40), load(esi, 1), vec![0x31, 0xd2], system_call(), vec![0x89, 0xc7]]
            .concat(),
        // connect(); if that fails, on to the end.
        [load(eax, 42), load(esi, address), load(edx, 16), system_call(), vec![0x85, 0xc0, 0x75, 31]]
            .concat(),
        // write(), read().
        [load(eax, 1), load(esi, address + 16), load(edx, length), system_call()].concat(),
        [vec![0x31, 0xc0], load(esi, address), load(edx, 1), system_call()].concat(),
        // exit() with what that returned.
        [vec![0x89, 0xc7], load(eax, 60), system_call()].concat(),
    ]
    .concat();
    assert_eq!(code.len(), usize::try_from(CODE).unwrap());
    let socket_address = [&[40, 0, 0, 0][..], &port.to_le_bytes(), &cid.to_le_bytes(), &[0; 4]].concat();
    elf::program(&[code, socket_address, REQUEST.to_vec()].concat())
}

async fn a_container_is_not_the_host_over_vsock(ctx: Ctx) -> Outcome {
    let mut request = sandbox::request("loopback", "loopback", true);
    request.kernel_modules.push(KernelModule { name: MODULE.to_owned(), ..Default::default() });
    ctx.client().create_sandbox(&request).await?;
    let container = ctx.idle(|spec| spec).await?;
    for port in PORTS {
        for cid in OWN_ADDRESSES {
            let program = format!("/knock-{cid}-{port}");
            fs::write(container.file(&program), knocker(cid, port))?;
            fs::set_permissions(container.file(&program), Permissions::from_mode(0o755))?;
            let ended = container.exec([program]).await?;
            assert!(CLOSED.contains(&ended.status), "{cid}:{port}: {ended:?}");
        }
    }
    // The host is heard as before.
    ctx.another_client().await?.within(SHELL_LIMIT).check().await?;
    container.remove().await?;
    Ok(())
}
