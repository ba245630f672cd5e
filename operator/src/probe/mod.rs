//! Asks pods over HTTP, each in a task of its own, and keeps what they answered. Planning reads the answers and never
//! waits for one; a changed answer wakes the loop.

mod http;
mod job;
mod ollama;
mod pull;
mod secrets;
mod worker;

use crate::actions::{Question, Target};
use crate::ingestion::JobAnswer;
use crate::observed::{Answers, ModelAnswer, PullProgress, WorkerInfo};
use hashbrown::HashMap;
use http::Http;
use kube::Client;
use secrets::Secrets;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

pub use http::client;

/// Asks the pods that the last plan named.
pub struct Prober {
    http: Http,
    secrets: Secrets,
    shared: Shared,
    running: HashMap<String, Asking>,
}

/// Where tasks put what they heard.
#[derive(Clone)]
struct Shared {
    answers: Arc<Mutex<Arc<Answers>>>,
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
    pub fn new(changed: Arc<Notify>, client: Client) -> Result<Self, reqwest::Error> {
        let shared = Shared { answers: Arc::default(), changed };
        Ok(Self { http: Http::new()?, secrets: Secrets::new(client), shared, running: HashMap::new() })
    }

    /// What was heard so far.
    pub fn answers(&self) -> Arc<Answers> {
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
            let task = self.ask(target.clone());
            self.running.insert(uid, Asking { target, task });
        }
    }

    fn ask(&self, target: Target) -> AbortHandle {
        let (http, shared) = (self.http.clone(), self.shared.clone());
        match target.question.clone() {
            Question::Worker => tokio::spawn(worker::ask(http, target, shared)),
            Question::Pull => tokio::spawn(pull::ask(http, target, shared)),
            Question::Models(models) => tokio::spawn(ollama::ask(http, target, models, shared)),
            Question::Job(question) => {
                tokio::spawn(job::ask(http, self.secrets.clone(), target, question, shared))
            }
        }
        .abort_handle()
    }
}

impl Shared {
    fn forget(&self, uid: &str) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = Arc::make_mut(&mut answers);
        answers.workers.remove(uid);
        answers.instances.remove(uid);
        answers.pulls.remove(uid);
        answers.jobs.remove(uid);
    }

    fn worker_said(&self, uid: &str, answer: WorkerInfo) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.workers.get(uid) != Some(&answer) {
            Arc::make_mut(&mut answers).workers.insert(uid.to_owned(), answer);
            self.changed.notify_one();
        }
    }

    /// Bytes alone are no news: percents are.
    fn pull_said(&self, uid: &str, progress: PullProgress) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let before = answers.pulls.get(uid);
        if before
            .is_none_or(|before| (&before.model, before.percent()) != (&progress.model, progress.percent()))
        {
            Arc::make_mut(&mut answers).pulls.insert(uid.to_owned(), progress);
            self.changed.notify_one();
        }
    }

    fn job_said(&self, uid: &str, answer: JobAnswer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.jobs.get(uid) != Some(&answer) {
            Arc::make_mut(&mut answers).jobs.insert(uid.to_owned(), answer);
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
            Arc::make_mut(&mut answers).instances.insert(uid.to_owned(), models);
            self.changed.notify_one();
        }
    }
}
