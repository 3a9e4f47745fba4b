//! Storages that need no device of their own: a directory, a bind of it, an overlay over it.

use nakai_ctl::sandbox;
use nakai_protocols::agent::Storage;

use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(a_directory_is_bound_and_laid_over).own_agent()]
}

/// `local` makes a directory, `bind` shows it elsewhere, and `overlayfs` takes what is written for itself.
async fn a_directory_is_bound_and_laid_over(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("layers", "layers", !ctx.is_host())).await?;
    let base = "/run/kata-containers/sandbox/storage";
    let place = |name: &str| format!("{base}/{name}");
    let storage = |driver: &str, source: String, fstype: &str, name: &str| Storage {
        driver: driver.into(),
        source,
        fstype: fstype.into(),
        mount_point: place(name),
        ..Default::default()
    };
    let local = Storage { options: vec!["mode=0750".into()], ..storage("local", String::new(), "", "local") };
    let bind = Storage { options: vec!["bind".into()], ..storage("bind", place("local"), "bind", "bound") };
    // The upper directory is another filesystem's: a root in memory can be one, a share can't.
    let upper = ["upper", "work"].map(|name| Storage { ..storage("local", String::new(), "", name) });
    let options = ["lowerdir", "upperdir", "workdir"].into_iter().zip(["local", "upper", "work"]);
    let options = options.map(|(option, name)| format!("{option}={}", place(name))).collect();
    let overlay = Storage { options, ..storage("overlayfs", "overlay".into(), "overlay", "merged") };

    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let container = container.edit(|spec| {
        let seen = [("/local", "local"), ("/bound", "bound"), ("/merged", "merged")];
        seen.into_iter().fold(spec, |spec, (to, name)| spec.mount(to, &place(name), "bind", &["bind", "rw"]))
    });
    let mut request = container.request();
    request.storages.extend([local, bind].into_iter().chain(upper).chain([overlay]));
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    assert_eq!(container.sh("stat -c %a /local").await?, "750");
    assert_eq!(container.sh("echo kept > /local/file; cat /bound/file").await?, "kept");
    let written = "echo upper > /merged/new; cat /merged/new; ls /local/new 2>/dev/null || echo apart";
    assert_eq!(container.sh(written).await?, "upper\napart");
    assert_eq!(container.sh("grep -c ' /merged overlay ' /proc/mounts").await?, "1");
    container.remove().await?;
    Ok(())
}
