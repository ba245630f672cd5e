//! The bridge that is the node's address, and forwarding between pods.

use super::paths::{ADDRESS, BRIDGE};
use crate::command::{run, succeeds};
use anyhow::{Context, Result};
use std::process::Command;

/// Kernel switch without which a node forwards nothing between its pods.
pub const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Makes the bridge, unless it is there.
///
/// # Errors
/// When the kernel refuses.
pub fn ensure() -> Result<()> {
    std::fs::write(FORWARDING, "1").with_context(|| format!("writing {FORWARDING}"))?;
    if !succeeds(ip().args(["link", "show", "dev", BRIDGE])) {
        run(ip().args(["link", "add", BRIDGE, "type", "bridge"]))?;
    }
    run(ip().args(["address", "replace", &format!("{ADDRESS}/24"), "dev", BRIDGE]))?;
    run(ip().args(["link", "set", BRIDGE, "up"]))?;
    Ok(())
}

/// Removes the bridge.
///
/// # Errors
/// When it is there and can't be removed.
pub fn remove() -> Result<()> {
    if succeeds(ip().args(["link", "show", "dev", BRIDGE])) {
        run(ip().args(["link", "delete", BRIDGE]))?;
    }
    Ok(())
}

fn ip() -> Command {
    Command::new("ip")
}
