//! NVML's C API over the state file: what a program finds when it loads this crate's `cdylib` as `libnvidia-ml.so.1`.
//!
//! Types and codes are NVML's own, from `nvml-wrapper-sys`. Every call sees the state file as it is at that moment. The
//! functions that a GPU monitor uses are there; a program that asks for another one finds the symbol missing, as with
//! an older driver.

// This is the FFI boundary: symbols without mangling, and pointers that C callers own.
#![allow(unsafe_code)]
// The names are NVML's.
#![allow(non_snake_case)]

mod device;
mod events;
mod mig;
mod sensors;
mod session;
mod system;

use nvml_wrapper_sys::bindings as sys;
use std::ffi::{c_char, c_uint};

/// An NVML error code.
type Code = sys::nvmlReturn_t;

/// NVML's answer for an outcome.
fn code(outcome: Result<(), Code>) -> Code {
    match outcome {
        Ok(()) => sys::nvmlReturn_enum_NVML_SUCCESS,
        Err(code) => code,
    }
}

/// Writes `value` where the caller wants it.
///
/// # Safety
/// `target` is null, or valid for writing a `T`.
unsafe fn give<T>(target: *mut T, value: T) -> Result<(), Code> {
    if target.is_null() {
        return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    // SAFETY: not null, so valid for writing by this function's contract.
    unsafe { target.write(value) };
    Ok(())
}

/// Writes `text` and its final zero to a buffer of `length` bytes.
///
/// # Safety
/// `target` is null, or valid for writing `length` bytes.
unsafe fn give_text(target: *mut c_char, length: c_uint, text: &str) -> Result<(), Code> {
    if target.is_null() {
        return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    // SAFETY: the buffer holds `length` bytes by this function's contract, and the text and its zero fit into them.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast::<c_char>(), target, text.len());
        target.add(text.len()).write(0);
    }
    Ok(())
}
