//! Where the cluster's parts keep what, and under which addresses they answer.

use std::path::{Path, PathBuf};

/// Name of the only node.
pub const NODE: &str = "principium";
/// Domain of the cluster's DNS.
pub const DOMAIN: &str = "cluster.local";
/// The bridge of the pods; made before everything else, so that the node has an address that depends on no other network.
pub const BRIDGE: &str = "principium0";
/// Address of the node, the API server and the DNS server: the bridge's.
pub const ADDRESS: &str = "10.244.0.1";
/// Addresses of pods.
pub const POD_CIDR: &str = "10.244.0.0/24";
/// Addresses of Services.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The first Service address: the API server's own.
pub const SERVICE_ADDRESS: &str = "10.96.0.1";
/// Port of the API server on [`ADDRESS`].
pub const API_PORT: u16 = 16443;
/// Port of etcd on loopback.
pub const ETCD_PORT: u16 = 12379;
/// Port of etcd's peers on loopback.
pub const ETCD_PEER_PORT: u16 = 12380;
/// Folder of the kubelet; the device plugin folder below it can't be moved.
pub const KUBELET: &str = "/var/lib/kubelet";
/// Folder of everything else: data, configuration, logs. Not in the cache of what was built: that may be copied to another
/// machine, and a cluster's memory of pods, mounts and networks is wrong there.
pub const ROOT: &str = "/var/lib/principium-cluster";
/// Folder of sockets and of what lives in memory; short, because a socket's path may have 107 bytes.
pub const RUN: &str = "/run/principium";

/// Files of the cluster, below [`ROOT`].
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { root: PathBuf::from(ROOT) }
    }
}

impl Paths {
    /// The folder of everything but sockets and the kubelet's own.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// Kubeconfig of a component.
    #[must_use]
    pub fn component_kubeconfig(&self, component: &str) -> PathBuf {
        self.root.join("config").join(format!("{component}.kubeconfig"))
    }

    /// A configuration file.
    #[must_use]
    pub fn config(&self, file: &str) -> PathBuf {
        self.root.join("config").join(file)
    }

    /// A file of the certificates' folder.
    #[must_use]
    pub fn pki(&self, file: &str) -> PathBuf {
        self.root.join("pki").join(file)
    }

    /// Log of a component.
    #[must_use]
    pub fn log(&self, component: &str) -> PathBuf {
        self.root.join("logs").join(format!("{component}.log"))
    }

    /// Which process a component is.
    #[must_use]
    pub fn process(&self, component: &str) -> PathBuf {
        Path::new(RUN).join(format!("{component}.process"))
    }

    /// Data of a component.
    #[must_use]
    pub fn data(&self, component: &str) -> PathBuf {
        self.root.join("data").join(component)
    }

    /// Socket of containerd.
    #[must_use]
    pub fn containerd_socket() -> PathBuf {
        Path::new(RUN).join("containerd.sock")
    }
}
