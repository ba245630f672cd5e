//! Whether everybody agrees on who holds what: the pods' requests (API server), the kubelet's list (podresources) and
//! what this plugin put into containers (`Allocate`). Pure.
//!
//! They agree by construction, so a contradiction is a fault of somebody's that can give one unit to two pods: a kubelet
//! that lost its checkpoint, a card that changed under a running container. It is told, and nothing is done about it.

use crate::allocations::{Holder, Holdings};
use crate::device::DeviceId;
use principium_api::gpu_node::{Disagreement, DisagreementKind};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a contradiction must last: the three are looked at one after the other, and pods come and go meanwhile.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a container asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Units by resource of ours.
    pub units: BTreeMap<String, u32>,
    /// Whether it runs, and so must have what it asked for.
    pub running: bool,
}

/// The containers of the node's pods that ask for a resource of ours.
pub type Requests = BTreeMap<Holder, Asked>;

/// UUIDs of the GPUs that were put into containers, by device.
pub type Injected = BTreeMap<DeviceId, String>;

/// Every contradiction at one moment. `uuid` tells which GPU has an index now.
#[must_use]
pub fn contradictions<'registry>(
    requests: &Requests,
    holdings: &Holdings,
    injected: &Injected,
    uuid: impl Fn(u32) -> Option<&'registry str>,
) -> BTreeSet<Disagreement> {
    let listed = listed(holdings);
    let nothing = BTreeMap::new();
    let differing = requests.iter().flat_map(|(holder, asked)| {
        let has = listed.get(holder).unwrap_or(&nothing);
        let resources: BTreeSet<&String> = asked.units.keys().chain(has.keys()).collect();
        resources.into_iter().filter_map(move |resource| {
            let units = |of: &BTreeMap<String, u32>| of.get(resource).copied().unwrap_or_default();
            let (asked_units, has_units) = (units(&asked.units), units(has));
            // A container that is about to start has nothing yet.
            let comparable = asked.running || has_units > 0;
            (comparable && asked_units != has_units).then(|| {
                let message = format!("asks for {asked_units} {resource}, and the kubelet lists {has_units}");
                disagreement(DisagreementKind::RequestDiffers, holder, message)
            })
        })
    });
    let twice = holdings.held_twice().map(|(device, holder)| {
        let message = format!("holds {device} of {}, which is another's too", device.resource());
        disagreement(DisagreementKind::HeldTwice, holder, message)
    });
    let exchanged = injected.iter().filter_map(|(device, given)| {
        let holder = holdings.holder(*device)?;
        let now = uuid(device.gpu()).unwrap_or("none");
        (now != given).then(|| {
            let message = format!("was given {given}, and GPU {} is {now} now", device.gpu());
            disagreement(DisagreementKind::InjectionDiffers, holder, message)
        })
    });
    differing.chain(twice).chain(exchanged).collect()
}

fn listed(holdings: &Holdings) -> BTreeMap<&Holder, BTreeMap<String, u32>> {
    let mut listed: BTreeMap<&Holder, BTreeMap<String, u32>> = BTreeMap::new();
    for (device, holder) in holdings.all() {
        *listed.entry(holder).or_default().entry(device.resource()).or_default() += 1;
    }
    listed
}

fn disagreement(kind: DisagreementKind, holder: &Holder, message: String) -> Disagreement {
    let Holder { namespace, pod, container } = holder.clone();
    Disagreement { kind, namespace, pod, container, message }
}

/// Contradictions over time.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    since: BTreeMap<Disagreement, Duration>,
}

impl Agreement {
    /// Takes in what is contradictory now.
    pub fn step(&mut self, found: BTreeSet<Disagreement>, now: Duration) {
        let since = |disagreement: Disagreement| {
            let since = self.since.get(&disagreement).copied().unwrap_or(now);
            (disagreement, since)
        };
        self.since = found.into_iter().map(since).collect();
    }

