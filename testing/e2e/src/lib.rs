//! What the end-to-end tests share: a namespace of their own on the real cluster, waiting with a reason, and a look at
//! containers from the node's side. Each test leaves the cluster as it found it, also when it fails.

pub mod container;
pub mod gpus;
pub mod operator;
pub mod plugin;
pub mod proxy;
pub mod registry;
pub mod release;
pub mod stand_in;
pub mod world;

pub use release::Release;
pub use world::{World, run};
