//! Streams as connections of their own: bytes, ends, terminals, hosts that hang up.

use nakai_ctl::connect::Stream;
use nakai_ctl::sandbox;
use nakai_protocols::agent::ExecProcessRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::Code;

use super::continuity::killed_within_a_creation;
use crate::harness::context::WARM;
use crate::harness::expect::{noise, refused, same_bytes};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(every_byte_runs_over_its_connection),
        scenario!(a_terminal_runs_over_connections),
        scenario!(the_end_comes_after_all_output),
        scenario!(a_host_that_hangs_up_or_does_not_read_harms_nobody),
        scenario!(a_port_that_nobody_connects_from_is_refused),
        scenario!(streams_outlive_servers)
            .ends_its_agent()
            .kernel_parameter("agent.passfd_listener_port=1027"),
    ]
}

async fn read_all(mut stream: Box<dyn Stream>) -> Fallible<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await?;
    Ok(all)
}

/// Execs with streams on connections from `ports`: stdin, stdout, stderr.
async fn exec(
    container: &Container,
    ctx: &Ctx,
    args: [&str; 3],
    tty: bool,
    ports: [u32; 3],
) -> Fallible<String> {
    let mut process = container.process(args);
    process.Terminal = tty;
    let exec = ctx.fresh_exec_id();
    let request = ExecProcessRequest {
        container_id: container.id.clone(),
        exec_id: exec.clone(),
        process: Some(process).into(),
        stdin_port: ports[0],
        stdout_port: ports[1],
        stderr_port: ports[2],
        ..Default::default()
    };
    ctx.client().agent().exec_process(ctx.client().context(), &request).await?;
    Ok(exec)
}

async fn every_byte_runs_over_its_connection(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sh", "-c", "cat; echo done >&2; exit 3"]))?;
    let ((mut input, stdin_port), (output, stdout_port), (errors, stderr_port)) =
        (ctx.stream().await?, ctx.stream().await?, ctx.stream().await?);
    let mut request = container.request();
    (request.stdin_port, request.stdout_port, request.stderr_port) = (stdin_port, stdout_port, stderr_port);
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    // The vsock device forgets what its own sockets had no room for when the guest ends a connection.
    let bytes = noise(if ctx.is_host() { 1 << 20 } else { 100_000 }, 7);
    let written = async {
        input.write_all(&bytes).await?;
        input.shutdown().await?;
        Fallible::Ok(())
    };
    let (written, output, errors, status) =
        tokio::join!(written, read_all(output), read_all(errors), container.wait());
    written?;
    same_bytes(&output?, &bytes);
    assert_eq!((errors?, status?), (b"done\n".to_vec(), 3));
    Ok(())
}

async fn a_terminal_runs_over_connections(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let ((mut input, stdin_port), (output, stdout_port)) = (ctx.stream().await?, ctx.stream().await?);
    let script = ["sh", "-c", "stty -echo; test -t 1 && read line && echo got $line"];
    let exec = exec(&container, &ctx, script, true, [stdin_port, stdout_port, 0]).await?;
    input.write_all(b"hello\n").await?;
    let output = String::from_utf8(read_all(output).await?)?;
    assert!(output.ends_with("got hello\r\n"), "{output:?}");
    assert_eq!(ctx.client().wait_process(&container.id, &exec).await?, 0);
    Ok(())
}

/// A host goes by the exit status; it does not wait for its own end of the connection.
async fn the_end_comes_after_all_output(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    for _ in 0..10 {
        let (mut output, port) = ctx.stream().await?;
        let script = ["sh", "-c", "head -c 20000 /dev/zero"];
        let exec = exec(&container, &ctx, script, false, [0, port, 0]).await?;
        assert_eq!(ctx.client().wait_process(&container.id, &exec).await?, 0);
        // All of it fits into the sockets on the way.
        assert_eq!(output.read_exact(&mut vec![1; 20_000]).await?, 20_000);
    }
    Ok(())
}

async fn a_host_that_hangs_up_or_does_not_read_harms_nobody(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let ((input, stdin_port), (output, stdout_port)) = (ctx.stream().await?, ctx.stream().await?);
    let script = ["sh", "-c", "read line; echo lost; sleep 0.2; echo here; exit 4"];
    let exec_id = exec(&container, &ctx, script, false, [stdin_port, stdout_port, 0]).await?;
    // The end of the input lets it go on, and what it writes then finds nobody.
    drop((input, output));
    assert_eq!(ctx.client().wait_process(&container.id, &exec_id).await?, 4);

    let (_stuck, port) = ctx.stream().await?;
    exec(&container, &ctx, ["sh", "-c", "yes"], false, [0, port, 0]).await?;
    assert_eq!(container.sh("echo alive").await?, "alive");
    container.remove().await?;
    Ok(())
}

