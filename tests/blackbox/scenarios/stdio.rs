//! Standard streams: every byte is accounted for, whoever comes first and whatever ends first.

use std::collections::BTreeSet;
use std::time::Duration;

use nakai_ctl::Client;
use ttrpc::Code;

use crate::harness::expect::{noise, refused, same_bytes, succeeded};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(every_byte_of_the_input_comes_back),
        scenario!(every_byte_of_a_long_output_arrives),
        scenario!(every_byte_of_short_execs_arrives),
        scenario!(both_outputs_keep_their_order),
        scenario!(a_slow_reader_loses_nothing),
        scenario!(two_readers_share_a_stream),
        scenario!(a_read_waits_for_output),
        scenario!(output_can_be_read_after_the_exit),
        scenario!(an_exit_does_not_wait_for_a_background_child),
        scenario!(a_background_child_is_heard_while_it_writes),
        scenario!(the_end_of_the_input_is_passed_on),
        scenario!(writing_to_an_ended_process_is_refused),
        scenario!(a_read_can_be_given_up_without_loss),
        scenario!(both_names_of_init_work),
    ]
}

/// How long something takes at most that has nothing to wait for.
const AT_ONCE: Duration = Duration::from_secs(60);

/// Reads a stream to its end.
async fn read_all(client: &Client, container: &str, exec: &str, len: u32) -> Fallible<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let data = client.read_stdout(container, exec, len).await?;
        assert!(data.len() <= len as usize, "{} bytes came, {len} were asked for", data.len());
        if data.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&data);
    }
}

async fn start_exec(ctx: &Ctx, container: &Container, args: &[&str]) -> Fallible<String> {
    let exec = ctx.fresh_exec_id();
    ctx.client().exec_process(&container.id, &exec, container.process(args.iter().copied())).await?;
    Ok(exec)
}

async fn every_byte_of_the_input_comes_back(ctx: Ctx) -> Outcome {
    let data = noise(if ctx.is_host() { 16 << 20 } else { 4 << 20 }, 1);
    let container = ctx.started(|spec| spec.args(["cat"])).await?;
    let finished = container.finish(&data).await?;
    assert_eq!(finished.status, 0);
    same_bytes(&finished.stdout, &data);
    let container = ctx.idle(|spec| spec).await?;
    let exec = start_exec(&ctx, &container, &["cat"]).await?;
    let half = &data[..data.len() / 2];
    let finished = nakai_ctl::stdio::finish(ctx.client(), &container.id, &exec, half).await?;
    same_bytes(&finished.stdout, half);
    Ok(())
}

async fn every_byte_of_a_long_output_arrives(ctx: Ctx) -> Outcome {
    let finished = ctx.run(|spec| spec.args(["sh", "-c", "yes | head -c 10000000"])).await?;
    same_bytes(&finished.stdout, &b"y\n".repeat(5_000_000));
    Ok(())
}

/// They end at once after their last byte, and are read before, during or after that.
async fn every_byte_of_short_execs_arrives(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let count = if ctx.is_host() { 200 } else { 100 };
    for number in 0..count {
        let size = [1, 100, 4096, 40_000, 65_536, 100_000][number % 6];
        let exec = start_exec(&ctx, &container, &["head", "-c", &size.to_string(), "/dev/zero"]).await?;
        let read = read_all(ctx.client(), &container.id, &exec, 32 << 10);
        let wait = ctx.client().wait_process(&container.id, &exec);
        // What does not fit into a pipe keeps its process from ending.
        let (seen, status) = if number % 3 == 0 && size <= 65_536 {
            let status = wait.await?;
            (read.await?, status)
        } else if number % 3 == 1 {
            let (seen, status) = tokio::join!(read, wait);
            (seen?, status?)
        } else {
            (read.await?, wait.await?)
        };
        assert_eq!((status, seen.len()), (0, size), "exec {number}");
    }
    Ok(())
}

