//! Jobs that outlive the process: documents from a request or a source, through the pipeline, into a corpus and its sink.
//!
//! One job runs at a time, in the order in which they were taken; inside it everything overlaps. `store` and `corpus` keep
//! what must not be lost, `run` is one job, `routes` the HTTP API. This file owns the queue.

mod change;
mod corpus;
mod deliver;
mod feed;
mod keep;
mod kept;
mod live;
mod metrics;
mod outbox;
mod owner;
mod record;
mod request;
mod routes;
mod run;
mod store;
#[cfg(test)]
mod tests;

pub use corpus::{CorpusRecord, DocumentRecord};
pub use metrics::JobMetrics;
pub use record::{JobRecord, Progress, State};
pub use request::JobRequest;
pub use routes::{CorpusList, DocumentList, JobList, routes};
pub(crate) use routes::{DocumentsPage, JobsPage, WhichChunks};
pub use run::Tools;
pub use store::{Store, StoreError};

use live::Live;
use record::State::{Cancelled, Queued};
use request::JobSpec;
use run::now_ms;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;
use store::Submitted;
use tokio::sync::Notify;

/// Jobs that may wait.
const LONGEST_QUEUE: usize = 1000;
/// How long nothing is begun after the store has failed.
const STORE_WAIT: Duration = Duration::from_secs(10);

/// The jobs of this process; clones share them.
#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    tools: Arc<Tools>,
    /// Jobs that have not ended, by id.
    live: Mutex<HashMap<String, Arc<Live>>>,
    changed: Notify,
    started: Once,
}

/// What became of asking for a job.
pub(crate) enum Asked {
    /// It was taken.
    Taken(Box<JobRecord>),
    /// It was taken before.
    Known(Box<JobRecord>),
    /// Another one has its id.
    Conflict,
    /// Too many wait.
    Full,
}

impl Jobs {
    /// The jobs that a store knows; nothing runs before [`Jobs::start`].
    pub fn new(tools: Tools) -> Result<Self, StoreError> {
        let open = tools.store.open_jobs()?;
        let live = open.into_iter().map(|job| (job.id.clone(), Arc::new(Live::new(job)))).collect();
        let inner = Inner {
            tools: Arc::new(tools),
            live: Mutex::new(live),
            changed: Notify::new(),
            started: Once::new(),
        };
        let jobs = Self { inner: Arc::new(inner) };
        jobs.count();
        Ok(jobs)
    }

    /// Goes on with what was under way when the process ended, and begins what waits. Once is enough.
    pub fn start(&self) {
        self.inner.started.call_once(|| {
            let jobs = self.clone();
            tokio::spawn(async move { jobs.work().await });
        });
    }

    /// What is kept.
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.tools.store
    }

    /// What jobs are run with.
    pub(crate) fn tools(&self) -> &Arc<Tools> {
        &self.inner.tools
    }

    /// Takes a job.
    pub(crate) async fn ask(
        &self,
        id: Option<String>,
        spec: JobSpec,
        documents: Vec<crate::pipeline::DocumentRequest>,
    ) -> Result<Asked, StoreError> {
        if self.live().len() >= LONGEST_QUEUE {
            return Ok(Asked::Full);
        }
        let now = now_ms();
        let record = JobRecord::new(id.unwrap_or_else(|| new_id(now)), spec, now);
        let (job, jobs) = (record.clone(), self.clone());
        let submit = move |store: &Store| {
            let submitted = store.submit(&job, &documents)?;
            if matches!(submitted, Submitted::New) {
                // Here and not behind the wait: whoever asked may be gone by then, and the job was taken.
                jobs.live().insert(job.id.clone(), Arc::new(Live::new(job)));
                jobs.count();
                jobs.inner.changed.notify_one();
            }
            Ok(submitted)
        };
        Ok(match self.store().blocking(submit).await? {
            Submitted::New => Asked::Taken(Box::new(record)),
            Submitted::Existing(found) => Asked::Known(self.now(*found).into()),
            Submitted::Conflict => Asked::Conflict,
        })
    }

    /// A job.
    pub(crate) async fn job(&self, id: &str) -> Result<Option<JobRecord>, StoreError> {
        if let Some(live) = self.find(id) {
            return Ok(Some(live.record()));
        }
        let id = id.to_owned();
        self.store().blocking(move |store| store.job(&id)).await
    }

    /// Jobs that were taken before `before`, the newest first; `None` where there is no job `before`.
    pub(crate) async fn list(
        &self,
        before: Option<String>,
        limit: usize,
    ) -> Result<Option<Vec<JobRecord>>, StoreError> {
        let found = self.store().blocking(move |store| store.jobs(before.as_deref(), limit)).await?;
        Ok(found.map(|jobs| jobs.into_iter().map(|job| self.now(job)).collect()))
    }

    /// A job that has not ended.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Live>> {
        self.live().get(id).cloned()
    }

    /// Ends a job; one that has ended is left as it is.
    pub(crate) async fn cancel(&self, id: &str) -> Result<(), StoreError> {
        let Some(live) = self.find(id) else { return Ok(()) };
        live.cancel.cancel();
        if live.record().state == Queued {
            let (now, jobs) = (now_ms(), self.clone());
            let end = move |record: &mut JobRecord| {
                // One that was begun meanwhile ends by itself.
                if record.state == Queued {
                    record.state = Cancelled;
                    record.finished_ms = Some(now);
                }
            };
            let keep = move |store: &Store, job: &JobRecord| {
                store.put_job(job)?;
                // Here and not behind the wait: whoever asked may be gone by then.
                // One that was begun counts its end itself, and one that is cancelled twice ends once.
                if job.state == Cancelled && jobs.forget_live(&job.id) && job.started_ms.is_none() {
                    jobs.tools().metrics.jobs.ended(Cancelled.name());
                }
                Ok(())
            };
            live.commit(self.store(), end, keep).await?;
        }
        Ok(())
    }

    async fn work(&self) {
        loop {
            let changed = self.inner.changed.notified();
            match self.run_next().await {
                Ok(true) => {}
                Ok(false) => changed.await,
                Err(error) => {
                    tracing::error!(%error, "the job store fails; trying again");
                    tokio::time::sleep(STORE_WAIT).await;
                }
            }
        }
    }

    /// Runs the job that has waited longest; whether there was one.
    async fn run_next(&self) -> Result<bool, StoreError> {
        let open = self.store().blocking(Store::open_jobs).await?;
        for job in open {
            let Some(live) = self.find(&job.id) else { continue };
            if live.record().state.ended() {
                continue;
            }
            let result = run::run(self.tools(), &live).await;
            if live.record().state.ended() {
                self.forget_live(&job.id);
            }
            return result.map(|()| true);
        }
        Ok(false)
    }

    fn now(&self, kept: JobRecord) -> JobRecord {
        self.find(&kept.id).map_or(kept, |live| live.record())
    }

    /// Whether it was there.
    fn forget_live(&self, id: &str) -> bool {
        let known = self.live().remove(id).is_some();
        self.count();
        known
    }

    fn count(&self) {
        let open = i64::try_from(self.live().len()).unwrap_or(i64::MAX);
        self.tools().metrics.jobs.open.set(open);
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Arc<Live>>> {
        // A panic while the lock was held left nothing half done: every change is one call.
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id that sorts by time.
fn new_id(now_ms: u64) -> String {
    // Seeded by the system anew for each.
    let random = RandomState::new().hash_one(now_ms) & 0xFFFF_FFFF;
    format!("{now_ms:012x}{random:08x}")
}
