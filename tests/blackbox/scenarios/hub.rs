//! A confidential data hub beside the agent: this test plays it, on the socket where the agent looks for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nakai_protocols::agent::Storage;
use nakai_protocols::confidential_data_hub::{ImagePullRequest, ImagePullResponse};
use nakai_protocols::confidential_data_hub_ttrpc::{ImagePullService, create_image_pull_service};
use ttrpc::Code;
use ttrpc::r#async::{Server, TtrpcContext};

use super::disks::succeed;
use crate::harness::expect::refused;
use crate::harness::{Container, Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(an_image_is_pulled_by_the_hub).host_only()]
}

const IMAGE: &str = "registry.example/image:1";

/// Has one image, and unpacks half of another.
struct StandIn {
    /// The agent's root, as it is seen from here.
    guest: PathBuf,
    image: PathBuf,
}

#[async_trait::async_trait]
impl ImagePullService for StandIn {
    async fn pull_image(
        &self,
        _: &TtrpcContext,
        asked: ImagePullRequest,
    ) -> ttrpc::Result<ImagePullResponse> {
        let bundle = self.guest.join(asked.bundle_path.trim_start_matches('/'));
        let unpacked = succeed(Command::new("cp").arg("-a").arg(&self.image).arg(bundle.join("rootfs")));
        let problem = match unpacked {
            Ok(()) if asked.image_url == IMAGE => return Ok(ImagePullResponse::new()),
            Ok(()) => "a layer is missing".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(Code::NOT_FOUND, problem)))
    }
}

/// A container whose root is the image, as a shim of a confidential guest asks for it.
async fn create(ctx: &Ctx, container: &Container, image: &str) -> Result<(), nakai_ctl::CallError> {
    let root = format!("/run/kata-containers/{}/rootfs", container.id);
    let mut request = container.request();
    request.OCI.mut_or_insert_default().Root.mut_or_insert_default().Path.clone_from(&root);
    request.storages.push(Storage {
        driver: "image_guest_pull".into(),
        source: image.into(),
        fstype: "overlay".into(),
        mount_point: root,
        driver_options: vec!["image_guest_pull={\"metadata\":{}}".into()],
        ..Default::default()
    });
    ctx.client().create_container_with(&request).await
}

async fn an_image_is_pulled_by_the_hub(ctx: Ctx) -> Outcome {
    let guest = ctx.guest_sh("mkdir $RUN/confidential-containers; printf /proc/$SERVER/root").await?;
    let guest = Path::new(&guest);
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (directory, _) = ctx.directory(&container, "image")?;
    let image = directory.join("rootfs");
    ctx.copy_root(&image)?;
    std::fs::write(image.join("from-the-hub"), "pulled")?;

    let socket = guest.join("run/confidential-containers/cdh.sock");
    let hub = Arc::new(StandIn { guest: guest.to_owned(), image });
    let server = Server::new().bind(&format!("unix://{}", socket.display()))?;
    let mut server = server.register_service(create_image_pull_service(hub));
    server.start().await?;

    // What has come of one that fails goes.
    let failed = create(&ctx, &container, "registry.example/broken").await;
    refused(failed, Code::FAILED_PRECONDITION, &["registry.example/broken", "a layer is missing"]);
    let left = "ls -d $RUN/kata-containers/$PREFIX* 2> /dev/null; true";
    assert_eq!(ctx.guest_sh(left).await?, "");
    for _ in 0..2 {
        create(&ctx, &container, IMAGE).await?;
        container.start().await?;
        assert_eq!(container.sh("[ ! -e /new ] && cat /from-the-hub; echo new > /new").await?, "pulled");
        container.remove().await?;
        assert_eq!(ctx.guest_sh(left).await?, "");
    }
    server.shutdown().await?;
    ctx.guest_sh("rm -r $RUN/confidential-containers").await?;
    Ok(())
}
