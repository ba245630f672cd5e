//! The DataFactories that Ingestions name, and the pods that do their jobs.

use crate::conditions;
use crate::data_factory::store;
use crate::observed::Observed;
use crate::pods::PodView;
use crate::resource::{Kind, Role};
use principium_api::DataFactory;
use principium_api::status::condition;
use std::collections::BTreeMap;

/// The DataFactories of the cluster.
pub struct Factories<'a> {
    observed: &'a Observed,
    /// Pods that can be asked, by namespace and name of their DataFactory.
    pods: BTreeMap<(&'a str, &'a str), &'a PodView>,
}

/// A DataFactory whose pod can be asked.
#[derive(Clone, Copy, Debug)]
pub struct Worker<'a> {
    pub resource: &'a DataFactory,
    pub pod: &'a PodView,
}

impl Worker<'_> {
    /// Names the folder that it keeps jobs and corpora in.
    pub fn store(&self) -> String {
        store(self.pod)
    }
}

/// A DataFactory as an Ingestion finds it.
#[derive(Clone, Debug)]
pub enum Factory<'a> {
    Missing,
    /// What it says of itself.
    NotReady(String),
    Ready(Worker<'a>),
}

impl<'a> Factories<'a> {
    pub fn read(observed: &'a Observed) -> Self {
        let mut pods = BTreeMap::new();
        for pod in &observed.pods {
            let key = pod.resource.as_ref().filter(|key| key.kind == Kind::DataFactory);
            if let Some(key) = key
                && pod.role == Role::Worker
                && pod.ready
                && !pod.leaving
                && !pod.ended()
            {
                pods.insert((key.namespace.as_str(), key.name.as_str()), pod.as_ref());
            }
        }
        Self { observed, pods }
    }

    /// The one of a name, for a run that is to begin.
    pub fn find(&self, namespace: &str, name: &str) -> Factory<'a> {
        let Some(resource) = self.resource(namespace, name) else { return Factory::Missing };
        let status = resource.status.as_ref();
        let ready = status.and_then(|status| conditions::before(&status.conditions, condition::READY));
        let says = ready.map(|ready| ready.message.clone()).unwrap_or_default();
        if status.and_then(|status| status.observed_generation) != resource.metadata.generation {
            return Factory::NotReady("its spec has changed".to_owned());
        }
        match self.worker(namespace, name) {
            Some(worker) if ready.is_some_and(|ready| ready.status == "True") => Factory::Ready(worker),
            Some(_) => Factory::NotReady(says),
            None => Factory::NotReady(if ready.is_some_and(|ready| ready.status == "True") {
                "its pod is not ready".to_owned()
            } else {
                says
            }),
        }
    }

    /// The one of a name, if it can be asked.
    pub fn worker(&self, namespace: &str, name: &str) -> Option<Worker<'a>> {
        let resource = self.resource(namespace, name)?;
        let pod = *self.pods.get(&(namespace, name))?;
        (pod.owner == resource.metadata.uid).then_some(Worker { resource, pod })
    }

    /// The one whose pod this is, if it can be asked.
    pub fn of_pod(&self, uid: &str) -> Option<Worker<'a>> {
        let ((namespace, name), _) = self.pods.iter().find(|(_, pod)| pod.uid == uid)?;
        self.worker(namespace, name)
    }

    fn resource(&self, namespace: &str, name: &str) -> Option<&'a DataFactory> {
        let key =
            |found: &'a DataFactory| (found.metadata.namespace.as_deref(), found.metadata.name.as_deref());
        let all = &self.observed.data_factories;
        let at = all.binary_search_by(|found| key(found).cmp(&(Some(namespace), Some(name)))).ok()?;
        all.get(at).map(AsRef::as_ref).filter(|found| found.metadata.deletion_timestamp.is_none())
    }
}
