//! Which devices are in use: what the kubelet lists, and what it was given so lately that it may not list it yet.

use crate::agreement::Injected;
use crate::device::{DeviceId, Now};
use principium_api::gpu_node::Allocation;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long an allocation counts that the kubelet doesn't list.
const PENDING: Duration = Duration::from_secs(60);

/// Allocations that were answered. Shared by the servers and the monitor.
#[derive(Debug, Default)]
pub struct Recent {
    made: Mutex<Made>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Made {
    /// When, of those that the kubelet does not list yet.
    pending: BTreeMap<DeviceId, Duration>,
    /// UUID of the GPU that was put into the container, of those that are pending or held.
    injected: Injected,
}

/// Nobody else answers or settles an allocation while this lives: what is offered changes before or after one, and
/// never in its middle.
pub struct Pending<'recent> {
    made: MutexGuard<'recent, Made>,
    changed: &'recent Notify,
}

impl Recent {
    /// Waits until nobody else looks at the allocations.
    pub fn lock(&self) -> Pending<'_> {
        Pending { made: self.made.lock().unwrap_or_else(PoisonError::into_inner), changed: &self.changed }
    }

    /// Waits for the next allocation.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Pending<'_> {
    /// Records an allocation, each device with the UUID of its GPU, and wakes who waits for one.
    pub fn record(&mut self, devices: impl IntoIterator<Item = (DeviceId, String)>, now: Now) {
        for (device, uuid) in devices {
            self.made.pending.insert(device, now.elapsed);
            self.made.injected.insert(device, uuid);
        }
        self.changed.notify_one();
    }

    /// Forgets what the kubelet lists by now, and what it did not list in time; gives the rest.
    pub fn settle(&mut self, holdings: Option<&Holdings>, now: Now) -> BTreeSet<DeviceId> {
        let held = |device: &DeviceId| holdings.is_some_and(|holdings| holdings.holder(*device).is_some());
        let Made { pending, injected } = &mut *self.made;
        pending.retain(|device, at| !held(device) && now.elapsed.saturating_sub(*at) < PENDING);
        injected.retain(|device, _| pending.contains_key(device) || held(device));
        pending.keys().copied().collect()
    }

    /// What was put into the containers that hold something.
    #[must_use]
    pub fn injected(&self) -> &Injected {
        &self.made.injected
    }
}

/// Who holds what, as the kubelet lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    holders: BTreeMap<DeviceId, Holder>,
    /// Other holders of devices that have one already.
    others: Vec<(DeviceId, Holder)>,
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
        let mut holdings = Self::default();
        for (device, holder) in holders {
            match holdings.holders.entry(device) {
                Entry::Vacant(entry) => drop(entry.insert(holder)),
                Entry::Occupied(_) => holdings.others.push((device, holder)),
            }
        }
        holdings
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

    /// Every container that holds a device, with the device.
    pub fn all(&self) -> impl Iterator<Item = (DeviceId, &Holder)> {
        let others = self.others.iter().map(|(device, holder)| (*device, holder));
        self.holders.iter().map(|(device, holder)| (*device, holder)).chain(others)
    }

    /// The containers that hold something.
    #[must_use]
    pub fn containers(&self) -> BTreeSet<Holder> {
        self.all().map(|(_, holder)| holder.clone()).collect()
    }

    /// Devices that another container holds too, or that are a part of a GPU that somebody holds whole, with each of
    /// their holders.
    pub fn held_twice(&self) -> impl Iterator<Item = (DeviceId, &Holder)> {
        let is_whole = |device: DeviceId| matches!(device, DeviceId::Whole { .. });
        let in_both_views = move |device: DeviceId| {
            self.of_gpu(device.gpu()).any(|(other, _)| is_whole(other) != is_whole(device))
        };
        let twice = move |device: DeviceId| self.others.iter().any(|(other, _)| *other == device);
        self.all().filter(move |(device, _)| twice(*device) || in_both_views(*device))
    }

    /// Whether somebody holds something of this GPU.
    #[must_use]
    pub fn is_held(&self, gpu: u32) -> bool {
        self.of_gpu(gpu).next().is_some()
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

/// Devices that were given back since their GPU was measured: how much memory is free is not known before it was again.
#[derive(Debug, Default)]
pub struct Released(BTreeMap<DeviceId, (Holder, Instant)>);

impl Released {
    /// Takes in that the kubelet lists `after` where it listed `before`, at some moment before `at`.
    pub fn listed(&mut self, before: Option<&Holdings>, after: &Holdings, at: Instant) {
        let before = before.into_iter().flat_map(|before| &before.holders);
        self.0.extend(before.map(|(device, holder)| (*device, (holder.clone(), at))));
        self.0.retain(|device, _| after.holder(*device).is_none());
    }

    /// Takes in a measurement of all GPUs that began at that moment.
    pub fn measured(&mut self, began: Instant) {
        self.0.retain(|_, (_, at)| began < *at);
    }

    /// What is held, and what was given back and not measured since.
    #[must_use]
    pub fn and_held(&self, holdings: &Holdings) -> Holdings {
        let released = self.0.iter().map(|(device, (holder, _))| (*device, holder));
        holdings.all().chain(released).map(|(device, holder)| (device, holder.clone())).collect()
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
        let mut pending = recent.lock();
        pending.record([unit(0, 0), unit(0, 1)].map(|device| (device, "GPU-0".to_owned())), at(0));
        assert_eq!(pending.settle(None, at(59)), [unit(0, 0), unit(0, 1)].into());
        let listed = Holdings::from_iter([(unit(0, 0), holder("a", "main"))]);
        assert_eq!(pending.settle(Some(&listed), at(59)), [unit(0, 1)].into());
        assert_eq!(pending.settle(Some(&listed), at(60)), BTreeSet::new());
        assert_eq!(pending.injected().keys().collect::<Vec<_>>(), [&unit(0, 0)], "for as long as it is held");
        assert_eq!(pending.settle(Some(&Holdings::default()), at(61)), BTreeSet::new());
        assert!(pending.injected().is_empty());
        assert_eq!(
            pending.settle(None, at(0)),
            BTreeSet::new(),
            "what was listed once is the kubelet's to say"
        );
    }

    #[test]
    fn what_is_given_back_counts_until_its_gpu_was_measured() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let both =
            Holdings::from_iter([(unit(0, 0), holder("a", "main")), (unit(1, 0), holder("b", "main"))]);
        let one = Holdings::from_iter([(unit(1, 0), holder("b", "main"))]);
        let mut released = Released::default();
        released.listed(None, &both, second(0));
        assert_eq!(released.and_held(&both), both);
        released.listed(Some(&both), &one, second(5));
        assert_eq!(released.and_held(&one), both, "the last measurement is older");
        released.listed(Some(&one), &one, second(6));
        released.measured(second(4));
        assert_eq!(released.and_held(&one), both, "as is this one, which came late");
        released.measured(second(5));
        assert_eq!(released.and_held(&one), one);

        let other = Holdings::from_iter([(unit(0, 0), holder("c", "main"))]);
        released.listed(Some(&both), &one, second(7));
        released.listed(Some(&one), &other, second(8));
        let mut expected = other.clone();
        expected.holders.insert(unit(1, 0), holder("b", "main"));
        assert_eq!(released.and_held(&other), expected, "one that has a new holder is his");
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
