//! NVML calls about one GPU. A lost GPU answers every one of them with `GPU_IS_LOST`, and its neighbors don't notice.

use super::{Code, code, give, give_text, session, sys};
use crate::state::{Gpu, RecoveryAction};
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_ulonglong};

const MIB: u64 = 1 << 20;

/// PCI device 2486 (GA104, RTX 3060 Ti) of vendor 10DE.
const PCI_DEVICE_ID: c_uint = 0x2486_10DE;

/// Hands the GPU behind `handle` to `answer`.
pub(super) fn with(handle: sys::nvmlDevice_t, answer: impl FnOnce(&Gpu) -> Result<(), Code>) -> Code {
    code(session::gpu(handle).and_then(|(state, position)| answer(&state.gpus[position])))
}

/// Hands the GPU behind `handle` to `answer`, or what programs see of a MIG device where it is one's handle.
fn with_any(handle: sys::nvmlDevice_t, answer: impl FnOnce(&Gpu) -> Result<(), Code>) -> Code {
    match session::mig(handle) {
        Ok((state, position, place)) => {
            let gpu = &state.gpus[position];
            let devices = gpu.mig.as_deref().unwrap_or_default();
            code(answer(&gpu.part(&devices[place])))
        }
        Err(_) => with(handle, answer),
    }
}

/// Finds a GPU and gives its handle.
///
/// # Safety
/// `device` is null, or valid for writing a handle.
unsafe fn find(device: *mut sys::nvmlDevice_t, is_it: impl Fn(usize, &Gpu) -> bool, none: Code) -> Code {
    code(session::state().and_then(|state| {
        let is_there = |(position, gpu): (usize, &Gpu)| !gpu.removed && is_it(position, gpu);
        let position = state.gpus.iter().enumerate().position(is_there).ok_or(none)?;
        let handle = session::handle(position);
        session::gpu(handle)?;
        // SAFETY: by this function's contract.
        unsafe { give(device, handle) }
    }))
}

