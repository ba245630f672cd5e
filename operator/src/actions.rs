//! What a plan says is to be done, as data: `apply` does it and decides nothing.

use crate::ingestion::JobQuestion;
use crate::observed::{Identity, ModelAnswer, Observed};
use crate::pods::PodView;
use crate::resource::ResourceKey;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use principium_api::{DataFactoryStatus, IngestionStatus, OllamaPoolStatus, RerankerStatus};
use std::sync::Arc;

/// Most writes of one sort in a pass; the rest comes with the next. So a pass never takes long, however much there is to do,
/// and what turns hot meanwhile is seen; nor does it hold more than so many pods.
pub const AT_MOST: usize = 256;

/// The result of a pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub statuses: Vec<StatusUpdate>,
    pub notes: Vec<Note>,
    /// The pods to ask over HTTP, until the next pass.
    pub targets: Vec<Target>,
    /// When to plan again though nothing changed.
    pub requeue_after: Option<SignedDuration>,
    /// Number of pods that are made.
    pub creations: usize,
}

impl Plan {
    /// Whether no more pods are made in this pass. Then another one is asked for.
    pub fn is_full(&mut self) -> bool {
        let full = self.creations >= AT_MOST;
        if full {
            self.requeue(SignedDuration::ZERO);
        }
        full
    }

    pub fn create(&mut self, observed: &Observed, resource: ResourceKey, pod: Pod) {
        // Those that fail again and again keep no others from being made.
        self.creations += usize::from(!observed.failures.contains_key(&resource));
        self.actions.push(Action { resource, write: Write::CreatePod(Box::new(pod)) });
    }

    /// Asks for another pass after this time, or sooner.
    pub fn requeue(&mut self, after: SignedDuration) {
        let after = after.max(SignedDuration::from_millis(100));
        self.requeue_after = Some(self.requeue_after.map_or(after, |other| other.min(after)));
    }

    /// Does what another plan says after this one.
    pub fn append(&mut self, mut other: Self) {
        self.actions.append(&mut other.actions);
        self.statuses.append(&mut other.statuses);
        self.notes.append(&mut other.notes);
        self.targets.append(&mut other.targets);
        self.creations += other.creations;
        if let Some(after) = other.requeue_after {
            self.requeue(after);
        }
    }

    pub fn note(&mut self, id: &Identity, severity: Severity, reason: &'static str, text: String) {
        self.notes.push(Note {
            key: id.key.clone(),
            uid: id.uid.clone(),
            severity,
            reason,
            text,
            made: None,
        });
    }

    /// A note that is told once `pod` is made.
    pub fn note_made(&mut self, id: &Identity, pod: &str, reason: &'static str, text: String) {
        self.note(id, Severity::Normal, reason, text);
        if let Some(note) = self.notes.last_mut() {
            note.made = Some(pod.to_owned());
        }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// For whom it is done; a failure shows in the status of this resource.
    pub resource: ResourceKey,
    pub write: Write,
}

/// The writes that there are, besides status and events.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    CreatePod(Box<Pod>),
    /// Deletes the pod with this UID, gracefully.
    DeletePod {
        name: String,
        uid: String,
    },
    /// Server-side apply; `ours` when the resource is seen to own it. Another's of that name is not taken over.
    ApplyService {
        service: Box<Service>,
        ours: bool,
    },
    DeleteService {
        name: String,
        uid: String,
    },
    /// As for Services.
    ApplyBudget {
        budget: Box<PodDisruptionBudget>,
        ours: bool,
    },
    DeleteBudget {
        name: String,
        uid: String,
    },
    /// Sets the readiness gate of an Ollama instance.
    SetGate {
        name: String,
        uid: String,
        open: bool,
        reason: &'static str,
        message: String,
        /// When its containers were started, by the clock of their node, which may be ahead: a gate that was set before that
        /// would be taken for one of the containers before them.
        not_before: Option<Timestamp>,
    },
}

