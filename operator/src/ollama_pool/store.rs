//! Where the models of a pool lie, and who may write there.

use crate::pod_parts::{RunAs, claim_volume, empty_dir, host_volume};
use k8s_openapi::api::core::v1::Volume;
use principium_api::OllamaPool;

/// The volume of the models in every pod of a pool.
pub const VOLUME: &str = "models";

/// A model store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store<'a> {
    /// Of each instance; goes with its pod.
    Ephemeral,
    /// A claim, shared by all instances.
    Claim(&'a str),
    /// A folder of each node, shared by the instances there.
    Folder(&'a str),
}

impl<'a> Store<'a> {
    pub fn of(resource: &'a OllamaPool) -> Self {
        let Some(store) = &resource.spec.store else { return Self::Ephemeral };
        if let Some(claim) = &store.persistent_volume_claim {
            Self::Claim(&claim.claim_name)
        } else if let Some(folder) = &store.host_path {
            Self::Folder(&folder.path)
        } else {
            Self::Ephemeral
        }
    }

    pub fn volume(self) -> Volume {
        match self {
            Self::Ephemeral => empty_dir(VOLUME),
            Self::Claim(claim) => claim_volume(VOLUME, claim),
            Self::Folder(path) => host_volume(VOLUME, path, "DirectoryOrCreate"),
        }
    }

    /// Who fills it. The kubelet makes a folder of the node for root, so only root can write there.
    pub fn writer(self) -> RunAs {
        match self {
            Self::Ephemeral | Self::Claim(_) => RunAs::NonRoot,
            Self::Folder(_) => RunAs::Root,
        }
    }

    /// Names the one place that is written, across pools; `None` where no one shares it.
    pub fn place(self, namespace: &str, node: &str) -> Option<String> {
        match self {
            Self::Ephemeral => None,
            Self::Claim(claim) => Some(format!("claim:{namespace}/{claim}")),
            Self::Folder(path) => Some(format!("folder:{node}:{}", path.trim_end_matches('/'))),
        }
    }
}
