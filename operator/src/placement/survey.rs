//! Why a request for a number of GPUs can never be served by the cluster as it is.

use super::{CountNeed, Outcome, Wish};
use crate::conditions::reason;
use crate::inventory::{Admission, Inventory};
use principium_api::gpu::GpuMemory;
use std::collections::BTreeSet;

/// Why no node that is selected could ever serve the request; `None` where none has GPUs.
pub(super) fn impossible(inventory: &Inventory<'_>, wish: &Wish, need: &CountNeed) -> Option<Outcome> {
    let mut products: BTreeSet<&str> = BTreeSet::new();
    let mut largest = None;
    let mut most: Option<(usize, &str)> = None;
    for node in inventory.nodes.all() {
        if node.admits(&wish.node_selector, &wish.tolerations) == Err(Admission::NotSelected) {
            continue;
        }
        products.extend(node.gpus.iter().map(|gpu| gpu.product.as_ref()));
        let of_product = || node.gpus.iter().filter(|gpu| need.is_product(gpu));
        largest = largest.max(of_product().map(|gpu| gpu.units).max());
        let fitting = of_product().filter(|gpu| need.wanted(gpu) <= gpu.units).count();
        if most.is_none_or(|(found, _)| fitting > found) {
            most = Some((fitting, &*node.name));
        }
    }
    let memory = need.memory.as_ref().map(GpuMemory::to_string).unwrap_or_default();
    let (reason, message) = match (largest, most) {
        _ if products.is_empty() => return None,
        (None, _) => {
            let product = need.product.as_deref().unwrap_or_default();
            let products = products.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!("no GPU's product contains {product:?}; the cluster has {products}");
            (reason::NO_SUCH_PRODUCT, message)
        }
        (Some(largest), _) if need.memory.as_ref().is_some_and(|memory| memory.units() > largest) => {
            let message =
                format!("{memory} of one GPU were asked for; the largest that matches has {largest} GiB");
            (reason::TOO_MUCH_MEMORY, message)
        }
        (Some(_), most) => {
            let (most, node) = most.unwrap_or_default();
            let message = format!(
                "{} GPUs on one node were asked for; node {node} has the most that match: {most}",
                need.count
            );
            (reason::NOT_ENOUGH_GPUS, message)
        }
    };
    Some(Outcome::Impossible { reason, message })
}
