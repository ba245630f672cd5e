//! Which devices are in use: what the kubelet lists, and what it was given so lately that it may not list it yet.

use crate::device::{DeviceId, Now};
use principium_api::gpu_node::Allocation;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long an allocation counts that the kubelet doesn't list.
const PENDING: Duration = Duration::from_secs(60);

/// Allocations that the kubelet has asked for and does not list yet. Shared by the servers and the monitor.
#[derive(Debug, Default)]
pub struct Recent {
    made: Mutex<BTreeMap<DeviceId, Duration>>,
    changed: Notify,
}

impl Recent {
    /// Records an allocation and wakes who waits for one.
    pub fn record(&self, devices: impl IntoIterator<Item = DeviceId>, now: Now) {
        self.lock().extend(devices.into_iter().map(|device| (device, now.elapsed)));
        self.changed.notify_one();
    }

    /// Waits for the next allocation.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Forgets what the kubelet lists by now, and what it did not list in time; gives the rest.
    pub fn settle(&self, holdings: Option<&Holdings>, now: Now) -> BTreeSet<DeviceId> {
        let mut made = self.lock();
        made.retain(|device, at| {
            let listed = holdings.is_some_and(|holdings| holdings.holder(*device).is_some());
            !listed && now.elapsed.saturating_sub(*at) < PENDING
        });
        made.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Duration>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who holds what, as the kubelet lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    holders: BTreeMap<DeviceId, Holder>,
}

/// A container that holds a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
}

impl FromIterator<(DeviceId, Holder)> for Holdings {
    fn from_iter<T: IntoIterator<Item = (DeviceId, Holder)>>(holders: T) -> Self {
        Self { holders: holders.into_iter().collect() }
    }
}

impl Holdings {
    /// Who holds this device.
    #[must_use]
    pub fn holder(&self, device: DeviceId) -> Option<&Holder> {
        self.holders.get(&device)
    }

    /// Every device that is held.
    pub fn devices(&self) -> impl Iterator<Item = DeviceId> {
        self.holders.keys().copied()
    }

    /// Whether a container of this pod holds a device of the GPU.
    #[must_use]
    pub fn holds(&self, namespace: &str, pod: &str, gpu: u32) -> bool {
        self.of_gpu(gpu).any(|(_, holder)| holder.namespace == namespace && holder.pod == pod)
    }

    /// The containers that hold a GPU, each with its units, in a fixed order. A whole GPU counts as `whole` units.
    #[must_use]
    pub fn allocations(&self, gpu: u32, whole: u32) -> Vec<Allocation> {
        let mut units: BTreeMap<&Holder, u32> = BTreeMap::new();
        for (device, holder) in self.of_gpu(gpu) {
            *units.entry(holder).or_default() += match device {
                DeviceId::Unit { .. } => 1,
                DeviceId::Whole { .. } => whole,
            };
        }
        let allocation = |(holder, units): (&Holder, u32)| Allocation {
            namespace: holder.namespace.clone(),
            pod: holder.pod.clone(),
            container: holder.container.clone(),
            units,
        };
        units.into_iter().map(allocation).collect()
    }

    fn of_gpu(&self, gpu: u32) -> impl Iterator<Item = (DeviceId, &Holder)> {
        self.holders
            .iter()
            .filter(move |(device, _)| device.gpu() == gpu)
            .map(|(device, holder)| (*device, holder))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::health::tests::at;

    pub(crate) fn unit(gpu: u32, unit: u32) -> DeviceId {
        DeviceId::Unit { gpu, unit }
    }

    pub(crate) fn holder(pod: &str, container: &str) -> Holder {
        Holder { namespace: "ai".into(), pod: pod.into(), container: container.into() }
    }

    #[test]
    fn an_allocation_counts_until_the_kubelet_lists_it_or_for_a_minute() {
        let recent = Recent::default();
        recent.record([unit(0, 0), unit(0, 1)], at(0));
        assert_eq!(recent.settle(None, at(59)), [unit(0, 0), unit(0, 1)].into());
        let listed = Holdings::from_iter([(unit(0, 0), holder("a", "main"))]);
        assert_eq!(recent.settle(Some(&listed), at(59)), [unit(0, 1)].into());
        assert_eq!(recent.settle(Some(&Holdings::default()), at(60)), BTreeSet::new());
        assert_eq!(
            recent.settle(None, at(0)),
            BTreeSet::new(),
            "what was listed once is the kubelet's to say"
        );
    }

    #[test]
    fn units_are_counted_by_container() {
        let holdings = Holdings::from_iter([
            (unit(7, 0), holder("b", "main")),
            (unit(7, 1), holder("a", "main")),
            (unit(7, 2), holder("a", "main")),
            (unit(7, 3), holder("a", "sidecar")),
            (unit(6, 0), holder("c", "main")),
            (DeviceId::Whole { gpu: 5 }, holder("d", "main")),
        ]);
        let rows = |gpu| -> Vec<_> {
            let allocations = holdings.allocations(gpu, 8);
            allocations.into_iter().map(|a| (a.pod, a.container, a.units)).collect()
        };
        let row = |pod: &str, container: &str, units| (pod.to_owned(), container.to_owned(), units);
        assert_eq!(rows(7), [row("a", "main", 2), row("a", "sidecar", 1), row("b", "main", 1)]);
        assert_eq!(rows(5), [row("d", "main", 8)]);
        assert_eq!(rows(0), []);
        assert!(
            holdings.holds("ai", "a", 7) && !holdings.holds("ai", "a", 6) && !holdings.holds("other", "a", 7)
        );
    }
}
