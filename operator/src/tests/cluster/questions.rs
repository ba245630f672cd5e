//! What tests ask about the cluster.

use super::*;

impl Cluster {
    pub fn pod_names(&self) -> Vec<String> {
        self.pods.keys().map(|(_, name)| name.clone()).collect()
    }

    /// Status, reason and message of `Ready`.
    pub fn ready(&self, name: &str) -> (String, String, String) {
        let condition = self.condition(name, "Ready");
        (condition.status, condition.reason, condition.message)
    }

    pub fn condition(&self, name: &str, type_: &str) -> Condition {
        self.conditions(name).into_iter().find(|found| found.type_ == type_).unwrap()
    }

    pub fn conditions(&self, name: &str) -> Vec<Condition> {
        if let Some(found) = self.observed.data_factories.iter().find(|found| named(found, name)) {
            return found.status.clone().unwrap_or_default().conditions;
        }
        if let Some(found) = self.observed.rerankers.iter().find(|found| named(found, name)) {
            return found.status.clone().unwrap_or_default().conditions;
        }
        if let Some(found) = self.observed.ingestions.iter().find(|found| named(found, name)) {
            return found.status.clone().unwrap_or_default().conditions;
        }
        let found = self.observed.ollama_pools.iter().find(|found| named(found, name)).unwrap();
        found.status.clone().unwrap_or_default().conditions
    }

    pub fn assignments(&self, name: &str) -> Vec<Assignment> {
        if let Some(found) = self.observed.data_factories.iter().find(|found| named(found, name)) {
            return found.status.clone().unwrap_or_default().assignments;
        }
        if let Some(found) = self.observed.rerankers.iter().find(|found| named(found, name)) {
            return found.status.clone().unwrap_or_default().assignments;
        }
        let found = self.observed.ollama_pools.iter().find(|found| named(found, name)).unwrap();
        found.status.clone().unwrap_or_default().assignments
    }

    /// Pods with their nodes, GPUs and units, in short: `rr-0-1 n0 1:8`.
    pub fn held(&self) -> Vec<String> {
        let pods = self.pods.values().map(PodView::read).filter(|pod| !pod.units.is_empty());
        pods.map(|pod| {
            let gpus: Vec<String> =
                pod.units.iter().map(|(index, units)| format!("{index}:{units}")).collect();
            format!("{} {} {}", pod.name, pod.node.unwrap_or_default(), gpus.join(","))
        })
        .collect()
    }

    pub fn noted(&self, reason: &str) -> Vec<&str> {
        self.notes.iter().filter(|(found, _)| *found == reason).map(|(_, text)| text.as_str()).collect()
    }

    /// The names of all resources.
    pub fn names(&self) -> Vec<String> {
        let factories = self.observed.data_factories.iter().map(|found| found.metadata.name.clone());
        let rerankers = self.observed.rerankers.iter().map(|found| found.metadata.name.clone());
        let pools = self.observed.ollama_pools.iter().map(|found| found.metadata.name.clone());
        let ingestions = self.observed.ingestions.iter().map(|found| found.metadata.name.clone());
        factories.chain(rerankers).chain(pools).chain(ingestions).flatten().collect()
    }

    pub fn pool(&self, name: &str) -> &OllamaPool {
        self.observed.ollama_pools.iter().find(|found| named(found, name)).unwrap()
    }

    pub fn factory(&self, name: &str) -> &DataFactory {
        self.observed.data_factories.iter().find(|found| named(found, name)).unwrap()
    }

    pub fn ingestion(&self, name: &str) -> &Ingestion {
        self.observed.ingestions.iter().find(|found| named(found, name)).unwrap()
    }

    pub fn reranker(&self, name: &str) -> &Reranker {
        self.try_reranker(name).unwrap()
    }

    pub(super) fn try_reranker(&self, name: &str) -> Option<&Reranker> {
        self.observed
            .rerankers
            .iter()
            .map(AsRef::as_ref)
            .find(|found| found.metadata.name.as_deref() == Some(name))
    }

    pub(super) fn try_factory(&self, name: &str) -> Option<&DataFactory> {
        let mut factories = self.observed.data_factories.iter().map(AsRef::as_ref);
        factories.find(|found| found.metadata.name.as_deref() == Some(name))
    }
}
