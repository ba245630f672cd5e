//! A simulated NVIDIA driver, so that everything above the driver can be real in tests and demonstrations.
//!
//! The crate is two things at once. As a `cdylib` it is a `libnvidia-ml.so.1`: NVML's C API ([`nvml`]), answered from a
//! state file. As an `rlib` it holds that state ([`State`]), its file ([`load`], [`update`]) and the command line
//! ([`GpuCommand`]) that changes it while programs run. It knows nothing of Kubernetes or of who reads the GPUs.

pub mod amount;
pub mod command;
pub mod install;
pub mod nvml;
pub mod state;
pub mod store;
mod table;

pub use command::GpuCommand;
pub use state::{Gpu, State};
pub use store::{SimError, load, state_path, update};

/// Name under which programs load the driver.
pub const LIBRARY_NAME: &str = "libnvidia-ml.so.1";
