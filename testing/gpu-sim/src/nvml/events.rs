//! NVML's event sets: Xid events that are raised in the state file while a program waits.

use super::{Code, code, give, session, sys};
use crate::state::XidEvent;
use std::collections::BTreeSet;
use std::ffi::{c_uint, c_ulonglong};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often a waiting call looks at the state file.
const POLL: Duration = Duration::from_millis(50);

const XID: c_ulonglong = sys::nvmlEventTypeXidCriticalError as c_ulonglong;

/// What a set watches and how far it has read. Behind a lock, because a C caller may use it from several threads.
struct EventSet {
    next_event: u64,
    positions: BTreeSet<usize>,
}

/// # Safety
/// `set` is null, or came from [`nvmlEventSetCreate`] and was not freed.
unsafe fn with<T>(set: sys::nvmlEventSet_t, then: impl FnOnce(&mut EventSet) -> T) -> Result<T, Code> {
    if set.is_null() {
        return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    // SAFETY: not null, so by this function's contract made from such a box.
    let set = unsafe { &*set.cast::<Mutex<EventSet>>() };
    Ok(then(&mut set.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetCreate(set: *mut sys::nvmlEventSet_t) -> Code {
    code(session::state().and_then(|state| {
        // Events from before the set existed are not for it.
        let new = Box::new(Mutex::new(EventSet { next_event: state.next_event, positions: BTreeSet::new() }));
        // SAFETY: NVML's contract is a pointer to such a pointer.
        unsafe { give(set, Box::into_raw(new).cast()) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetFree(set: sys::nvmlEventSet_t) -> Code {
    if set.is_null() {
        return sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
    }
    // SAFETY: NVML's contract is a set that was created and is freed once.
    drop(unsafe { Box::from_raw(set.cast::<Mutex<EventSet>>()) });
    sys::nvmlReturn_enum_NVML_SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: sys::nvmlDevice_t,
    types: *mut c_ulonglong,
) -> Code {
    // SAFETY: NVML's contract is a pointer to an unsigned long long.
    code(session::gpu(device).and_then(|_| unsafe { give(types, XID) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceRegisterEvents(
    device: sys::nvmlDevice_t,
    types: c_ulonglong,
    set: sys::nvmlEventSet_t,
) -> Code {
    code(session::gpu(device).and_then(|(_, position)| {
        if types & !XID != 0 {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
        }
        // SAFETY: NVML's contract is a set that was created and not freed.
        unsafe { with(set, |set| set.positions.insert(position)) }.map(drop)
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(
    set: sys::nvmlEventSet_t,
    data: *mut sys::nvmlEventData_t,
    timeout_ms: c_uint,
) -> Code {
    let end = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
    loop {
        // SAFETY: NVML's contract is a set that was created and not freed.
        match unsafe { next(set) } {
            Ok(Some(event)) => {
                let data_now = sys::nvmlEventData_t {
                    device: session::handle(event.gpu as usize),
                    eventType: XID,
                    eventData: event.xid,
                    gpuInstanceId: event.gpu_instance.unwrap_or(c_uint::MAX),
                    computeInstanceId: event.gpu_instance.map_or(c_uint::MAX, |_| 0),
                };
                // SAFETY: NVML's contract is a pointer to such a structure.
                return code(unsafe { give(data, data_now) });
            }
            Ok(None) => {}
            Err(error) => return error,
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT;
        }
        std::thread::sleep(left.min(POLL));
    }
}

/// The next event of a GPU that the set watches, if there is one.
///
/// # Safety
/// As for [`with`].
unsafe fn next(set: sys::nvmlEventSet_t) -> Result<Option<XidEvent>, Code> {
    let state = session::state()?;
    // SAFETY: by this function's contract.
    unsafe {
        with(set, |set| {
            // A file that was started anew counts from 0 again.
            set.next_event = set.next_event.min(state.next_event);
            let event = state
                .xids
                .iter()
                .find(|event| event.event >= set.next_event && set.positions.contains(&(event.gpu as usize)))
                .copied();
            set.next_event = event.map_or(state.next_event, |event| event.event + 1);
            event
        })
    }
}
