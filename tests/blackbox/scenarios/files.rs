//! CopyFile: what the host sends when it shares no file system.

use nakai_ctl::CallError;
use nakai_protocols::agent::CopyFileRequest;
use ttrpc::Code;

use crate::harness::expect::{noise, refused, same_bytes};
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(a_volume_arrives_file_by_file), scenario!(copies_that_cannot_be_are_refused)]
}

/// Where a host that shares no file system puts files.
const BASE: &str = "/run/kata-containers/shared/containers";
/// Where Kata's Rust shim did so before its release 4.
const OLD_BASE: &str = "/run/kata-containers/sandbox/passthrough";
/// As a shim cuts files.
const CHUNK: usize = 1 << 20;

async fn copy(ctx: &Ctx, request: &CopyFileRequest) -> Result<(), CallError> {
    let answer = ctx.client().agent().copy_file(ctx.client().context(), request).await;
    answer.map(drop).map_err(|error| CallError::new("CopyFile", &request.path, error))
}

fn entry(path: String, file_mode: u32) -> CopyFileRequest {
    CopyFileRequest { path, file_mode, dir_mode: 0o750, uid: 1000, gid: 2000, ..Default::default() }
}

/// The requests for a file's chunks.
fn chunks(path: &str, mode: u32, data: &[u8]) -> Vec<CopyFileRequest> {
    let size = i64::try_from(data.len()).unwrap();
    let cut = data.chunks(CHUNK).enumerate().map(|(number, data)| CopyFileRequest {
        file_size: size,
        offset: i64::try_from(number * CHUNK).unwrap(),
        data: data.to_vec(),
        ..entry(path.to_owned(), 0o100_000 | mode)
    });
    cut.collect()
}

/// A Kubernetes volume as a shim sends it: a directory with a time in its name, links to it, files in chunks; then
/// its next version. A container that has it mounted sees all of it, and never half.
async fn a_volume_arrives_file_by_file(ctx: Ctx) -> Outcome {
    for base in [BASE, OLD_BASE] {
        volume_arrives(&ctx, base).await?;
    }
    clean_up(&ctx).await
}

async fn volume_arrives(ctx: &Ctx, base: &str) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let volume = format!("{base}/{}/volume", container.id);
    let data = noise(2 * CHUNK + 4711, 3);
    copy(ctx, &entry(format!("{volume}/..2024"), 0o41_770)).await?;
    let mut large = chunks(&format!("{volume}/..2024/large"), 0o640, &data);
    // Several senders, none in a row.
    large.swap(0, 2);
    for chunk in &large {
        copy(ctx, chunk).await?;
    }
    let link = |name: &str, target: &str| CopyFileRequest {
        data: target.as_bytes().to_vec(),
        ..entry(format!("{volume}/{name}"), 0o120_777)
    };
    copy(ctx, &link("..data", "..2024")).await?;
    copy(ctx, &link("large", "..data/large")).await?;

    let container = container.edit(|spec| spec.mount("/volume", &volume, "bind", &["rbind", "ro"]));
    container.create().await?;
    container.start().await?;
    let seen = container.exec(["cat", "/volume/large"]).await?;
    same_bytes(&seen.stdout, &data);
    let script = "cd /volume; stat -c '%a %u:%g' . ..2024 ..2024/large; readlink ..data; ls -A ..2024";
    let expected = "750 1000:2000\n1770 1000:2000\n640 1000:2000\n..2024\nlarge";
    assert_eq!(container.sh(script).await?, expected);

    // The next version takes the place of the first at once, also for a link with something else of its name.
    for chunk in chunks(&format!("{volume}/..2025/large"), 0o600, b"new") {
        copy(ctx, &chunk).await?;
    }
    copy(ctx, &link("..data", "..2025")).await?;
    copy(ctx, &link("..2024", "..2025")).await?;
    assert_eq!(
        container.sh("cat /volume/large; echo; ls -A /volume").await?,
        "new\n..2024\n..2025\n..data\nlarge"
    );
    container.remove().await?;
    Ok(())
}

async fn copies_that_cannot_be_are_refused(ctx: Ctx) -> Outcome {
    let id = ctx.container(|spec| spec)?.id;
    let file = |name: &str| CopyFileRequest {
        file_size: 3,
        data: b"abc".to_vec(),
        ..entry(format!("{BASE}/{id}/{name}"), 0o100_644)
    };
    let cases = [
        (CopyFileRequest { path: "/etc/passwd".into(), ..file("x") }, "/etc/passwd"),
        (file("../../../../../etc/passwd"), "etc/passwd"),
        (CopyFileRequest { file_size: -1, ..file("x") }, "file_size"),
        (CopyFileRequest { offset: -1, ..file("x") }, "offset"),
        (CopyFileRequest { offset: 1 << 40, ..file("x") }, "file_size"),
        (CopyFileRequest { file_mode: 0o20_666, ..file("x") }, "file_mode"),
        (CopyFileRequest { file_mode: 0o120_777, data: Vec::new(), ..file("x") }, "target"),
    ];
    for (request, word) in cases {
        refused(copy(&ctx, &request).await, Code::INVALID_ARGUMENT, &[word]);
    }
    let enormous = CopyFileRequest { file_size: i64::MAX, ..file("x") };
    refused(copy(&ctx, &enormous).await, Code::RESOURCE_EXHAUSTED, &["free"]);
    // A link of the host's, or of a container's, leads nowhere but beneath the share.
    let link = CopyFileRequest { file_mode: 0o120_777, data: b"/".to_vec(), ..file("out") };
    copy(&ctx, &link).await?;
    let planted = format!("planted-{id}");
    copy(&ctx, &file(&format!("out/{planted}"))).await?;
    let look = format!("ls $PROC/$SERVER/root/{planted} 2> /dev/null || echo none");
    assert_eq!(ctx.guest_sh(&look).await?.trim(), "none");
    // A file where a directory would have to be.
    copy(&ctx, &file("plain")).await?;
    refused(copy(&ctx, &file("plain/below")).await, Code::FAILED_PRECONDITION, &["plain"]);
    clean_up(&ctx).await
}

/// In a guest the first directory is the host's, and goes with the container.
async fn clean_up(ctx: &Ctx) -> Outcome {
    if ctx.is_host() {
        ctx.guest_sh("rm -r $RUN/kata-containers/shared").await?;
    }
    ctx.guest_sh("rm -rf $PROC/$SUPERVISOR/root/run/kata-containers/sandbox/passthrough").await?;
    Ok(())
}
