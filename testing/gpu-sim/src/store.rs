//! The state file: reads that never see half a file, and changes one after another.
//!
//! A change is made under a lock on a neighboring file and lands by a rename, so readers need no lock.

use crate::state::State;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// Variable that names the state file.
pub const STATE_VARIABLE: &str = "PRINCIPIUM_SIM_STATE";

/// State file where [`STATE_VARIABLE`] names none.
pub const DEFAULT_STATE_PATH: &str = "/var/lib/principium/simulation/gpus.json";

/// What can go wrong with the simulated GPUs.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The file system refused.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was being done, for example `read`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The state file holds something else than a state.
    #[error(
        "the state file {path} is not valid at line {}, column {}: {source}; correct it, or start anew with `reset`",
        source.line(), source.column()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A GPU has more memory reserved than it has.
    #[error(
        "the state file {path} says that GPU {gpu} reserves more memory than it has; correct it, or start anew with `reset`"
    )]
    Impossible {
        /// The file.
        path: PathBuf,
        /// Position of the GPU.
        gpu: usize,
    },
    /// The command names something that is not there, or asks for nothing.
    #[error("{0}")]
    Command(String),
}

impl SimError {
    pub(crate) fn file<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<'a> {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}

/// The state file that the environment names, else the default one.
#[must_use]
pub fn state_path() -> PathBuf {
    std::env::var_os(STATE_VARIABLE)
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_STATE_PATH), PathBuf::from)
}

/// The name that the default UUIDs are made from: `NODE_NAME`, else the host's name.
#[must_use]
pub fn node_name() -> String {
    std::env::var("NODE_NAME")
        .ok()
        .filter(|name| !name.is_empty())
        .or_else(|| fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map_or_else(|| "node".into(), |name| name.trim().to_owned())
}

/// The state in `path`; the defaults where there is no such file.
///
/// # Errors
/// If the file cannot be read or holds no valid state.
pub fn load(path: &Path) -> Result<State, SimError> {
    match fs::read(path) {
        Ok(bytes) => parse(path, &bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(State::default_for_node(&node_name())),
        Err(error) => Err(SimError::file("read", path)(error)),
    }
}

/// Changes the state in `path` and returns it as it is then. Nothing is written when `change` fails.
///
/// # Errors
/// If the file cannot be read, is not valid or cannot be written, or if `change` fails.
pub fn update(
    path: &Path,
    change: impl FnOnce(&mut State) -> Result<(), SimError>,
) -> Result<State, SimError> {
    let _lock = lock(path)?;
    let mut state = load(path)?;
    change(&mut state)?;
    write(path, &state)?;
    Ok(state)
}

/// Puts `state` in place of whatever `path` holds, valid or not.
///
/// # Errors
/// If the file cannot be written.
pub fn replace(path: &Path, state: &State) -> Result<(), SimError> {
    let _lock = lock(path)?;
    write(path, state)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<State, SimError> {
    let state: State = serde_json::from_slice(bytes)
        .map_err(|source| SimError::Corrupt { path: path.to_owned(), source })?;
    match state.gpus.iter().position(|gpu| gpu.memory_reserved_mib > gpu.memory_total_mib) {
        Some(gpu) => Err(SimError::Impossible { path: path.to_owned(), gpu }),
        None => Ok(state),
    }
}

/// Holds the lock until the returned file is dropped.
fn lock(path: &Path) -> Result<File, SimError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(SimError::file("create the directory", directory))?;
    }
    let lock_path = with_suffix(path, ".lock");
    let lock = File::create(&lock_path).map_err(SimError::file("create the lock file", &lock_path))?;
    lock.lock().map_err(SimError::file("lock", &lock_path))?;
    Ok(lock)
}

fn write(path: &Path, state: &State) -> Result<(), SimError> {
    let new_path = with_suffix(path, ".new");
    let mut json = serde_json::to_vec_pretty(state)
        .map_err(|source| SimError::Corrupt { path: path.to_owned(), source })?;
    json.push(b'\n');
    let mut file = File::create(&new_path).map_err(SimError::file("create", &new_path))?;
    file.write_all(&json).and_then(|()| file.sync_all()).map_err(SimError::file("write", &new_path))?;
    fs::rename(&new_path, path).map_err(SimError::file("replace", path))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_eight_default_gpus_and_reading_does_not_create_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gpus.json");
        assert_eq!(load(&path).unwrap().gpus.len(), 8);
        assert!(!path.exists());
    }

    #[test]
    fn changes_from_many_threads_all_arrive_and_readers_see_whole_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/gpus.json");
        std::thread::scope(|scope| {
            for gpu in 0..4_usize {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        update(path, |state| {
                            state.gpus[gpu].memory_used_mib += 1;
                            Ok(())
                        })
                        .unwrap();
                        assert_eq!(load(path).unwrap().gpus.len(), 8);
                    }
                });
            }
        });
        let used: Vec<_> = load(&path).unwrap().gpus.iter().map(|gpu| gpu.memory_used_mib).collect();
        assert_eq!(used, [20, 20, 20, 20, 0, 0, 0, 0]);
    }

    #[test]
    fn a_corrupt_file_is_reported_with_its_place_and_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gpus.json");
        fs::write(&path, "{\"driver\": {\"loaded\": true,\n\"versoin\": \"1\"}}").unwrap();
        let error = update(&path, |_| Ok(())).unwrap_err().to_string();
        for part in ["gpus.json", "line 2", "versoin"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(fs::read_to_string(&path).unwrap().contains("versoin"));
    }

    #[test]
    fn a_failed_change_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gpus.json");
        let failed = update(&path, |state| {
            state.gpus.clear();
            Err(SimError::Command("no".into()))
        });
        assert!(failed.is_err() && !path.exists());
    }
}
