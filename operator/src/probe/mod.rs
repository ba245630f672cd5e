//! Asks pods over HTTP, each in a task of its own, and keeps what they answered. Planning reads the answers and never
//! waits for one; a changed answer wakes the loop.

mod http;
mod ollama;
mod worker;

use crate::actions::{Question, Target};
use crate::observed::{Answers, ModelAnswer, WorkerInfo};
pub use http::{Http, HttpError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Asks the pods that the last plan named.
pub struct Prober {
    http: Http,
    shared: Shared,
    running: HashMap<String, Asking>,
}

/// Where tasks put what they heard.
#[derive(Clone)]
struct Shared {
    answers: Arc<Mutex<Answers>>,
    changed: Arc<Notify>,
}

struct Asking {
    target: Target,
    task: AbortHandle,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Prober {
    /// Wakes through `changed`.
    pub fn new(changed: Arc<Notify>) -> Result<Self, reqwest::Error> {
        let shared = Shared { answers: Arc::default(), changed };
        Ok(Self { http: Http::new()?, shared, running: HashMap::new() })
    }

    /// What was heard so far.
    pub fn answers(&self) -> Answers {
        self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks exactly these from now on.
    pub fn follow(&mut self, targets: Vec<Target>) {
        let wanted: HashMap<String, Target> =
            targets.into_iter().map(|target| (target.uid.clone(), target)).collect();
        let gone: Vec<String> =
            self.running.keys().filter(|uid| !wanted.contains_key(*uid)).cloned().collect();
        for uid in gone {
            self.running.remove(&uid);
            self.shared.forget(&uid);
        }
        for (uid, target) in wanted {
            match self.running.get(&uid) {
                Some(asking) if asking.target.is(&target) => continue,
                // A container that was started anew has to answer anew.
                Some(asking) if asking.target.life != target.life => self.shared.forget(&uid),
                Some(_) | None => {}
            }
            self.shared.recall(&uid, &target.known);
            let task = self.ask(target.clone());
            self.running.insert(uid, Asking { target, task });
        }
    }

    fn ask(&self, target: Target) -> AbortHandle {
        let (http, shared) = (self.http.clone(), self.shared.clone());
        match target.question.clone() {
            Question::Worker => tokio::spawn(worker::ask(http, target, shared)),
            Question::Models(models) => tokio::spawn(ollama::ask(http, target, models, shared)),
        }
        .abort_handle()
    }
}

impl Shared {
    fn forget(&self, uid: &str) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.workers.remove(uid);
        answers.instances.remove(uid);
    }

    /// Begins with what was answered before this operator was started.
    fn recall(&self, uid: &str, known: &[ModelAnswer]) {
        if !known.is_empty() {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.instances.entry(uid.to_owned()).or_insert_with(|| known.to_vec());
        }
    }

    fn worker_said(&self, uid: &str, answer: WorkerInfo) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.workers.get(uid) != Some(&answer) {
            answers.workers.insert(uid.to_owned(), answer);
            self.changed.notify_one();
        }
    }

    fn models(&self, uid: &str) -> Vec<ModelAnswer> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.instances.get(uid).cloned().unwrap_or_default()
    }

    fn instance_said(&self, uid: &str, models: Vec<ModelAnswer>) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.instances.get(uid) != Some(&models) {
            answers.instances.insert(uid.to_owned(), models);
            self.changed.notify_one();
        }
    }
}
