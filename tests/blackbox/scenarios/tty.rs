//! Terminals: a real one, of the right owner and size, for init and for what is exec'd.

use nakai_protocols::oci;
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_terminal_is_one),
        scenario!(keys_are_echoed_and_edited),
        scenario!(an_interrupt_key_is_a_signal),
        scenario!(a_resize_is_seen_by_the_program),
        scenario!(a_size_can_come_with_the_process),
        scenario!(an_exec_has_a_terminal_of_its_own),
        scenario!(the_terminal_belongs_to_its_user),
        scenario!(a_pipe_has_no_size),
    ]
}

/// Reads a terminal until `text` has come.
async fn read_until(ctx: &Ctx, container: &str, exec: &str, text: &str) -> Fallible<String> {
    let mut seen = Vec::new();
    loop {
        let data = ctx.client().read_stdout(container, exec, 1000).await?;
        let ended = data.is_empty();
        seen.extend_from_slice(&data);
        let now = String::from_utf8_lossy(&seen);
        if now.contains(text) {
            return Ok(now.into_owned());
        }
        assert!(!ended, "{text:?} is not in all of the output: {now:?}");
    }
}

/// Reads a terminal to its end.
async fn read_all(ctx: &Ctx, container: &str, exec: &str) -> Fallible<String> {
    let mut seen = Vec::new();
    loop {
        let data = ctx.client().read_stdout(container, exec, 1000).await?;
        if data.is_empty() {
            return Ok(String::from_utf8(seen)?);
        }
        seen.extend_from_slice(&data);
    }
}

async fn a_terminal_is_one(ctx: Ctx) -> Outcome {
    let script =
        "test -t 0 && test -t 1 && test -t 2 && tty && ls -l /dev/console | cut -c 1 && : > /dev/tty; exit 9";
    let container = ctx.started(|spec| spec.terminal(true).args(["sh", "-c", script])).await?;
    let seen = read_all(&ctx, &container.id, "").await?;
    assert!(seen.starts_with("/dev/pts/0\r\n") || seen.starts_with("/dev/console\r\n"), "{seen:?}");
    assert!(seen.ends_with("c\r\n"), "no /dev/console, or no controlling terminal: {seen:?}");
    assert_eq!(container.wait().await?, 9);
    Ok(())
}

async fn keys_are_echoed_and_edited(ctx: Ctx) -> Outcome {
    let container = ctx.started(|spec| spec.terminal(true).args(["cat"])).await?;
    // DEL takes the x back; ^D ends the input.
    ctx.client().write_stdin(&container.id, "", b"hellox\x7f\n".to_vec()).await?;
    let seen = read_until(&ctx, &container.id, "", "\nhello\r\n").await?;
    assert!(seen.starts_with("hellox"), "no echo: {seen:?}");
    ctx.client().write_stdin(&container.id, "", b"\x04".to_vec()).await?;
    assert_eq!(container.wait().await?, 0);
    assert_eq!(read_all(&ctx, &container.id, "").await?, "");
    Ok(())
}

async fn an_interrupt_key_is_a_signal(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let mut process = container.process(["sh", "-c", "echo ready; sleep 1000000"]);
    process.Terminal = true;
    ctx.client().exec_process(&container.id, "tty", process).await?;
    read_until(&ctx, &container.id, "tty", "ready").await?;
    ctx.client().write_stdin(&container.id, "tty", b"\x03".to_vec()).await?;
    // 128 + SIGINT.
    assert_eq!(ctx.client().wait_process(&container.id, "tty").await?, 130);
    Ok(())
}

const WATCH_SIZE: &str =
    "stty size; trap 'echo now $(stty size); exit 3' WINCH; echo ready; while :; do sleep 0.1; done";

async fn a_resize_is_seen_by_the_program(ctx: Ctx) -> Outcome {
    let container = ctx.created(|spec| spec.terminal(true).args(["sh", "-c", WATCH_SIZE])).await?;
    ctx.client().tty_win_resize(&container.id, "", 24, 80).await?;
    container.start().await?;
    let seen = read_until(&ctx, &container.id, "", "ready").await?;
    assert!(seen.starts_with("24 80\r\n"), "{seen:?}");
    ctx.client().tty_win_resize(&container.id, &container.id, 40, 100).await?;
    read_until(&ctx, &container.id, "", "now 40 100\r\n").await?;
    assert_eq!(container.wait().await?, 3);
    Ok(())
}

async fn a_size_can_come_with_the_process(ctx: Ctx) -> Outcome {
    let size = oci::Box { Height: 33, Width: 44, ..Default::default() };
    let container = ctx
        .started(|spec| {
            spec.terminal(true).args(["sh", "-c", "stty size; sleep 1000000"]).edit(|spec| {
                spec.Process.mut_or_insert_default().ConsoleSize = Some(size.clone()).into();
            })
        })
        .await?;
    assert_eq!(read_until(&ctx, &container.id, "", "\n").await?, "33 44\r\n");
    let mut process = container.process(["stty", "size"]);
    (process.Terminal, process.ConsoleSize) = (true, Some(size).into());
    ctx.client().exec_process(&container.id, "sized", process).await?;
    assert_eq!(read_all(&ctx, &container.id, "sized").await?, "33 44\r\n");
    Ok(())
}

async fn an_exec_has_a_terminal_of_its_own(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let mut process = container.process(["sh", "-c", &format!("tty; {WATCH_SIZE}")]);
    process.Terminal = true;
    for exec in ["first", "second"] {
        ctx.client().exec_process(&container.id, exec, process.clone()).await?;
    }
    let first = read_until(&ctx, &container.id, "first", "ready").await?;
    let second = read_until(&ctx, &container.id, "second", "ready").await?;
    let name = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    assert!(name(&first).starts_with("/dev/pts/"), "{first:?}");
    assert_ne!(name(&first), name(&second));
    ctx.client().tty_win_resize(&container.id, "second", 11, 22).await?;
    read_until(&ctx, &container.id, "second", "now 11 22\r\n").await?;
    assert_eq!(ctx.client().wait_process(&container.id, "second").await?, 3);
    ctx.client().signal_process(&container.id, "first", 9).await?;
    assert_eq!(ctx.client().wait_process(&container.id, "first").await?, 137);
    assert_eq!(read_all(&ctx, &container.id, "first").await?, "", "the end of a terminal is no error");
    Ok(())
}

async fn the_terminal_belongs_to_its_user(ctx: Ctx) -> Outcome {
    let script = "stat -L -c %u /proc/self/fd/0; echo again > /dev/tty";
    let user = |spec: nakai_ctl::SpecBuilder| spec.user(1000, 1000, []);
    let container = ctx.started(|spec| user(spec).terminal(true).args(["sh", "-c", script])).await?;
    assert_eq!(read_all(&ctx, &container.id, "").await?, "1000\r\nagain\r\n");
    assert_eq!(container.wait().await?, 0);
    let container = ctx.idle(user).await?;
    let mut process = container.process(["sh", "-c", script]);
    process.Terminal = true;
    ctx.client().exec_process(&container.id, "tty", process).await?;
    assert_eq!(read_all(&ctx, &container.id, "tty").await?, "1000\r\nagain\r\n");
    assert_eq!(ctx.client().wait_process(&container.id, "tty").await?, 0);
    Ok(())
}

async fn a_pipe_has_no_size(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let resize = ctx.client().tty_win_resize(&container.id, "", 24, 80).await;
    refused(resize, Code::UNAVAILABLE, &[&container.id]);
    Ok(())
}
