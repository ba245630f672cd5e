//! The plugin's life with the kubelet: serve, register, and do both again when the kubelet was restarted.
//!
//! Each resource has a socket of its own. A kubelet that starts deletes every socket in its directory and knows no
//! plugin; then the old streams are closed first, and the resources are registered anew under fresh names, because the
//! kubelet refuses a socket that it still counts as connected.

use crate::metrics::Metrics;
use crate::proto::device_plugin::device_plugin_server::DevicePluginServer;
use crate::proto::device_plugin::registration_client::RegistrationClient;
use crate::proto::device_plugin::{RegisterRequest, VERSION};
use crate::server::{ResourceServer, Shared, Snapshot};
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fs, io};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};

/// The kubelet's own socket.
const KUBELET_SOCKET: &str = "kubelet.sock";
/// What the names of our sockets begin with.
const SOCKET_PREFIX: &str = "principium-";
/// How long to wait after something failed.
const RETRY: Duration = Duration::from_millis(500);
/// How often to look for a kubelet that is not there.
const POLL: Duration = Duration::from_millis(100);
/// How often to look even if no event came.
const LOOK: Duration = Duration::from_secs(5);
/// How long one registration may take; the kubelet dials back within it.
const REGISTRATION: Duration = Duration::from_secs(10);

/// Keeps every resource of the snapshot registered.
pub struct Registrar {
    directory: PathBuf,
    shared: Shared,
    metrics: Arc<Metrics>,
    registered: watch::Sender<bool>,
}

/// What went wrong with the kubelet.
#[derive(Debug, thiserror::Error)]
enum KubeletError {
    #[error("cannot serve {resource} on {socket}: {source}")]
    Serve { resource: String, socket: PathBuf, source: io::Error },
    #[error("cannot reach the kubelet at {socket}: {source}")]
    Reach { socket: PathBuf, source: tonic::transport::Error },
    #[error("the kubelet refused to register {resource}: {}", source.message())]
    Register { resource: String, source: Box<tonic::Status> },
}

/// A resource that is being served.
struct Served {
    socket: PathBuf,
    task: JoinHandle<()>,
}

/// Which kubelet it is: another one has another socket.
type KubeletId = (u64, i64, i64);

impl Registrar {
    /// A registrar in the kubelet's directory for device plugins. `registered` tells whether all is well.
    #[must_use]
    pub fn new(directory: PathBuf, shared: Shared, registered: watch::Sender<bool>) -> Self {
        Self { directory, metrics: Arc::clone(&shared.metrics), shared, registered }
    }

