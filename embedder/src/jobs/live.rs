//! A job that has not ended: its record, which whoever watches sees change, and the word that it shall end.

use super::record::JobRecord;
use super::store::{Store, StoreError};
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

/// A job under way or waiting.
pub struct Live {
    record: watch::Sender<JobRecord>,
    /// Says that somebody wants it to end.
    pub cancel: CancellationToken,
    /// Held over a change of the record and its way to the disk, so that no older record follows a newer one there.
    writing: Arc<Mutex<()>>,
}

impl Live {
    /// A job as it is kept.
    pub fn new(record: JobRecord) -> Self {
        Self { record: watch::Sender::new(record), cancel: CancellationToken::new(), writing: Arc::default() }
    }

    /// The job as it is now.
    pub fn record(&self) -> JobRecord {
        self.record.borrow().clone()
    }

    /// The job as it changes.
    pub fn watch(&self) -> watch::Receiver<JobRecord> {
        self.record.subscribe()
    }

    /// Changes what need not outlive the process.
    pub fn note(&self, change: impl FnOnce(&mut JobRecord)) {
        self.record.send_modify(change);
    }

    /// Changes the record, and keeps it together with what belongs to the change; where that fails, nothing has changed. What was
    /// begun goes on when nobody waits for it any more, and the next change waits for its end: so nothing is kept of a job after
    /// the change that ends it, and the next job finds all that it has done.
    pub async fn commit(
        &self,
        store: &Arc<Store>,
        change: impl Fn(&mut JobRecord) + Send + 'static,
        keep: impl FnOnce(&Store, &JobRecord) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        // Before the work is handed over: what still waits when its job is cancelled is never done.
        let guard = self.writing.clone().lock_owned().await;
        let record = self.record.clone();
        store
            .blocking(move |store| {
                let mut next = record.borrow().clone();
                change(&mut next);
                keep(store, &next)?;
                // Not `next` itself: something may have been noted meanwhile.
                record.send_modify(change);
                drop(guard);
                Ok(())
            })
            .await
    }
}

impl Store {
    /// Does blocking work beside the threads that serve.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|error| Err(self.broken(&error.to_string())))
    }
}