async fn both_outputs_keep_their_order(ctx: Ctx) -> Outcome {
    let script = "i=0; while [ $i -lt 3000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let finished = ctx.run(|spec| spec.args(["sh", "-c", script])).await?;
    let lines = |word: &str| (0..3000).map(|i| format!("{word} {i}\n")).collect::<String>();
    same_bytes(&finished.stdout, lines("out").as_bytes());
    same_bytes(&finished.stderr, lines("err").as_bytes());
    Ok(())
}

/// The program waits until somebody reads.
async fn a_slow_reader_loses_nothing(ctx: Ctx) -> Outcome {
    let script = "yes | head -c 300000; touch /written";
    let container = ctx.started(|spec| spec.args(["sh", "-c", script])).await?;
    // Enough for the pipe to be full.
    assert_eq!(ctx.client().read_stdout(&container.id, "", 1).await?, b"y");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!container.file("/written").exists(), "somebody has buffered it all");
    let rest = read_all(ctx.client(), &container.id, "", 1000).await?;
    assert_eq!(rest.len(), 299_999);
    assert_eq!(container.wait().await?, 0);
    Ok(())
}

async fn two_readers_share_a_stream(ctx: Ctx) -> Outcome {
    let script = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done";
    let container = ctx.started(|spec| spec.args(["sh", "-c", script])).await?;
    let reader = || read_all(ctx.client(), &container.id, "", 4096);
    let (one, other) = tokio::join!(reader(), reader());
    let (one, other) = (one?, other?);
    // Each byte goes to one of them, in pieces that end anywhere.
    let expected: String = (0..20000).map(|i| format!("{i}\n")).collect();
    let sorted = |mut bytes: Vec<u8>| {
        bytes.sort_unstable();
        bytes
    };
    assert!(sorted([one, other].concat()) == sorted(expected.into_bytes()), "other bytes");
    Ok(())
}

async fn a_read_waits_for_output(ctx: Ctx) -> Outcome {
    let container = ctx.started(|spec| spec.args(["cat"])).await?;
    let read = ctx.client().read_stdout(&container.id, "", 100);
    let write = ctx.client().write_stdin(&container.id, "", b"hello".to_vec());
    let (read, written) = tokio::join!(read, write);
    assert_eq!((read?, written?), (b"hello".to_vec(), 5));
    Ok(())
}

async fn output_can_be_read_after_the_exit(ctx: Ctx) -> Outcome {
    let container = ctx.started(|spec| spec.args(["sh", "-c", "echo out; echo err >&2"])).await?;
    assert_eq!(container.wait().await?, 0);
    assert_eq!(read_all(ctx.client(), &container.id, "", 100).await?, b"out\n");
    assert_eq!(ctx.client().read_stderr(&container.id, "", 100).await?, b"err\n");
    assert_eq!(ctx.client().read_stderr(&container.id, "", 100).await?, b"");
    Ok(())
}

async fn an_exit_does_not_wait_for_a_background_child(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let exec = start_exec(&ctx, &container, &["sh", "-c", "sleep 1000000 & echo done"]).await?;
    let client = ctx.client().within(AT_ONCE);
    assert_eq!(client.wait_process(&container.id, &exec).await?, 0);
    assert_eq!(read_all(&client, &container.id, &exec, 100).await?, b"done\n");
    // Init, and the child that lives on.
    container.sh_until("pidof sleep | wc -w", "2").await?;
    Ok(())
}

async fn a_background_child_is_heard_while_it_writes(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    // The child fills most of a pipe before its parent ends, and starts no program later: it never pauses for long.
    let write = "n=0; while [ $n -lt $1 ]; do echo $line; n=$((n+1)); done";
    let script = format!(
        "line=$(head -c 99 /dev/zero | tr '\\0' x); mkfifo /full; write() {{ {write}; }}; \
         {{ write 600; echo > /full; write 1400; }} & read filled < /full; exit 3"
    );
    let exec = start_exec(&ctx, &container, &["sh", "-c", &script]).await?;
    assert_eq!(ctx.client().wait_process(&container.id, &exec).await?, 3);
    assert_eq!(read_all(ctx.client(), &container.id, &exec, 32 << 10).await?.len(), 200_000);
    Ok(())
}

