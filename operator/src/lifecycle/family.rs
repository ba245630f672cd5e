//! The pods of one resource, by slot.

use crate::desired::Slot;
use crate::pods::PodView;
use crate::resource::Role;
use std::cmp::Reverse;

/// The pods that carry the labels of a resource.
pub struct Family<'a> {
    /// All of them by slot, the newest first, also those of a former resource of its name.
    pub all: Vec<&'a PodView>,
    /// Its own, in the same order.
    own: Vec<&'a PodView>,
}

impl<'a> Family<'a> {
    /// Of all that carry the labels, those with this owner are the resource's own.
    pub fn new(mut all: Vec<&'a PodView>, owner: &str) -> Self {
        all.sort_by_key(|pod| (place(pod), Reverse(pod.revision)));
        let own = all.iter().copied().filter(|pod| pod.owner.as_deref() == Some(owner)).collect();
        Self { all, own }
    }

    /// The pods of a slot, newest first.
    pub fn of(&self, slot: &Slot) -> &[&'a PodView] {
        of_slot(&self.own, slot)
    }

    /// The highest revision that a pod in this slot has, whoever owns it: names are not used twice.
    pub fn latest_revision(&self, slot: &Slot) -> u32 {
        of_slot(&self.all, slot).first().map(|pod| pod.revision).unwrap_or_default()
    }
}

fn place(pod: &PodView) -> (Role, u32) {
    (pod.role, pod.ordinal)
}

fn of_slot<'f, 'a>(pods: &'f [&'a PodView], slot: &Slot) -> &'f [&'a PodView] {
    let slot = (slot.role, slot.ordinal);
    let rest = &pods[pods.partition_point(|pod| place(pod) < slot)..];
    &rest[..rest.partition_point(|pod| place(pod) == slot)]
}
