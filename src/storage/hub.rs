//! The confidential data hub: a service of a confidential guest that pulls images, reached over ttrpc on a unix
//! socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nakai_protocols::confidential_data_hub::ImagePullRequest;
use nakai_protocols::confidential_data_hub_ttrpc::ImagePullServiceClient;
use ttrpc::context;

/// Where it listens.
const SOCKET: &str = "/run/confidential-containers/cdh.sock";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Nobody listens.
    #[error("no confidential data hub at {socket}: {source}")]
    Absent {
        /// Its socket.
        socket: PathBuf,
        /// Why it could not be connected to.
        source: Box<ttrpc::Error>,
    },
    /// It could not pull the image.
    #[error("the confidential data hub: {0}")]
    Pull(#[source] Box<ttrpc::Error>),
}

/// The way to the hub.
#[derive(Debug, Clone)]
pub struct Hub {
    socket: PathBuf,
    pull_timeout: Duration,
}

impl Hub {
    /// The guest's hub, which may take this long for an image.
    pub fn new(pull_timeout: Duration) -> Self {
        Self::at(Path::new(SOCKET), pull_timeout)
    }

    pub(super) fn at(socket: &Path, pull_timeout: Duration) -> Self {
        Self { socket: socket.to_owned(), pull_timeout }
    }

    /// Has an image pulled and unpacked as `rootfs` in the directory `bundle`.
    ///
    /// # Errors
    ///
    /// There is no hub, or it failed.
    pub async fn pull(&self, image: &str, bundle: &Path) -> Result<(), HubError> {
        let address = format!("unix://{}", self.socket.display());
        let client = ttrpc::r#async::Client::connect(&address)
            .await
            .map_err(|source| HubError::Absent { socket: self.socket.clone(), source: Box::new(source) })?;
        let request = ImagePullRequest {
            image_url: image.to_owned(),
            bundle_path: bundle.display().to_string(),
            ..Default::default()
        };
        let limit = i64::try_from(self.pull_timeout.as_nanos()).unwrap_or(i64::MAX);
        let service = ImagePullServiceClient::new(client);
        let pulled = service.pull_image(context::with_timeout(limit), &request).await;
        pulled.map(drop).map_err(|source| HubError::Pull(Box::new(source)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nakai_protocols::confidential_data_hub::ImagePullResponse;
    use nakai_protocols::confidential_data_hub_ttrpc::{ImagePullService, create_image_pull_service};
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    /// Unpacks one image only.
    struct StandIn;

    #[async_trait::async_trait]
    impl ImagePullService for StandIn {
        async fn pull_image(
            &self,
            _: &TtrpcContext,
            asked: ImagePullRequest,
        ) -> ttrpc::Result<ImagePullResponse> {
            if asked.image_url != "registry/image:1" {
                let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no such image".to_owned());
                return Err(ttrpc::Error::RpcStatus(status));
            }
            std::fs::create_dir(Path::new(&asked.bundle_path).join("rootfs")).unwrap();
            Ok(ImagePullResponse::new())
        }
    }

    #[tokio::test]
    async fn the_hub_pulls_and_says_why_it_can_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("cdh.sock");
        let hub = Hub::at(&socket, Duration::from_secs(60));
        let error = hub.pull("registry/image:1", dir.path()).await.unwrap_err().to_string();
        assert!(error.starts_with("no confidential data hub at /"), "{error}");
        let address = format!("unix://{}", socket.display());
        let server = Server::new().bind(&address).unwrap();
        let mut server = server.register_service(create_image_pull_service(Arc::new(StandIn)));
        server.start().await.unwrap();
        hub.pull("registry/image:1", dir.path()).await.unwrap();
        assert!(dir.path().join("rootfs").is_dir());
        let error = hub.pull("registry/other", dir.path()).await.unwrap_err().to_string();
        assert!(error.contains("no such image") && !error.contains('\n'), "{error}");
        server.shutdown().await.unwrap();
    }
}