    /// Runs until `stop` is cancelled; then closes its streams and removes its sockets.
    pub async fn run(self, stop: CancellationToken) {
        self.remove_left_overs();
        while !stop.is_cancelled() {
            self.registered.send_replace(false);
            let generation = stop.child_token();
            let mut served = BTreeMap::new();
            let pause = tokio::select! {
                () = stop.cancelled() => Duration::ZERO,
                result = self.generation(&mut served, &generation) => match result {
                    Ok(()) => Duration::ZERO,
                    Err(error) => {
                        tracing::warn!(%error, "trying again");
                        RETRY
                    }
                },
            };
            // Old streams first: the kubelet must see them end before the resource comes again.
            generation.cancel();
            close(served).await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.registered.send_replace(false);
    }

    /// Serves and registers with one kubelet; ends when that kubelet is gone, or with an error.
    async fn generation(
        &self,
        served: &mut BTreeMap<String, Served>,
        stop: &CancellationToken,
    ) -> Result<(), KubeletError> {
        let kubelet = self.kubelet().await;
        let mut events = self.events();
        let mut snapshot = self.shared.snapshot.clone();
        loop {
            let resources: Vec<String> = snapshot.borrow_and_update().offers.keys().cloned().collect();
            let new: Vec<String> =
                resources.into_iter().filter(|resource| !served.contains_key(resource)).collect();
            for resource in new {
                let one = self.serve(&resource, stop.clone())?;
                let socket = one.socket.clone();
                served.insert(resource.clone(), one);
                self.register(&resource, &socket).await?;
            }
            self.registered.send_replace(true);
            loop {
                tokio::select! {
                    changed = snapshot.changed() => match changed {
                        Ok(()) if has_new_resource(&snapshot, served) => break,
                        Ok(()) => {}
                        // The monitor is gone: the plugin is ending.
                        Err(_) => std::future::pending().await,
                    },
                    () = something_happens(&mut events) => {}
                }
                if self.kubelet_id() != Some(kubelet) || served.values().any(|served| !served.socket.exists())
                {
                    tracing::info!("the kubelet was restarted; registering anew");
                    return Ok(());
                }
            }
        }
    }

    /// Waits for a kubelet.
    async fn kubelet(&self) -> KubeletId {
        let mut told = false;
        loop {
            if let Some(id) = self.kubelet_id() {
                return id;
            }
            if !told {
                tracing::info!(directory = %self.directory.display(), "waiting for the kubelet's socket");
                told = true;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn kubelet_id(&self) -> Option<KubeletId> {
        let metadata = fs::metadata(self.directory.join(KUBELET_SOCKET)).ok()?;
        Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
    }

    /// Events of the directory, where the kernel gives them; without them it is looked at every few seconds.
    fn events(&self) -> Option<inotify::EventStream<[u8; 1024]>> {
        let watch = || {
            let inotify = Inotify::init()?;
            inotify
                .watches()
                .add(&self.directory, WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_TO)?;
            inotify.into_event_stream([0; 1024])
        };
        watch()
            .inspect_err(|error: &io::Error| {
                tracing::warn!(directory = %self.directory.display(), %error, "cannot watch the kubelet's directory; looking every few seconds");
            })
            .ok()
    }

    fn serve(&self, resource: &str, stop: CancellationToken) -> Result<Served, KubeletError> {
        let socket = self.directory.join(fresh_name(resource));
        let listener = UnixListener::bind(&socket).map_err(|source| KubeletError::Serve {
            resource: resource.to_owned(),
            socket: socket.clone(),
            source,
        })?;
        let service = ResourceServer::new(resource, self.shared.clone(), stop.clone());
        let resource = resource.to_owned();
        let task = tokio::spawn(async move {
            let served = Server::builder()
                .add_service(DevicePluginServer::new(service))
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
                .await;
            if let Err(error) = served {
                tracing::warn!(resource, %error, "serving ended");
            }
        });
        Ok(Served { socket, task })
    }

    async fn register(&self, resource: &str, socket: &Path) -> Result<(), KubeletError> {
        let kubelet = self.directory.join(KUBELET_SOCKET);
        let reach = |source| KubeletError::Reach { socket: kubelet.clone(), source };
        let channel = Endpoint::from_shared(format!("unix://{}", kubelet.display()))
            .map_err(reach)?
            .timeout(REGISTRATION)
            .connect()
            .await
            .map_err(reach)?;
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: socket.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            resource_name: resource.to_owned(),
            options: Some(ResourceServer::options(resource)),
        };
        RegistrationClient::new(channel).register(request).await.map_err(|source| {
            KubeletError::Register { resource: resource.to_owned(), source: Box::new(source) }
        })?;
        self.metrics.registered(resource);
        tracing::info!(resource, "registered with the kubelet");
        Ok(())
    }

    /// Removes the sockets of a run that could not remove them itself.
    fn remove_left_overs(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(SOCKET_PREFIX) && name.ends_with(".sock") {
                remove(&entry.path());
            }
        }
    }
}

fn has_new_resource(snapshot: &watch::Receiver<Arc<Snapshot>>, served: &BTreeMap<String, Served>) -> bool {
    snapshot.borrow().offers.keys().any(|resource| !served.contains_key(resource))
}

/// Waits for an event of the directory, or for the time to look without one.
async fn something_happens(events: &mut Option<inotify::EventStream<[u8; 1024]>>) {
    let event = async {
        let event = match events {
            Some(events) => events.next().await,
            None => None,
        };
        if event.is_none() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = event => {}
        () = tokio::time::sleep(LOOK) => {}
    }
}

/// Waits until the servers have ended and removes their sockets.
async fn close(served: BTreeMap<String, Served>) {
    for Served { socket, mut task } in served.into_values() {
        // A kubelet that hangs must not keep the next generation from starting.
        if tokio::time::timeout(Duration::from_secs(2), &mut task).await.is_err() {
            task.abort();
        }
        remove(&socket);
    }
}

fn remove(socket: &Path) {
    if let Err(error) = fs::remove_file(socket)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(socket = %socket.display(), %error, "cannot remove a socket");
    }
}

/// A name that no earlier registration had.
fn fresh_name(resource: &str) -> String {
    let nanoseconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let short = resource.rsplit('/').next().unwrap_or(resource);
    format!("{SOCKET_PREFIX}{short}-{nanoseconds:x}.sock")
}
