//! Which resource something belongs to: kinds, keys, roles, and the order in which resources are served.

use jiff::Timestamp;
use principium_api::names::{LABEL_KIND, LABEL_MANAGED_BY, LABEL_NAME, LABEL_ROLE, MANAGED_BY};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

/// The kinds that the operator looks after: three that it turns into pods, and Ingestion, whose work those do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    DataFactory,
    OllamaPool,
    Reranker,
    Ingestion,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::DataFactory, Self::OllamaPool, Self::Reranker, Self::Ingestion];

    /// The kind as manifests write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DataFactory => "DataFactory",
            Self::OllamaPool => "OllamaPool",
            Self::Reranker => "Reranker",
            Self::Ingestion => "Ingestion",
        }
    }

    /// The value of the label [`LABEL_KIND`].
    pub fn label(self) -> &'static str {
        match self {
            Self::DataFactory => "datafactory",
            Self::OllamaPool => "ollamapool",
            Self::Reranker => "reranker",
            Self::Ingestion => "ingestion",
        }
    }

    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.label() == label)
    }
}

/// Names one resource in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
    }
}

impl ResourceKey {
    /// Labels that every child carries.
    pub fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned()),
            (LABEL_KIND.to_owned(), self.kind.label().to_owned()),
            (LABEL_NAME.to_owned(), self.name.clone()),
        ])
    }

    /// Labels by which a Service finds the pods of one role.
    pub fn selector(&self, role: Role) -> BTreeMap<String, String> {
        BTreeMap::from([
            (LABEL_KIND.to_owned(), self.kind.label().to_owned()),
            (LABEL_NAME.to_owned(), self.name.clone()),
            (LABEL_ROLE.to_owned(), role.label().to_owned()),
        ])
    }
}

/// What a pod does within its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It holds the GPUs: a worker of the embedder, or an Ollama instance.
    Worker,
    /// The doc analyzer of a DataFactory.
    Analyzer,
    /// It fills a shared model store.
    Puller,
}

impl Role {
    /// The value of the label [`LABEL_ROLE`].
    pub fn label(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Analyzer => "analyzer",
            Self::Puller => "puller",
        }
    }

    pub fn from_label(label: &str) -> Option<Self> {
        [Self::Worker, Self::Analyzer, Self::Puller].into_iter().find(|role| role.label() == label)
    }
}

/// The total order in which resources that want the same GPU are served: higher priority first, then the older one,
/// then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    priority: Reverse<i32>,
    created: Timestamp,
    key: (String, String, Kind),
}

impl Order {
    pub fn new(priority: i32, created: Timestamp, key: &ResourceKey) -> Self {
        Self {
            priority: Reverse(priority),
            created,
            key: (key.namespace.clone(), key.name.clone(), key.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(priority: i32, second: i64, name: &str) -> Order {
        let key = ResourceKey { kind: Kind::Reranker, namespace: "demo".to_owned(), name: name.to_owned() };
        Order::new(priority, Timestamp::from_second(second).unwrap(), &key)
    }

    #[test]
    fn priority_comes_before_age_and_age_before_name() {
        assert!(order(10, 200, "z") < order(0, 100, "a"), "higher priority is served first");
        assert!(order(0, 100, "z") < order(0, 200, "a"), "the older one is served first");
        assert!(order(0, 100, "a") < order(0, 100, "b"), "the name decides last");
    }
}