/// # Safety
/// `text` is null, or a C string.
unsafe fn text<'a>(text: *const c_char) -> &'a str {
    if text.is_null() {
        return "";
    }
    // SAFETY: not null, so a C string by this function's contract.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or_default()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut sys::nvmlDevice_t) -> Code {
    let none = sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
    // The driver counts the cards that are there.
    let position = session::state().ok().and_then(|state| {
        let there = state.gpus.iter().enumerate().filter(|(_, gpu)| !gpu.removed);
        there.map(|(position, _)| position).nth(index as usize)
    });
    // SAFETY: NVML's contract is a pointer to a handle.
    unsafe { find(device, |candidate, _| Some(candidate) == position, none) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut sys::nvmlDevice_t) -> Code {
    // SAFETY: NVML's contract is a C string and a pointer to a handle.
    unsafe {
        let uuid = text(uuid);
        if let Some(handle) = super::mig::find(uuid) {
            return code(give(device, handle));
        }
        find(device, |_, gpu| gpu.uuid == uuid, sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    address: *const c_char,
    device: *mut sys::nvmlDevice_t,
) -> Code {
    // SAFETY: NVML's contract is a C string and a pointer to a handle.
    unsafe {
        let address = text(address);
        let none = sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
        find(device, |_, gpu| gpu.pci_address.eq_ignore_ascii_case(address), none)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetIndex(device: sys::nvmlDevice_t, index: *mut c_uint) -> Code {
    code(session::gpu(device).and_then(|(state, position)| {
        let before = state.gpus[..position].iter().filter(|gpu| !gpu.removed).count();
        // SAFETY: NVML's contract is a pointer to an unsigned int.
        unsafe { give(index, c_uint::try_from(before).unwrap_or_default()) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMinorNumber(device: sys::nvmlDevice_t, minor: *mut c_uint) -> Code {
    let position = session::position(device).and_then(|position| c_uint::try_from(position).ok());
    // SAFETY: NVML's contract is a pointer to an unsigned int.
    with(device, |_| unsafe { give(minor, position.unwrap_or_default()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: sys::nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> Code {
    // SAFETY: NVML's contract is two pointers to ints.
    with_any(device, |_| unsafe { give(major, 8).and_then(|()| give(minor, 6)) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(device: sys::nvmlDevice_t, name: *mut c_char, length: c_uint) -> Code {
    // SAFETY: NVML's contract is that the buffer holds `length` bytes.
    with_any(device, |gpu| unsafe { give_text(name, length, &gpu.product) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(device: sys::nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> Code {
    // SAFETY: NVML's contract is that the buffer holds `length` bytes.
    with_any(device, |gpu| unsafe { give_text(uuid, length, &gpu.uuid) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: sys::nvmlDevice_t,
    pci: *mut sys::nvmlPciInfo_t,
) -> Code {
    with(device, |gpu| {
        // `00000000:01:00.0`: domain, bus, device and function in hexadecimal.
        let mut numbers =
            gpu.pci_address.split([':', '.']).map(|part| c_uint::from_str_radix(part, 16).unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        let mut info = sys::nvmlPciInfo_t {
            busIdLegacy: [0; 16],
            domain: next(),
            bus: next(),
            device: next(),
            pciDeviceId: PCI_DEVICE_ID,
            pciSubSystemId: 0,
            busId: [0; 32],
        };
        let short = gpu.pci_address.strip_prefix("0000").unwrap_or(&gpu.pci_address);
        // SAFETY: the buffers are the fields of `info`, with their own lengths; `pci` is by NVML's contract a pointer
        // to such a structure.
        unsafe {
            give_text(info.busIdLegacy.as_mut_ptr(), 16, short)?;
            give_text(info.busId.as_mut_ptr(), 32, &gpu.pci_address)?;
            give(pci, info)
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: sys::nvmlDevice_t,
    memory: *mut sys::nvmlMemory_t,
) -> Code {
    with_any(device, |gpu| {
        // The first form of the call counts the driver's reserve as used.
        let info = sys::nvmlMemory_t {
            total: gpu.memory_total_mib * MIB,
            free: gpu.free_mib() * MIB,
            used: (gpu.memory_total_mib - gpu.free_mib()) * MIB,
        };
        // SAFETY: NVML's contract is a pointer to such a structure.
        unsafe { give(memory, info) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: sys::nvmlDevice_t,
    memory: *mut sys::nvmlMemory_v2_t,
) -> Code {
    with_any(device, |gpu| {
        if memory.is_null() {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by NVML's contract a pointer to such a structure, whose version the caller has set.
        let version = unsafe { (*memory).version };
        let info = sys::nvmlMemory_v2_t {
            version,
            total: gpu.memory_total_mib * MIB,
            reserved: gpu.memory_reserved_mib * MIB,
            free: gpu.free_mib() * MIB,
            used: gpu.used_mib() * MIB,
        };
        // SAFETY: as above.
        unsafe { give(memory, info) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: sys::nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut sys::nvmlProcessInfo_t,
) -> Code {
    with_any(device, |gpu| {
        if count.is_null() {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by NVML's contract a pointer to the number of elements that `infos` holds.
        let room = unsafe { *count } as usize;
        let needed = c_uint::try_from(gpu.processes.len()).unwrap_or(c_uint::MAX);
        // SAFETY: as above.
        unsafe { give(count, needed)? };
        if room < gpu.processes.len() || (infos.is_null() && needed > 0) {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
        }
        for (position, process) in gpu.processes.iter().enumerate() {
            let info = sys::nvmlProcessInfo_t {
                pid: process.pid,
                usedGpuMemory: process.memory_mib.saturating_mul(MIB),
                gpuInstanceId: process.gpu_instance.unwrap_or(c_uint::MAX),
                computeInstanceId: process.gpu_instance.map_or(c_uint::MAX, |_| 0),
            };
            // SAFETY: `infos` holds `room` elements and `position` is below it.
            unsafe { give(infos.add(position), info)? };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: sys::nvmlDevice_t,
    count: *mut c_uint,
    _infos: *mut sys::nvmlProcessInfo_t,
) -> Code {
    // SAFETY: NVML's contract is a pointer to an unsigned int. Servers draw nothing.
    with(device, |_| unsafe { give(count, 0) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEccMode(
    device: sys::nvmlDevice_t,
    current: *mut sys::nvmlEnableState_t,
    pending: *mut sys::nvmlEnableState_t,
) -> Code {
    with(device, |gpu| {
        gpu.ecc.ok_or(sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
        let enabled = sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED;
        // SAFETY: NVML's contract is two pointers to such values.
        unsafe { give(current, enabled).and_then(|()| give(pending, enabled)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: sys::nvmlDevice_t,
    kind: sys::nvmlMemoryErrorType_t,
    _counter: sys::nvmlEccCounterType_t,
    count: *mut c_ulonglong,
) -> Code {
    with(device, |gpu| {
        let ecc = gpu.ecc.ok_or(sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
        let value = match kind {
            sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED => ecc.corrected,
            sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED => ecc.uncorrected,
            _ => return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
        };
        // SAFETY: NVML's contract is a pointer to an unsigned long long.
        unsafe { give(count, value) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetNumaNodeId(device: sys::nvmlDevice_t, node: *mut c_uint) -> Code {
    // SAFETY: NVML's contract is a pointer to an unsigned int.
    with(device, |gpu| unsafe { give(node, gpu.numa_node) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryAffinity(
    device: sys::nvmlDevice_t,
    size: c_uint,
    nodes: *mut c_ulong,
    _scope: sys::nvmlAffinityScope_t,
) -> Code {
    with(device, |gpu| {
        if nodes.is_null() {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        for word in 0..size {
            let bits =
                if gpu.numa_node / c_ulong::BITS == word { 1 << (gpu.numa_node % c_ulong::BITS) } else { 0 };
            // SAFETY: by NVML's contract `nodes` holds `size` words, and `word` is below it.
            unsafe { give(nodes.add(word as usize), bits)? };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: sys::nvmlDevice_t,
    count: c_int,
    values: *mut sys::nvmlFieldValue_t,
) -> Code {
    with(device, |gpu| {
        let count = usize::try_from(count).unwrap_or_default();
        if values.is_null() || count == 0 {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by NVML's contract `count` structures whose field ids the caller has set.
        let values = unsafe { std::slice::from_raw_parts_mut(values, count) };
        for value in values {
            if value.fieldId == sys::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION {
                value.nvmlReturn = sys::nvmlReturn_enum_NVML_SUCCESS;
                value.valueType = sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT;
                value.value.uiVal = match gpu.recovery_action {
                    RecoveryAction::None => sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_NONE,
                    RecoveryAction::GpuReset => {
                        sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_GPU_RESET
                    }
                    RecoveryAction::NodeReboot => {
                        sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_NODE_REBOOT
                    }
                };
            } else {
                value.nvmlReturn = sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
            }
        }
        Ok(())
    })
}
