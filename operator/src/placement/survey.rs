//! Whether a request for a number of GPUs can ever be served, and why not.

use super::{CountNeed, Outcome};
use crate::conditions::reason;
use crate::inventory::NodeGpus;
use principium_api::gpu::GpuMemory;
use std::collections::BTreeSet;

/// What the cluster has, for saying that a request can never be served.
#[derive(Default)]
pub(super) struct Survey {
    /// Nodes that the selector leaves out.
    pub(super) unselected: usize,
    products: BTreeSet<String>,
    largest: u32,
    any_product: bool,
    most: (usize, String),
}

impl Survey {
    /// Notes a node, and returns how many of its GPUs would fit if they were free.
    pub(super) fn look(&mut self, node: &NodeGpus, need: &CountNeed) -> usize {
        let mut fitting = 0;
        for gpu in node.gpus.values() {
            self.products.insert(gpu.product.clone());
            if need.is_product(gpu) {
                self.any_product = true;
                self.largest = self.largest.max(gpu.units);
                if need.wanted(gpu) <= gpu.units {
                    fitting += 1;
                }
            }
        }
        if self.most.1.is_empty() || fitting > self.most.0 {
            self.most = (fitting, node.name.clone());
        }
        fitting
    }

    /// Why no node could ever serve the request; `None` while no node was looked at.
    pub(super) fn impossible(&self, need: &CountNeed) -> Option<Outcome> {
        if self.products.is_empty() {
            return None;
        }
        let (reason, message) = if !self.any_product {
            let product = need.product.as_deref().unwrap_or_default();
            let products = self.products.iter().cloned().collect::<Vec<_>>().join(", ");
            (
                reason::NO_SUCH_PRODUCT,
                format!("no GPU's product contains {product:?}; the cluster has {products}"),
            )
        } else if need.memory.as_ref().is_some_and(|memory| memory.units() > self.largest) {
            let memory = need.memory.as_ref().map(GpuMemory::to_string).unwrap_or_default();
            (
                reason::TOO_MUCH_MEMORY,
                format!(
                    "{memory} of one GPU were asked for; the largest that matches has {} GiB",
                    self.largest
                ),
            )
        } else {
            let (most, node) = &self.most;
            (
                reason::NOT_ENOUGH_GPUS,
                format!(
                    "{} GPUs on one node were asked for; node {node} has the most that match: {most}",
                    need.count
                ),
            )
        };
        Some(Outcome::Impossible { reason, message })
    }
}
