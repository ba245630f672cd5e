//! The pods of one resource, by slot.

use crate::desired::Slot;
use crate::pods::PodView;
use crate::resource::Role;
use std::collections::BTreeMap;

/// The pods that carry the labels of a resource.
pub struct Family<'a> {
    /// All of them, also those of a former resource of its name.
    pub all: Vec<&'a PodView>,
    /// Its own, newest first.
    own: BTreeMap<(Role, u32), Vec<&'a PodView>>,
    revisions: BTreeMap<(Role, u32), u32>,
}

impl<'a> Family<'a> {
    /// Of all that carry the labels, those with this owner are the resource's own.
    pub fn new(all: Vec<&'a PodView>, owner: &str) -> Self {
        let mut own: BTreeMap<(Role, u32), Vec<&PodView>> = BTreeMap::new();
        let mut revisions: BTreeMap<(Role, u32), u32> = BTreeMap::new();
        for pod in &all {
            let latest = revisions.entry((pod.role, pod.ordinal)).or_default();
            *latest = (*latest).max(pod.revision);
            if pod.owner.as_deref() == Some(owner) {
                own.entry((pod.role, pod.ordinal)).or_default().push(pod);
            }
        }
        for pods in own.values_mut() {
            pods.sort_by_key(|pod| std::cmp::Reverse(pod.revision));
        }
        Self { all, own, revisions }
    }

    /// The pods of a slot, newest first.
    pub fn of(&self, slot: &Slot) -> &[&'a PodView] {
        self.own.get(&(slot.role, slot.ordinal)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The highest revision that a pod in this slot has, whoever owns it: names are not used twice.
    pub fn latest_revision(&self, slot: &Slot) -> u32 {
        self.revisions.get(&(slot.role, slot.ordinal)).copied().unwrap_or_default()
    }
}