/// Both ways to say it: CloseStdin, and a write of nothing.
async fn the_end_of_the_input_is_passed_on(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    for empty_write in [false, true] {
        let exec = start_exec(&ctx, &container, &["cat"]).await?;
        let client = ctx.client();
        client.write_stdin(&container.id, &exec, b"last words".to_vec()).await?;
        if empty_write {
            client.write_stdin(&container.id, &exec, Vec::new()).await?;
        } else {
            client.close_stdin(&container.id, &exec).await?;
        }
        let again = client.write_stdin(&container.id, &exec, b"more".to_vec()).await;
        refused(again, Code::FAILED_PRECONDITION, &["stdin", &exec]);
        assert_eq!(read_all(client, &container.id, &exec, 100).await?, b"last words");
        assert_eq!(client.wait_process(&container.id, &exec).await?, 0);
    }
    Ok(())
}

async fn writing_to_an_ended_process_is_refused(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let exec = start_exec(&ctx, &container, &["true"]).await?;
    assert_eq!(read_all(ctx.client(), &container.id, &exec, 100).await?, b"");
    // The kernel closes the input of a process that ends after its outputs.
    let write = || ctx.client().write_stdin(&container.id, &exec, b"hello".to_vec());
    let refusal = loop {
        match write().await {
            Ok(5) => {}
            other => break other,
        }
    };
    refused(refusal, Code::FAILED_PRECONDITION, &["stdin", &exec]);
    assert_eq!(ctx.client().wait_process(&container.id, &exec).await?, 0);
    Ok(())
}

/// A caller with a time limit takes no bytes with it.
async fn a_read_can_be_given_up_without_loss(ctx: Ctx) -> Outcome {
    let container = ctx.started(|spec| spec.args(["cat"])).await?;
    let hasty = ctx.client().within(Duration::from_millis(50));
    for _ in 0..3 {
        let read = hasty.read_stdout(&container.id, "", 100).await;
        refused(read, Code::DEADLINE_EXCEEDED, &[]);
    }
    // The agent's clock for the last one began later than ours, but before this came, which takes longer.
    let sleeper = ctx.idle(|spec| spec).await?;
    sleeper.sh("sleep 1").await?;
    let mut seen = BTreeSet::new();
    for word in ["one", "two", "three"] {
        ctx.client().write_stdin(&container.id, "", word.into()).await?;
        seen.insert(ctx.client().read_stdout(&container.id, "", 100).await?);
    }
    assert_eq!(seen, BTreeSet::from(["one", "two", "three"].map(|word| word.as_bytes().to_vec())));
    Ok(())
}

async fn both_names_of_init_work(ctx: Ctx) -> Outcome {
    let container = ctx.started(|spec| spec.args(["cat"])).await?;
    let (client, id) = (ctx.client(), &container.id);
    for name in ["", id.as_str()] {
        client.write_stdin(id, name, b"hello".to_vec()).await?;
        assert_eq!(client.read_stdout(id, name, 100).await?, b"hello");
    }
    let waits = (client.wait_process(id, ""), client.wait_process(id, id));
    let (one, other, closed) = tokio::join!(waits.0, waits.1, client.close_stdin(id, id));
    closed?;
    assert_eq!((one?, other?), (0, 0), "two who wait at the same time");
    for name in ["", id.as_str()] {
        refused(client.wait_process(id, name).await, Code::NOT_FOUND, &[id]);
    }
    assert_eq!(succeeded(ctx.run(|spec| spec.args(["echo", "next"])).await?), "next");
    Ok(())
}
