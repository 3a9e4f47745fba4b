//! The confidential data hub: a service of a confidential guest that pulls images and opens encrypted volumes, reached
//! over ttrpc on a unix socket.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream as Connection;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nakai_protocols::confidential_data_hub::{ImagePullRequest, SecureMountRequest};
use nakai_protocols::confidential_data_hub_ttrpc::{ImagePullServiceClient, SecureMountServiceClient};
use nix::errno::Errno;
use nix::sys::stat::{major, minor, stat};
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context;

use super::format;

/// Where it listens.
const SOCKET: &str = "/run/confidential-containers/cdh.sock";

/// Why there is no image, or no volume.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Nobody listens.
    #[error("no confidential data hub at {socket}: {source}")]
    Absent {
        /// Its socket.
        socket: PathBuf,
        /// Why it could not be connected to.
        source: io::Error,
    },
    /// It could not do it.
    #[error("the confidential data hub: {0}")]
    Refused(#[source] Box<ttrpc::Error>),
    /// The disk is not there any more.
    #[error("the number of {device}: {source}")]
    Device {
        /// Its node.
        device: PathBuf,
        /// Why.
        source: Errno,
    },
}

/// How long the hub may take.
#[derive(Debug, Clone, Copy)]
pub struct HubLimits {
    /// For an image.
    pub pull: Duration,
    /// For anything else.
    pub call: Duration,
}

/// The way to the hub.
#[derive(Debug, Clone)]
pub struct Hub {
    socket: PathBuf,
    limits: HubLimits,
    /// Whether encrypted volumes tell if their disk was changed behind their back.
    integrity: bool,
    /// Connections on which something is done or was given up, by the mount point that it is done for.
    connections: Arc<Mutex<HashMap<PathBuf, Connection>>>,
}

/// Work under way. The hub hears of it when that is given up, by whoever waits for it or by its time-out.
struct Work<'a> {
    hub: &'a Hub,
    mount_point: PathBuf,
}

impl Work<'_> {
    /// Unless the hub has said itself how it ended, it may still be at it.
    fn done<T>(self, answer: &ttrpc::Result<T>) {
        let is_given_up = match answer {
            Ok(_) => false,
            Err(ttrpc::Error::RpcStatus(status)) => status.code() == ttrpc::Code::DEADLINE_EXCEEDED,
            Err(_) => true,
        };
        if !is_given_up {
            self.hub.connections().remove(&self.mount_point);
        }
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.hub.connections().get(&self.mount_point) {
            // Shut down our sending side only: the hub closes the other one when it has stopped.
            let _ = connection.shutdown(Shutdown::Write);
        }
    }
}

impl Hub {
    /// The guest's hub.
    pub fn new(limits: HubLimits, integrity: bool) -> Self {
        Self::at(Path::new(SOCKET), limits, integrity)
    }

    pub(super) fn at(socket: &Path, limits: HubLimits, integrity: bool) -> Self {
        Self { socket: socket.to_owned(), limits, integrity, connections: Arc::default() }
    }

    /// Has an image pulled and unpacked as `rootfs` in the directory `bundle`.
    ///
    /// # Errors
    ///
    /// There is no hub, or it failed.
    pub async fn pull(&self, image: &str, bundle: &Path) -> Result<(), HubError> {
        let (client, work) = self.begin(bundle.join("rootfs")).await?;
        let service = ImagePullServiceClient::new(client);
        let request = ImagePullRequest {
            image_url: image.to_owned(),
            bundle_path: bundle.display().to_string(),
            ..Default::default()
        };
        let pulled = service.pull_image(within(self.limits.pull), &request).await;
        work.done(&pulled);
        pulled.map(drop).map_err(|source| HubError::Refused(Box::new(source)))
    }

    /// Has what is on the disk `device` replaced by an encrypted ext4, whose key nobody will ever know, and that mounted
    /// at `mount_point`.
    ///
    /// # Errors
    ///
    /// There is no hub, or it failed.
    pub async fn mount_encrypted(&self, device: &Path, mount_point: &Path) -> Result<(), HubError> {
        let number =
            stat(device).map_err(|source| HubError::Device { device: device.to_owned(), source })?.st_rdev;
        let options = [
            ("deviceId", format!("{}:{}", major(number), minor(number))),
            ("sourceType", "empty".to_owned()),
            ("targetType", "fileSystem".to_owned()),
            ("filesystemType", "ext4".to_owned()),
            ("mkfsOpts", format::OPTIONS.join(" ")),
            ("encryptionType", "luks2".to_owned()),
            ("dataIntegrity", self.integrity.to_string()),
        ];
        let request = SecureMountRequest {
            volume_type: "block-device".to_owned(),
            options: HashMap::from(options.map(|(key, value)| (key.to_owned(), value))),
            mount_point: mount_point.display().to_string(),
            ..Default::default()
        };
        let (client, work) = self.begin(mount_point.to_owned()).await?;
        let service = SecureMountServiceClient::new(client);
        let mounted = service.secure_mount(within(self.limits.call), &request).await;
        work.done(&mounted);
        mounted.map(drop).map_err(|source| HubError::Refused(Box::new(source)))
    }

