//! The kubelet's APIs, generated from `proto/`.

// Generated code follows its generator's rules, not ours.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

pub mod device_plugin {
    tonic::include_proto!("v1beta1");

    /// Version of the API.
    pub const VERSION: &str = "v1beta1";
    /// Health of a device that may be handed out.
    pub const HEALTHY: &str = "Healthy";
    /// Health of a device that may not.
    pub const UNHEALTHY: &str = "Unhealthy";
}

pub mod pod_resources {
    tonic::include_proto!("v1");
}
