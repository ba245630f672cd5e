//! NVML calls about MIG: whether a GPU is divided, into what, and what a part is.

use super::{Code, code, give, session, sys};
use crate::state::MigDevice;
use std::ffi::c_uint;

/// As many MIG devices as any GPU can have.
const MOST: c_uint = 7;

/// Hands the MIG device behind `handle` to `answer`.
fn with(handle: sys::nvmlDevice_t, answer: impl FnOnce(&MigDevice) -> Result<(), Code>) -> Code {
    code(session::mig(handle).and_then(|(state, position, place)| {
        let devices = state.gpus[position].mig.as_deref().unwrap_or_default();
        answer(&devices[place])
    }))
}

/// The handle of the MIG device with this UUID.
pub(super) fn find(uuid: &str) -> Option<sys::nvmlDevice_t> {
    let state = session::state().ok()?;
    state.gpus.iter().enumerate().find_map(|(position, gpu)| {
        let place = gpu.mig.iter().flatten().position(|device| device.uuid == uuid)?;
        (!gpu.removed && !gpu.lost).then(|| session::mig_handle(position, place))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: sys::nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Code {
    code(session::gpu(device).and_then(|(state, position)| {
        // The default cards can't be divided; one that was told to be can.
        state.gpus[position].mig.as_ref().ok_or(sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
        let on = sys::NVML_DEVICE_MIG_ENABLE;
        // SAFETY: NVML's contract is two pointers to unsigned ints.
        unsafe { give(current, on).and_then(|()| give(pending, on)) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: sys::nvmlDevice_t, count: *mut c_uint) -> Code {
    code(session::gpu(device).and_then(|(state, position)| {
        let most = if state.gpus[position].mig.is_some() { MOST } else { 0 };
        // SAFETY: NVML's contract is a pointer to an unsigned int.
        unsafe { give(count, most) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: sys::nvmlDevice_t,
    index: c_uint,
    part: *mut sys::nvmlDevice_t,
) -> Code {
    code(session::gpu(device).and_then(|(state, position)| {
        let gpu = &state.gpus[position];
        let devices = gpu.mig.as_ref().ok_or(sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
        let place = index as usize;
        if place >= devices.len() {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND);
        }
        // SAFETY: NVML's contract is a pointer to a handle.
        unsafe { give(part, session::mig_handle(position, place)) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    part: sys::nvmlDevice_t,
    device: *mut sys::nvmlDevice_t,
) -> Code {
    // SAFETY: NVML's contract is a pointer to a handle.
    with(part, |_| unsafe { give(device, session::parent(part)) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(device: sys::nvmlDevice_t, is_mig: *mut c_uint) -> Code {
    let answer = c_uint::from(session::mig(device).is_ok());
    // SAFETY: NVML's contract is a pointer to an unsigned int.
    code(session::state().and_then(|_| unsafe { give(is_mig, answer) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: sys::nvmlDevice_t, id: *mut c_uint) -> Code {
    // SAFETY: NVML's contract is a pointer to an unsigned int.
    with(device, |part| unsafe { give(id, part.gpu_instance) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(device: sys::nvmlDevice_t, id: *mut c_uint) -> Code {
    // SAFETY: NVML's contract is a pointer to an unsigned int. Each GPU instance has one compute instance.
    with(device, |_| unsafe { give(id, 0) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetAttributes_v2(
    device: sys::nvmlDevice_t,
    attributes: *mut sys::nvmlDeviceAttributes_t,
) -> Code {
    with(device, |part| {
        let slices = part.profile.slices;
        let info = sys::nvmlDeviceAttributes_t {
            // Of the 38 that an RTX 3060 Ti has.
            multiprocessorCount: slices * 38 / MOST,
            sharedCopyEngineCount: 1,
            sharedDecoderCount: 0,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: slices,
            computeInstanceSliceCount: slices,
            memorySizeMB: part.profile.memory_gib << 10,
        };
        // SAFETY: NVML's contract is a pointer to such a structure.
        unsafe { give(attributes, info) }
    })
}