    /// Waits until the hub has closed the connection of what was given up, if anything was: it does nothing more at
    /// `mount_point` then. To be called once.
    pub async fn ended(&self, mount_point: &Path) {
        let connection = self.connections().remove(mount_point);
        let Some(Ok(connection)) = connection.map(UnixStream::from_std) else { return };
        let mut answer = [0; 512];
        while connection.readable().await.is_ok() {
            match connection.try_read(&mut answer) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    async fn begin(&self, mount_point: PathBuf) -> Result<(Client, Work<'_>), HubError> {
        let absent = |source| HubError::Absent { socket: self.socket.clone(), source };
        let connection = UnixStream::connect(&self.socket).await.and_then(UnixStream::into_std);
        let connection = connection.map_err(absent)?;
        let kept = connection.try_clone().map_err(absent)?;
        let client = Client::new(Socket::from(UnixStream::from_std(connection).map_err(absent)?));
        self.connections().insert(mount_point.clone(), kept);
        Ok((client, Work { hub: self, mount_point }))
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<PathBuf, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn within(limit: Duration) -> context::Context {
    context::with_timeout(i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use nakai_protocols::confidential_data_hub::{ImagePullResponse, SecureMountResponse};
    use nakai_protocols::confidential_data_hub_ttrpc::{
        ImagePullService, SecureMountService, create_image_pull_service, create_secure_mount_service,
    };
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    /// Unpacks one image only, and mounts nothing.
    #[derive(Default)]
    struct StandIn(Mutex<Vec<SecureMountRequest>>);

    fn status(code: ttrpc::Code, words: &str) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, words.to_owned()))
    }

    #[async_trait::async_trait]
    impl ImagePullService for StandIn {
        async fn pull_image(
            &self,
            _: &TtrpcContext,
            asked: ImagePullRequest,
        ) -> ttrpc::Result<ImagePullResponse> {
            if asked.image_url != "registry/image:1" {
                return Err(status(ttrpc::Code::NOT_FOUND, "no such image"));
            }
            std::fs::create_dir(Path::new(&asked.bundle_path).join("rootfs")).unwrap();
            Ok(ImagePullResponse::new())
        }
    }

    #[async_trait::async_trait]
    impl SecureMountService for StandIn {
        async fn secure_mount(
            &self,
            _: &TtrpcContext,
            asked: SecureMountRequest,
        ) -> ttrpc::Result<SecureMountResponse> {
            let is_known = asked.mount_point == "/run/volume";
            self.0.lock().unwrap().push(asked);
            if is_known {
                Ok(SecureMountResponse::new())
            } else {
                Err(status(ttrpc::Code::INTERNAL, "no luks"))
            }
        }
    }

    #[tokio::test]
    async fn the_hub_does_what_it_is_asked_and_says_why_it_can_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("cdh.sock");
        let minute = Duration::from_secs(60);
        let hub = Hub::at(&socket, HubLimits { pull: minute, call: minute }, true);
        let error = hub.pull("registry/image:1", dir.path()).await.unwrap_err().to_string();
        assert!(error.starts_with("no confidential data hub at /"), "{error}");
        let null = Path::new("/dev/null");
        let error = hub.mount_encrypted(null, Path::new("/run/volume")).await.unwrap_err().to_string();
        assert!(error.starts_with("no confidential data hub at /"), "{error}");

        let stand_in = Arc::new(StandIn::default());
        let server = Server::new().bind(&format!("unix://{}", socket.display())).unwrap();
        let server = server.register_service(create_image_pull_service(stand_in.clone()));
        let mut server = server.register_service(create_secure_mount_service(stand_in.clone()));
        server.start().await.unwrap();
        hub.pull("registry/image:1", dir.path()).await.unwrap();
        assert!(dir.path().join("rootfs").is_dir());
        let error = hub.pull("registry/other", dir.path()).await.unwrap_err().to_string();
        assert!(error.contains("no such image") && !error.contains('\n'), "{error}");

        hub.mount_encrypted(null, Path::new("/run/volume")).await.unwrap();
        let error = hub.mount_encrypted(null, Path::new("/run/other")).await.unwrap_err().to_string();
        assert!(error.contains("no luks"), "{error}");
        let error = hub.mount_encrypted(Path::new("/dev/gone"), Path::new("/run/volume")).await.unwrap_err();
        assert!(error.to_string().contains("/dev/gone"), "{error}");
        let asked = stand_in.0.lock().unwrap().clone();
        assert_eq!(asked.len(), 2);
        let mut options: Vec<_> =
            asked[0].options.iter().map(|(key, value)| format!("{key}={value}")).collect();
        options.sort();
        let all = [
            "dataIntegrity=true",
            "deviceId=1:3",
            "encryptionType=luks2",
            "filesystemType=ext4",
            "mkfsOpts=-O ^has_journal -m 0 -i 163840 -I 128",
            "sourceType=empty",
            "targetType=fileSystem",
        ];
        assert_eq!((&*asked[0].volume_type, options), ("block-device", all.map(str::to_owned).to_vec()));
        server.shutdown().await.unwrap();
    }

    /// What it was about to do is done, and can be taken back, when the wait is over.
    #[tokio::test]
    async fn what_is_given_up_is_waited_for() {
        let minute = Duration::from_secs(60);
        // By its caller, and by its own time-out.
        for limit in [minute, Duration::from_millis(50)] {
            is_waited_for(limit, limit < minute).await;
        }
    }

    async fn is_waited_for(limit: Duration, ends: bool) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("cdh.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (asked, mut is_asked) = tokio::sync::mpsc::unbounded_channel();
        let last = dir.path().join("last");
        let act = last.clone();
        let hub = thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            while connection.read(&mut [0; 4096]).unwrap() > 0 {
                asked.send(()).unwrap();
            }
            std::fs::write(act, "").unwrap();
        });
        let agent = Hub::at(&socket, HubLimits { pull: limit, call: limit }, false);
        tokio::select! {
            pulled = agent.pull("registry/image:1", dir.path()) => assert!(ends && pulled.is_err()),
            _ = is_asked.recv(), if !ends => {}
        }
        agent.ended(&dir.path().join("rootfs")).await;
        assert!(last.exists());
        hub.join().unwrap();
        // Nothing has been given up.
        agent.ended(Path::new("/another")).await;
    }
}
