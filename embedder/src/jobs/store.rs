//! The embedded database that jobs and corpora are kept in: opening it, transactions, and what can be wrong with it. What
//! is kept of a corpus is `corpus`'s; here are the jobs.
//!
//! Every change is one transaction that is on the disk when it returns, so a process that is killed leaves the state
//! before it or after it. One process at a time has the file: the database locks it.

use super::record::JobRecord;
use crate::pipeline::DocumentRequest;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Name of the database's file in the data folder.
const FILE: &str = "jobs.redb";
/// Changes with what is kept, so that an older program does not misread a newer file.
const SCHEMA: &str = "2";
/// The format before it, which is taken over.
const FIRST_SCHEMA: &str = "1";
/// Jobs that have ended are forgotten, the oldest first, once there are more than this.
const ENDED_JOBS_KEPT: usize = 1000;

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// Jobs in the order in which they were taken.
const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("jobs");
const JOB_NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("job-numbers");
/// Documents that came with a job, by its number and their places.
const UPLOADS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("uploads");

/// Why the store can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{0} is in use by another process: one process at a time may have a data folder")]
    Locked(PathBuf),
    /// It is no database, or it is damaged.
    #[error("{path} can't be read as a job store: {message}; restore it, or move it away to begin anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the database says.
        message: String,
    },
    /// It was written by a newer program.
    #[error("{path} has format {found}, and this program reads {SCHEMA}: use the newer program")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: String,
    },
    /// No room on the disk.
    #[error("the disk of {0} is full: make room, or use a larger volume; nothing that was done is lost")]
    Full(PathBuf),
    /// The disk fails otherwise.
    #[error("{path}: {message}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        message: String,
    },
}

/// What became of a job that was asked for.
#[derive(Debug)]
pub enum Submitted {
    /// It was taken.
    New,
    /// It is there already.
    Existing(Box<JobRecord>),
    /// There is another one of this id.
    Conflict,
}

/// The open database. Its methods block.
pub struct Store {
    path: PathBuf,
    /// Empty after a failure of the disk, until it is opened again.
    database: RwLock<Option<Database>>,
}