    /// Whether something is contradictory, however shortly.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        !self.since.is_empty()
    }

    /// What has been contradictory for too long.
    #[must_use]
    pub fn lasting(&self, now: Duration) -> Vec<Disagreement> {
        let lasting = self.since.iter().filter(|(_, since)| now.saturating_sub(**since) >= PATIENCE);
        lasting.map(|(disagreement, _)| disagreement.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations::tests::{holder, unit};

    fn asked(units: &[(&str, u32)], running: bool) -> Asked {
        Asked {
            units: units.iter().map(|(resource, units)| ((*resource).to_owned(), *units)).collect(),
            running,
        }
    }

    fn found(
        requests: &Requests,
        holdings: &Holdings,
        injected: &Injected,
    ) -> Vec<(DisagreementKind, String)> {
        let uuid = |index| ["GPU-a", "GPU-b"].get(index as usize).copied();
        let found = contradictions(requests, holdings, injected, uuid);
        found.into_iter().map(|found| (found.kind, format!("{}: {}", found.pod, found.message))).collect()
    }

    #[test]
    fn requests_and_the_kubelets_list_are_compared_both_ways() {
        let two = Holdings::from_iter([(unit(0, 0), holder("a", "main")), (unit(0, 1), holder("a", "main"))]);
        let (gpu0, gpu1) = ("principium.ai/gpu-0", "principium.ai/gpu-1");
        for (name, container, holdings, expected) in [
            ("as asked", asked(&[(gpu0, 2)], true), &two, vec![]),
            ("not started", asked(&[(gpu0, 2)], false), &Holdings::default(), vec![]),
            (
                "too few",
                asked(&[(gpu0, 3)], true),
                &two,
                vec!["a: asks for 3 principium.ai/gpu-0, and the kubelet lists 2"],
            ),
            (
                "none",
                asked(&[(gpu0, 2)], true),
                &Holdings::default(),
                vec!["a: asks for 2 principium.ai/gpu-0, and the kubelet lists 0"],
            ),
            (
                "another GPU",
                asked(&[(gpu1, 2)], true),
                &two,
                vec![
                    "a: asks for 0 principium.ai/gpu-0, and the kubelet lists 2",
                    "a: asks for 2 principium.ai/gpu-1, and the kubelet lists 0",
                ],
            ),
        ] {
            let requests = Requests::from([(holder("a", "main"), container)]);
            let found = found(&requests, holdings, &Injected::new());
            let messages: Vec<_> = found.iter().map(|(_, message)| message.as_str()).collect();
            assert_eq!(messages, expected, "{name}");
        }
        assert_eq!(
            found(&Requests::new(), &two, &Injected::new()),
            [],
            "a pod that the API server doesn't know yet"
        );
    }

    #[test]
    fn one_device_has_one_holder_and_one_view() {
        let whole = DeviceId::Whole { gpu: 1 };
        for (held, expected) in [
            (vec![(unit(0, 0), "a"), (unit(0, 0), "b")], 2),
            (vec![(whole, "a"), (unit(1, 3), "b")], 2),
            (vec![(whole, "a"), (unit(0, 3), "b"), (unit(0, 4), "b")], 0),
        ] {
            let holdings: Holdings =
                held.iter().map(|(device, pod)| (*device, holder(pod, "main"))).collect();
            let found = found(&Requests::new(), &holdings, &Injected::new());
            assert_eq!(found.len(), expected, "{held:?}: {found:?}");
            assert!(found.iter().all(|(kind, _)| *kind == DisagreementKind::HeldTwice));
        }
    }

    #[test]
    fn the_card_that_was_given_is_the_card_that_has_the_index() {
        let holdings =
            Holdings::from_iter([(unit(0, 0), holder("a", "main")), (unit(1, 0), holder("b", "main"))]);
        let injected =
            |a: &str, b: &str| Injected::from([(unit(0, 0), a.to_owned()), (unit(1, 0), b.to_owned())]);
        assert_eq!(found(&Requests::new(), &holdings, &injected("GPU-a", "GPU-b")), []);
        let found = found(&Requests::new(), &holdings, &injected("GPU-a", "GPU-old"));
        assert_eq!(found[0].1, "b: was given GPU-old, and GPU 1 is GPU-b now");
    }

    #[test]
    fn only_what_lasts_is_told_and_it_ends_at_once() {
        let second = Duration::from_secs;
        let one: BTreeSet<_> = [Disagreement::default()].into();
        let mut agreement = Agreement::default();
        agreement.step(one.clone(), second(0));
        agreement.step(one.clone(), second(14));
        assert!(agreement.lasting(second(14)).is_empty() && agreement.is_doubtful());
        agreement.step(one, second(15));
        assert_eq!(agreement.lasting(second(15)).len(), 1);
        agreement.step(BTreeSet::new(), second(16));
        assert!(agreement.lasting(second(16)).is_empty() && !agreement.is_doubtful());
    }
}
