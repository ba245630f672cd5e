//! What the loaded driver remembers: whether it is initialized, and the last good state.

use super::{Code, sys};
use crate::state::{Gpu, State};
use crate::store;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Bits of a handle that tell the GPU.
const MIG_SHIFT: u32 = 16;

/// One per process, as with the real library.
static SESSION: Mutex<Session> = Mutex::new(Session { users: 0, file: None });

struct Session {
    /// Calls of `nvmlInit` that no `nvmlShutdown` has answered yet.
    users: u32,
    file: Option<StateFile>,
}

/// The state file as it was read last.
struct StateFile {
    path: PathBuf,
    version: Option<Version>,
    state: Arc<State>,
}

/// How often a call that hangs looks whether it may return.
const HANGING: Duration = Duration::from_millis(20);

/// What changes when the file does: every write is a new file that is renamed over the old one.
type Version = (u64, i64, i64, u64);

/// Starts a session, or joins the one that there is.
pub(super) fn init() -> Result<(), Code> {
    let mut session = session();
    if session.users == 0 {
        let path = store::state_path();
        let version = version(&path);
        let state = store::load(&path).map_err(|error| {
            report(&error);
            sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN
        })?;
        session.file = Some(StateFile { path, version, state: Arc::new(state) });
    }
    if !session.answer()?.driver.loaded {
        return Err(sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED);
    }
    session.users += 1;
    Ok(())
}

/// Ends what one [`init`] began.
pub(super) fn shutdown() -> Result<(), Code> {
    let mut session = session();
    session.users = session.users.checked_sub(1).ok_or(sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED)?;
    Ok(())
}

/// The state as the file has it now.
pub(super) fn state() -> Result<Arc<State>, Code> {
    let mut session = session();
    if session.users == 0 {
        return Err(sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED);
    }
    let state = session.answer()?;
    if !state.driver.loaded {
        return Err(sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED);
    }
    Ok(state)
}

/// The GPU behind a handle, if it answers. A MIG device's handle is none of a GPU.
pub(super) fn gpu(handle: sys::nvmlDevice_t) -> Result<(Arc<State>, usize), Code> {
    let state = state()?;
    let position = position(handle).ok_or(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    let gpu: &Gpu = state.gpus.get(position).ok_or(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    if gpu.lost || gpu.removed {
        return Err(sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
    }
    Ok((state, position))
}

/// The MIG device behind a handle, with its place on its GPU.
pub(super) fn mig(handle: sys::nvmlDevice_t) -> Result<(Arc<State>, usize, usize), Code> {
    let place = (handle.addr() >> MIG_SHIFT).checked_sub(1);
    let place = place.ok_or(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    let (state, position) = gpu(parent(handle))?;
    match &state.gpus[position].mig {
        Some(devices) if place < devices.len() => Ok((state, position, place)),
        _ => Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
    }
}

/// The handle of the GPU at `position`. It is opaque to callers and never read as a pointer.
pub(super) fn handle(position: usize) -> sys::nvmlDevice_t {
    std::ptr::without_provenance_mut(position + 1)
}

/// The handle of a MIG device: its place is above the number of its GPU.
pub(super) fn mig_handle(position: usize, place: usize) -> sys::nvmlDevice_t {
    std::ptr::without_provenance_mut(((place + 1) << MIG_SHIFT) | (position + 1))
}

/// The handle of the GPU that a MIG device is a part of.
pub(super) fn parent(handle: sys::nvmlDevice_t) -> sys::nvmlDevice_t {
    std::ptr::without_provenance_mut(handle.addr() & ((1 << MIG_SHIFT) - 1))
}

/// The position behind a GPU's handle.
pub(super) fn position(handle: sys::nvmlDevice_t) -> Option<usize> {
    handle.addr().checked_sub(1).filter(|position| *position < 1 << MIG_SHIFT)
}

fn session() -> MutexGuard<'static, Session> {
    // A poisoned lock means that another thread panicked; the session's fields are valid at every point.
    SESSION.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Session {
    /// The state, once the driver doesn't hang. The session is locked meanwhile: a driver that hangs answers nobody.
    fn answer(&mut self) -> Result<Arc<State>, Code> {
        loop {
            let state = self.state()?;
            if !state.driver.hangs {
                return Ok(state);
            }
            std::thread::sleep(HANGING);
        }
    }

    fn state(&mut self) -> Result<Arc<State>, Code> {
        let file = self.file.as_mut().ok_or(sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED)?;
        let version = version(&file.path);
        if version != file.version {
            // Remembered before the file is read: a file that is not valid is reported once, not at every call.
            file.version = version;
            match store::load(&file.path) {
                Ok(state) => file.state = Arc::new(state),
                Err(error) => report(&error),
            }
        }
        Ok(Arc::clone(&file.state))
    }
}

fn version(path: &Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
}

/// A C library has no other way to say what is wrong than standard error and a code.
fn report(error: &store::SimError) {
    eprintln!("simulated NVIDIA driver: {error}; the last good state stays in force");
}