impl Store {
    /// Opens the store in a folder, or makes it.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(FILE);
        std::fs::create_dir_all(folder).map_err(|error| io(&path, &error))?;
        let store = Self { database: RwLock::new(None), path };
        store.reopen()?;
        Ok(store)
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            let database = Database::create(&self.path).map_err(|error| self.explain(error.into()))?;
            self.prepare(&database)?;
            *slot = Some(database);
        }
        Ok(())
    }

    /// Makes the tables, so that readers find them, and checks the format.
    fn prepare(&self, database: &Database) -> Result<(), StoreError> {
        let prepare = || -> Result<Option<String>, redb::Error> {
            let transaction = database.begin_write()?;
            {
                let mut meta = transaction.open_table(META)?;
                let found = meta.get("schema")?.map(|value| value.value().to_owned());
                match found.as_deref() {
                    Some(SCHEMA) => {}
                    None | Some(FIRST_SCHEMA) => drop(meta.insert("schema", SCHEMA)?),
                    Some(newer) => return Ok(Some(newer.to_owned())),
                }
                transaction.open_table(JOBS)?;
                transaction.open_table(JOB_NUMBERS)?;
                transaction.open_table(UPLOADS)?;
                super::corpus::make_tables(&transaction)?;
                transaction.open_table(super::outbox::OUTBOX)?;
                transaction.open_table(super::outbox::FORMER)?;
                if found.as_deref() == Some(FIRST_SCHEMA) {
                    super::outbox::adopt(&transaction)?;
                }
            }
            transaction.commit()?;
            Ok(None)
        };
        match prepare().map_err(|error| self.explain(error))? {
            None => Ok(()),
            Some(found) => Err(StoreError::Newer { path: self.path.clone(), found }),
        }
    }

    /// Does some work in a transaction that is on the disk when this returns, or not done at all.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// Reads from one state of the store.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.with(|database| work(&database.begin_read()?))
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        if self.slot().is_none() {
            self.reopen()?;
        }
        let slot = self.slot();
        let Some(database) = &*slot else {
            return Err(StoreError::Io { path: self.path.clone(), message: "it was closed".to_owned() });
        };
        let result = work(database);
        drop(slot);
        result.map_err(|error| {
            if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo) {
                // It takes nothing more until it is opened again, by whoever comes next.
                *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
            self.explain(error)
        })
    }

    fn slot(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A failure of this program over the store.
    pub(super) fn broken(&self, message: &str) -> StoreError {
        StoreError::Io { path: self.path.clone(), message: message.to_owned() }
    }

    fn explain(&self, error: redb::Error) -> StoreError {
        let path = self.path.clone();
        match error {
            redb::Error::DatabaseAlreadyOpen => StoreError::Locked(path),
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                StoreError::Damaged { path, message: error.to_string() }
            }
            redb::Error::Io(error) => io(&path, &error),
            redb::Error::Corrupted(message) => StoreError::Damaged { path, message },
            other @ (redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableDoesNotExist(_)) => StoreError::Damaged { path, message: other.to_string() },
            other => StoreError::Io { path, message: other.to_string() },
        }
    }

    /// Takes a job with the documents that came with it.
    pub fn submit(&self, job: &JobRecord, documents: &[DocumentRequest]) -> Result<Submitted, StoreError> {
        self.write(|transaction| {
            let mut numbers = transaction.open_table(JOB_NUMBERS)?;
            let mut jobs = transaction.open_table(JOBS)?;
            if let Some(number) = numbers.get(job.id.as_str())? {
                let found: Option<JobRecord> =
                    jobs.get(number.value())?.map(|value| decode(value.value())).transpose()?;
                return Ok(match found {
                    Some(found) if found.spec == job.spec => Submitted::Existing(Box::new(found)),
                    _ => Submitted::Conflict,
                });
            }
            let number = jobs.last()?.map_or(0, |(number, _)| number.value() + 1);
            numbers.insert(job.id.as_str(), number)?;
            jobs.insert(number, encode(job)?.as_slice())?;
            let mut uploads = transaction.open_table(UPLOADS)?;
            for (place, document) in (0_u64..).zip(documents) {
                uploads.insert((number, place), encode(document)?.as_slice())?;
            }
            forget_old(&mut jobs, &mut numbers)?;
            Ok(Submitted::New)
        })
    }

    /// A job.
    pub fn job(&self, id: &str) -> Result<Option<JobRecord>, StoreError> {
        self.read(|transaction| {
            let Some(number) = transaction.open_table(JOB_NUMBERS)?.get(id)? else { return Ok(None) };
            transaction.open_table(JOBS)?.get(number.value())?.map(|value| decode(value.value())).transpose()
        })
    }

    /// Up to `limit` jobs that were taken before `before`, the newest first; `None` where there is no job `before`.
    pub fn jobs(&self, before: Option<&str>, limit: usize) -> Result<Option<Vec<JobRecord>>, StoreError> {
        self.read(|transaction| {
            let end = match before {
                None => u64::MAX,
                Some(id) => match transaction.open_table(JOB_NUMBERS)?.get(id)? {
                    Some(number) => number.value(),
                    None => return Ok(None),
                },
            };
            let jobs = transaction.open_table(JOBS)?;
            let newest = jobs.range(..end)?.rev().take(limit);
            newest.map(|entry| decode(entry?.1.value())).collect::<Result<_, redb::Error>>().map(Some)
        })
    }

    /// Every job that has not ended, in the order in which they were taken.
    pub fn open_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.read(|transaction| {
            let mut open = Vec::new();
            for entry in transaction.open_table(JOBS)?.iter()? {
                let job: JobRecord = decode(entry?.1.value())?;
                if !job.state.ended() {
                    open.push(job);
                }
            }
            Ok(open)
        })
    }

    /// Keeps what has changed of a job; the documents that came with it go when it has ended.
    pub fn put_job(&self, job: &JobRecord) -> Result<(), StoreError> {
        self.write(|transaction| put_job(transaction, job))
    }

    /// Forgets a job.
    pub fn forget(&self, id: &str) -> Result<(), StoreError> {
        self.write(|transaction| {
            let number = transaction.open_table(JOB_NUMBERS)?.remove(id)?.map(|number| number.value());
            if let Some(number) = number {
                transaction.open_table(JOBS)?.remove(number)?;
                drop_uploads(transaction, number)?;
            }
            Ok(())
        })
    }

    /// A document that came with a job.
    pub fn uploaded(&self, job: &str, place: u64) -> Result<Option<DocumentRequest>, StoreError> {
        self.read(|transaction| {
            let Some(number) = transaction.open_table(JOB_NUMBERS)?.get(job)? else { return Ok(None) };
            let uploads = transaction.open_table(UPLOADS)?;
            uploads.get((number.value(), place))?.map(|value| decode(value.value())).transpose()
        })
    }
}

/// Keeps what has changed of a job, as a part of a transaction.
pub(super) fn put_job(transaction: &WriteTransaction, job: &JobRecord) -> Result<(), redb::Error> {
    let number = transaction.open_table(JOB_NUMBERS)?.get(job.id.as_str())?.map(|number| number.value());
    // One that was forgotten meanwhile stays forgotten.
    let Some(number) = number else { return Ok(()) };
    transaction.open_table(JOBS)?.insert(number, encode(job)?.as_slice())?;
    if job.state.ended() {
        drop_uploads(transaction, number)?;
    }
    Ok(())
}

fn drop_uploads(transaction: &WriteTransaction, number: u64) -> Result<(), redb::Error> {
    let mut uploads = transaction.open_table(UPLOADS)?;
    uploads.retain_in((number, 0)..=(number, u64::MAX), |_, _| false)?;
    Ok(())
}

fn forget_old(
    jobs: &mut redb::Table<'_, u64, &'static [u8]>,
    numbers: &mut redb::Table<'_, &'static str, u64>,
) -> Result<(), redb::Error> {
    let mut ended = Vec::new();
    for entry in jobs.iter()? {
        let (number, job) = entry?;
        let job: JobRecord = decode(job.value())?;
        if job.state.ended() {
            ended.push((number.value(), job.id));
        }
    }
    let surplus = ended.len().saturating_sub(ENDED_JOBS_KEPT);
    for (number, id) in ended.into_iter().take(surplus) {
        jobs.remove(number)?;
        numbers.remove(id.as_str())?;
    }
    Ok(())
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::Corrupted(format!("writing an entry: {error}")))
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| redb::Error::Corrupted(format!("reading an entry: {error}")))
}

fn io(path: &Path, error: &std::io::Error) -> StoreError {
    let path = path.to_owned();
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::Full(path),
        _ => StoreError::Io { path, message: error.to_string() },
    }
}
