//! What must be so of who has GPUs, who waits for them and who is stopped, by what the documentation says and nothing else.

use super::*;
use crate::resource::Role;
use principium_api::gpu::{GpuDevice, GpuMemory, GpuRequest};
use principium_api::pod::PodSettings;
use principium_api::status::AssignedGpu;
use std::collections::BTreeSet;

/// What a resource asks for.
struct Wants<'c> {
    uid: Option<&'c str>,
    gpu: &'c GpuRequest,
    settings: &'c PodSettings,
    pods: u32,
    is_pool: bool,
    /// The port of the first instance.
    port: Option<u32>,
}

impl Wants<'_> {
    /// Exact devices on a node with these GPUs, where it has them: each instance of a pool has one of its own.
    fn devices<'g>(&self, ordinal: u32, gpus: &'g [Gpu]) -> Option<Vec<(&'g Gpu, u32)>> {
        let all = self.gpu.devices.as_ref()?;
        let at = usize::try_from(ordinal).unwrap();
        let wanted = if self.is_pool { &all[at..=at] } else { all.as_slice() };
        let find = |device: &GpuDevice| gpus.iter().find(|gpu| names(device, gpu));
        wanted.iter().map(|device| Some((find(device)?, units(device.memory.as_ref())))).collect()
    }

    /// Whether a pod could have what it is to have on a node with these GPUs.
    fn fits(&self, ordinal: u32, gpus: &[Gpu], free: impl Fn(&Gpu) -> u32) -> bool {
        if self.gpu.devices.is_some() {
            let devices = self.devices(ordinal, gpus);
            return devices.is_some_and(|wanted| wanted.iter().all(|(gpu, units)| free(gpu) >= *units));
        }
        let able = gpus.iter().filter(|gpu| free(gpu) >= units(self.gpu.memory.as_ref())).count();
        able >= usize::try_from(self.gpu.count.unwrap_or(1)).unwrap()
    }

    /// Whether a pod has what it is to have, on a node with these GPUs.
    fn has(&self, pod: &PodView, gpus: &[Gpu]) -> bool {
        let same =
            |card: &AssignedGpu| gpus.iter().any(|gpu| gpu.index == card.index && gpu.uuid == card.uuid);
        let right = if self.gpu.devices.is_some() {
            self.devices(pod.ordinal, gpus).is_some_and(|wanted| {
                wanted.iter().map(|(gpu, units)| (gpu.index, *units)).collect::<BTreeMap<_, _>>() == pod.units
            })
        } else {
            let units = units(self.gpu.memory.as_ref());
            pod.units.len() == usize::try_from(self.gpu.count.unwrap_or(1)).unwrap()
                && pod.units.values().all(|held| *held == units)
        };
        right && pod.assigned.iter().all(same)
    }
}

fn units(memory: Option<&GpuMemory>) -> u32 {
    memory.map_or(UNITS, GpuMemory::units)
}

fn names(device: &GpuDevice, gpu: &Gpu) -> bool {
    device.index.is_none_or(|index| index == gpu.index)
        && device.uuid.as_ref().is_none_or(|uuid| *uuid == gpu.uuid)
}

/// The pods of a resource that hold its GPUs, and have not ended, with their images.
fn workers(pods: &BTreeMap<(String, String), Pod>, name: &str) -> Vec<(PodView, Option<String>)> {
    let read = |pod: &Pod| (PodView::read(pod), pod.spec.as_ref().unwrap().containers[0].image.clone());
    let is_own = |pod: &PodView| pod.resource.as_ref().is_some_and(|resource| resource.name == name);
    let own = |(pod, _): &(PodView, Option<String>)| is_own(pod) && pod.role == Role::Worker && !pod.ended();
    pods.values().map(read).filter(own).collect()
}

