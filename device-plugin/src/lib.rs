//! The device plugin of principium, one on every node with GPUs: measures them, offers them to the kubelet in units of
//! memory, withholds the hot and the failed ones, injects them into containers and writes the node's `GPUNode`.
//!
//! `nvml` reads, `health` decides, `offers` says what follows, `server` and `kubelet` tell the kubelet, `gpu_node` tells
//! the API server, and `monitor` carries values from one to the next. Pure: `agreement`, `device`, `health`, `injection`,
//! `offers`, `pace`, `preferred`, `smooth`, `status`, `views`.

pub mod agreement;
pub mod allocations;
pub mod args;
pub mod cdi;
pub mod check;
pub mod clock;
pub mod config;
pub mod device;
pub mod events;
pub mod gpu_node;
pub mod health;
pub mod http;
pub mod injection;
pub mod kubelet;
pub mod lease;
pub mod metrics;
pub mod monitor;
pub mod node_labels;
pub mod nvml;
pub mod offers;
pub mod pace;
pub mod podresources;
pub mod pods;
pub mod preferred;
pub mod processes;
pub mod proto;
pub mod registry;
pub mod runtime;
pub mod server;
pub mod smooth;
pub mod status;
pub mod views;
