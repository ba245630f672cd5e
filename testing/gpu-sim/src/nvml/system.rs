//! NVML calls about the driver and the whole machine.

use super::{Code, code, give, give_text, session, sys};
use std::ffi::{CStr, c_char, c_int, c_uint};

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Code {
    code(session::init())
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    code(session::init())
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Code {
    code(session::shutdown())
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(result: Code) -> *const c_char {
    let text: &'static CStr = match result {
        sys::nvmlReturn_enum_NVML_SUCCESS => c"Success",
        sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED => c"Uninitialized",
        sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT => c"Invalid Argument",
        sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED => c"Not Supported",
        sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND => c"Not Found",
        sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE => c"Insufficient Size",
        sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED => c"Driver Not Loaded",
        sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT => c"Timeout",
        sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST => c"GPU is lost",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> Code {
    // SAFETY: NVML's contract is that the buffer holds `length` bytes.
    code(session::state().and_then(|state| unsafe { give_text(version, length, &state.driver.version) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> Code {
    code(session::state().and_then(|state| {
        let text = format!("{}.{}", state.driver.cuda_version / 1000, state.driver.version);
        // SAFETY: NVML's contract is that the buffer holds `length` bytes.
        unsafe { give_text(version, length, &text) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> Code {
    // SAFETY: NVML's contract is a pointer to an int.
    code(session::state().and_then(|state| unsafe { give(version, state.driver.cuda_version) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> Code {
    // SAFETY: the caller's contract is the same.
    unsafe { nvmlSystemGetCudaDriverVersion(version) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetProcessName(pid: c_uint, name: *mut c_char, length: c_uint) -> Code {
    code(session::state().and_then(|state| {
        let known = state.gpus.iter().flat_map(|gpu| &gpu.processes).any(|process| process.pid == pid);
        if !known {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND);
        }
        // SAFETY: NVML's contract is that the buffer holds `length` bytes.
        unsafe { give_text(name, length, &format!("simulated-process-{pid}")) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Code {
    code(session::state().and_then(|state| {
        let gpus =
            c_uint::try_from(state.gpus.iter().filter(|gpu| !gpu.removed).count()).unwrap_or(c_uint::MAX);
        // SAFETY: NVML's contract is a pointer to an unsigned int.
        unsafe { give(count, gpus) }
    }))
}