impl Write {
    /// Names the written object within its namespace, for back-off and messages.
    pub fn object(&self) -> String {
        match self {
            Self::CreatePod(pod) => format!("Pod {}", pod.metadata.name.as_deref().unwrap_or_default()),
            Self::DeletePod { name, .. } | Self::SetGate { name, .. } => format!("Pod {name}"),
            Self::ApplyService { service, .. } => {
                format!("Service {}", service.metadata.name.as_deref().unwrap_or_default())
            }
            Self::DeleteService { name, .. } => format!("Service {name}"),
            Self::ApplyBudget { budget, .. } => {
                format!("PodDisruptionBudget {}", budget.metadata.name.as_deref().unwrap_or_default())
            }
            Self::DeleteBudget { name, .. } => format!("PodDisruptionBudget {name}"),
        }
    }

    /// What is done, for messages and as a metric label.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::CreatePod(_) => "create",
            Self::DeletePod { .. } | Self::DeleteService { .. } | Self::DeleteBudget { .. } => "delete",
            Self::ApplyService { .. } | Self::ApplyBudget { .. } => "apply",
            Self::SetGate { .. } => "set readiness of",
        }
    }
}

/// A status that differs from the one that the resource has.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusUpdate {
    pub key: ResourceKey,
    pub uid: String,
    pub status: Status,
}

/// The status of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    DataFactory(Box<DataFactoryStatus>),
    Reranker(Box<RerankerStatus>),
    OllamaPool(Box<OllamaPoolStatus>),
    Ingestion(Box<IngestionStatus>),
}

/// Something worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub key: ResourceKey,
    pub uid: String,
    pub severity: Severity,
    pub reason: &'static str,
    pub text: String,
    /// The pod without which it is not true.
    pub made: Option<String>,
}

impl Note {
    /// Whether it holds, now that these pods are made.
    pub fn is_true(&self, made: &[Pod]) -> bool {
        let is = |pod: &Pod| {
            (&pod.metadata.namespace, &pod.metadata.name) == (&Some(self.key.namespace.clone()), &self.made)
        };
        self.made.is_none() || made.iter().any(is)
    }
}

/// The type of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

/// A pod to ask over HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Of the pod; where it is asked about a job, of the Ingestion.
    pub uid: String,
    /// Changes when a container was started anew: what it answered before holds no longer.
    pub life: i32,
    /// `http://<address>:<port>`.
    pub url: String,
    pub question: Question,
    /// What it answered before this operator was started.
    pub known: Vec<ModelAnswer>,
}

impl Target {
    /// Whether asking the one is asking the other.
    pub fn is(&self, other: &Self) -> bool {
        (&self.uid, self.life, &self.url, &self.question)
            == (&other.uid, other.life, &other.url, &other.question)
    }
}

/// What to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A worker of the embedder: `/info`.
    Worker,
    /// An Ollama instance: whether it lists these models and they answer.
    Models(Arc<[String]>),
    /// A pod in which a model is being pulled: how far it is.
    Pull,
    /// A DataFactory: a job of an Ingestion is to be done, or ended.
    Job(Arc<JobQuestion>),
}

/// A target at a running pod.
pub fn target(pod: &PodView, port: u16, question: Question) -> Option<Target> {
    let ip = pod.ip.as_ref()?;
    let url = if ip.contains(':') { format!("http://[{ip}]:{port}") } else { format!("http://{ip}:{port}") };
    Some(Target { uid: pod.uid.clone(), life: pod.restarts(), url, question, known: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Kind;
    use kube::core::ObjectMeta;

    #[test]
    fn what_is_said_of_a_pod_is_true_once_it_is_made() {
        let key =
            ResourceKey { kind: Kind::Reranker, namespace: "demo".to_owned(), name: "scores".to_owned() };
        let note = |made: Option<&str>| Note {
            key: key.clone(),
            uid: String::new(),
            severity: Severity::Normal,
            reason: "Placed",
            text: String::new(),
            made: made.map(str::to_owned),
        };
        let pod = |namespace: &str, name: &str| Pod {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        };
        let made = [pod("demo", "scores-0-1"), pod("other", "scores-1-1")];
        assert!(note(None).is_true(&[]) && note(Some("scores-0-1")).is_true(&made));
        assert!(!note(Some("scores-1-1")).is_true(&made), "that of another namespace");
    }
}