impl Cluster {
    fn wants(&self, name: &str) -> Wants<'_> {
        let (meta, gpu, settings, pods, is_pool, ports) = if let Some(found) = self.try_factory(name) {
            (&found.metadata, &found.spec.gpu, &found.spec.pod, 1, false, None)
        } else if let Some(found) = self.try_reranker(name) {
            let spec = &found.spec;
            (&found.metadata, &spec.gpu, &spec.pod, spec.replicas.unwrap_or(1), false, None)
        } else {
            let found = self.pool(name);
            let spec = &found.spec;
            let instances = spec.instances.unwrap_or(1);
            (&found.metadata, &spec.gpu, &spec.pod, instances, true, spec.host_ports.as_ref())
        };
        let port = ports.map(|ports| ports.start);
        Wants { uid: meta.uid.as_deref(), gpu: gpu.as_ref().unwrap(), settings, pods, is_pool, port }
    }

    /// What a resource with exact devices that is Ready has: exactly those.
    pub fn check_devices(&self, name: &str) {
        let request = match (self.try_factory(name), self.try_reranker(name)) {
            (Some(found), _) => found.spec.gpu.clone(),
            (_, Some(found)) => found.spec.gpu.clone(),
            _ => self.pool(name).spec.gpu.clone(),
        };
        let Some(devices) = request.and_then(|request| request.devices) else { return };
        let held: Vec<_> =
            self.assignments(name).into_iter().flat_map(|assignment| assignment.gpus).collect();
        assert_eq!(held.len(), devices.len(), "{name}: {held:?}");
        for (device, held) in devices.iter().zip(&held) {
            assert!(device.index.is_none_or(|index| index == held.index), "{name}: {device:?} {held:?}");
            assert!(
                device.uuid.as_ref().is_none_or(|uuid| *uuid == held.uuid),
                "{name}: {device:?} {held:?}"
            );
            assert_eq!(held.units, units(device.memory.as_ref()), "{name}");
        }
    }

    /// Whether what a resource waits for is others', or isn't there. A pod gives up what it has for its successor, and of exact
    /// devices the other pods of its resource do that are not as they should be. For when everything rests.
    pub fn waits_for_others(&self, name: &str) -> bool {
        let wants = self.wants(name);
        let own = workers(&self.pods, name);
        let is_as_wanted = |(pod, image): &(PodView, Option<String>)| {
            let gpus = pod.node.as_ref().and_then(|node| self.nodes.get(node));
            let port = wants.port.map(|first| first + pod.ordinal);
            gpus.is_some_and(|gpus| wants.has(pod, gpus))
                && (pod.ready, pod.host_port, image) == (true, port, &wants.settings.image)
        };
        let former: Vec<&str> = own.iter().filter(|it| !is_as_wanted(it)).map(|(pod, _)| &*pod.uid).collect();
        let lacks = |ordinal: &u32| !own.iter().any(|it| it.0.ordinal == *ordinal && is_as_wanted(it));
        (0..wants.pods).filter(lacks).any(|ordinal| {
            let gives = |pod: &PodView| {
                former.contains(&&*pod.uid) && (wants.gpu.devices.is_some() || pod.ordinal == ordinal)
            };
            !self.nodes.iter().any(|(node, gpus)| {
                let free = |gpu: &Gpu| {
                    let pods = self.pods.values().map(PodView::read);
                    let holds =
                        |pod: &PodView| pod.node.as_ref() == Some(node) && !pod.ended() && !gives(pod);
                    let units = |pod: PodView| pod.units.get(&gpu.index).copied();
                    let held: u32 = pods.filter(holds).filter_map(units).sum();
                    if self.may_be_kept(gpu, name) { 0 } else { UNITS.saturating_sub(held) }
                };
                wants.fits(ordinal, gpus, free)
            })
        })
    }

    /// Whether another resource that names a GPU may wait for it, or for another one with it.
    fn may_be_kept(&self, gpu: &Gpu, name: &str) -> bool {
        self.names().iter().filter(|other| *other != name && self.ready(other).0 != "True").any(|other| {
            let mut devices = self.wants(other).gpu.devices.iter().flatten();
            devices.any(|device| names(device, gpu))
        })
    }

    /// One pass, which stops no more pods of a resource that work than may be away beyond those that are, whatever those are away
    /// for: so the operator never has more away by its own doing.
    pub fn pass_within_budgets(&mut self) {
        let before = self.pods.clone();
        let names = self.names().into_iter();
        let assigned: BTreeMap<String, Vec<Assignment>> =
            names.map(|name| (name.clone(), self.assignments(&name))).collect();
        let plan = self.pass();
        self.check_stops(&before, &assigned, &plan);
    }

    fn check_stops(
        &self,
        before: &BTreeMap<(String, String), Pod>,
        assigned: &BTreeMap<String, Vec<Assignment>>,
        plan: &Plan,
    ) {
        let deleted: BTreeSet<&str> = plan
            .actions
            .iter()
            .filter_map(|action| match &action.write {
                Write::DeletePod { uid, .. } => Some(uid.as_str()),
                _ => None,
            })
            .collect();
        for name in self.names() {
            let wants = self.wants(&name);
            // Those that exchange devices go together.
            if wants.is_pool && wants.gpu.devices.is_some() {
                continue;
            }
            let is_own = |pod: &PodView| pod.role == Role::Worker && pod.owner.as_deref() == wants.uid;
            let own: Vec<PodView> = before.values().map(PodView::read).filter(is_own).collect();
            let lives = |pod: &PodView| !pod.leaving && !pod.ended();
            let works = |pod: &PodView| {
                let open = !wants.is_pool || pod.gate == Some(true) || pod.rests;
                lives(pod) && pod.containers_ready && open
            };
            // An instance that got hot before it took requests rests as well.
            let rests = |pod: &PodView| pod.containers_ready && self.is_hot(pod);
            let may_work = |pod: &PodView| works(pod) || lives(pod) && (pod.ready || rests(pod));
            // Who waits for the port of another one, or for a GPU with none to come back to, keeps no other from being changed.
            let waits = |ordinal: u32| {
                let port = wants.port.map(|first| first + ordinal);
                let has_it = |pod: &PodView| pod.ordinal != ordinal && lives(pod) && pod.host_port == port;
                let its = format!("{name}-{ordinal}-");
                let is_there = own.iter().any(|pod| pod.ordinal == ordinal)
                    || assigned[&name].iter().any(|assigned| assigned.pod.starts_with(&its));
                port.is_some() && own.iter().any(has_it) || !is_there
            };
            let (mut stopped, mut away) = (Vec::new(), Vec::new());
            for ordinal in 0..wants.pods {
                let pods = || own.iter().filter(move |pod| pod.ordinal == ordinal);
                let goes = |pod: &PodView| deleted.contains(&*pod.uid);
                let loses = pods().any(|pod| works(pod) && goes(pod));
                if loses && !pods().any(|pod| may_work(pod) && !goes(pod)) {
                    stopped.push(ordinal);
                } else if !pods().any(may_work) && !waits(ordinal) {
                    away.push(ordinal);
                }
            }
            let most = usize::try_from(wants.settings.max_unavailable.unwrap_or(1).max(1)).unwrap();
            assert!(
                stopped.is_empty() || stopped.len() + away.len() <= most,
                "{name}: {stopped:?} are stopped while {away:?} are away, and {most} may be; {:?}",
                before.keys().map(|(_, pod)| pod).collect::<Vec<_>>()
            );
        }
    }

    /// Whether a GPU of a pod is withheld.
    fn is_hot(&self, pod: &PodView) -> bool {
        let gpus = pod.node.as_ref().and_then(|node| self.nodes.get(node));
        gpus.into_iter().flatten().any(|gpu| gpu.withheld.is_some() && pod.units.contains_key(&gpu.index))
    }
}