async fn a_port_that_nobody_connects_from_is_refused(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec)?;
    let mut request = container.request();
    request.stdout_port = 4_000_000_000;
    let refusal = ctx.client().create_container_with(&request).await;
    refused(refusal, Code::DEADLINE_EXCEEDED, &["stdout_port", "4000000000"]);
    // The id is free again.
    container.create().await?;
    Ok(())
}

/// Whatever has been read or not when a server dies.
async fn streams_outlive_servers(ctx: Ctx) -> Outcome {
    const NUMBERS: usize = 200_000;
    ctx.client().create_sandbox(&sandbox::request("ports", "pod", !ctx.is_host())).await?;
    let container = ctx.idle(|spec| spec).await?;
    assert_eq!(container.sh(WARM).await?, "warm");
    let inventory = ctx.inventory().await?;
    let ((mut input, stdin_port), (mut output, stdout_port)) = (ctx.stream().await?, ctx.stream().await?);
    let cat = exec(&container, &ctx, ["sh", "-c", "exec cat"], false, [stdin_port, stdout_port, 0]).await?;
    let (mut poured, port) = ctx.stream().await?;
    let script = format!("seq 1 {NUMBERS}; echo end; read line");
    let pour = exec(&container, &ctx, ["sh", "-c", &script], false, [0, port, 0]).await?;
    let (mut typed, typed_port) = ctx.stream().await?;
    let (mut shown, shown_port) = ctx.stream().await?;
    let lines: String = (0..NUMBERS).map(|number| format!("{number}\n")).collect();
    let len = lines.len();
    let script = format!("stty raw -echo; echo ready; head -c {len}; read line");
    let terminal = exec(&container, &ctx, ["sh", "-c", &script], true, [typed_port, shown_port, 0]).await?;
    shown.read_exact(&mut [0; 6]).await?;
    let typist = tokio::spawn(async move {
        typed.write_all(lines.as_bytes()).await?;
        std::io::Result::Ok((typed, lines))
    });
    let mut screen = Vec::new();
    // There is much more than fits into the pipe and the sockets.
    let mut text = vec![0; 1000];
    poured.read_exact(&mut text).await?;
    for round in 0..3 {
        let line = format!("line {round}\n");
        input.write_all(line.as_bytes()).await?;
        killed_within_a_creation(&ctx).await?;
        let mut back = vec![0; line.len()];
        output.read_exact(&mut back).await?;
        assert_eq!(String::from_utf8(back)?, line);
        let seen = text.len();
        text.resize(seen + 10_000, 0);
        poured.read_exact(text.get_mut(seen..).unwrap_or_default()).await?;
        let seen = screen.len();
        screen.resize(seen + 10_000, 0);
        shown.read_exact(screen.get_mut(seen..).unwrap_or_default()).await?;
    }
    let seen = screen.len();
    screen.resize(len, 0);
    shown.read_exact(screen.get_mut(seen..).unwrap_or_default()).await?;
    let (mut typed, lines) = typist.await??;
    same_bytes(&screen, lines.as_bytes());
    typed.write_all(b"\n").await?;
    assert_eq!(read_all(shown).await?, b"");
    assert_eq!(ctx.client().wait_process(&container.id, &terminal).await?, 0);
    while !text.ends_with(b"end\n") {
        assert_ne!(poured.read_buf(&mut text).await?, 0, "the end is lost");
    }
    let expected: String = (1..=NUMBERS).map(|number| format!("{number}\n")).collect();
    same_bytes(&text, format!("{expected}end\n").as_bytes());
    ctx.client().close_stdin(&container.id, &pour).await?;
    assert_eq!(ctx.client().wait_process(&container.id, &pour).await?, 1);
    input.shutdown().await?;
    assert_eq!(read_all(output).await?, b"", "cat ends with its input");
    assert_eq!(ctx.client().wait_process(&container.id, &cat).await?, 0);
    drop((input, poured, typed));
    ctx.returns_to(&inventory).await?;

    let (output, port) = ctx.stream().await?;
    exec(&container, &ctx, ["echo", "later", "on"], false, [0, port, 0]).await?;
    assert_eq!(read_all(output).await?, b"later on\n", "the next server listens, too");
    container.remove().await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}
