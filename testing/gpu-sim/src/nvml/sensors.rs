//! NVML calls about what a GPU measures: temperature, power, fan, load, and why it slows down.

use super::device::with;
use super::{Code, give, sys};
use crate::state::{Gpu, Sensors};
use std::ffi::{c_int, c_uint, c_ulonglong};

/// What a sensor says, if the card has one and it works.
fn measured<T>(gpu: &Gpu, value: T) -> Result<T, Code> {
    match gpu.sensors {
        Sensors::Working => Ok(value),
        Sensors::Unsupported => Err(sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
        Sensors::Failing => Err(sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: sys::nvmlDevice_t,
    sensor: sys::nvmlTemperatureSensors_t,
    temperature: *mut c_uint,
) -> Code {
    with(device, |gpu| {
        if sensor != sys::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        // SAFETY: NVML's contract is a pointer to an unsigned int.
        unsafe { give(temperature, measured(gpu, gpu.temperature)?) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperatureV(
    device: sys::nvmlDevice_t,
    temperature: *mut sys::nvmlTemperature_t,
) -> Code {
    with(device, |gpu| {
        let value = c_int::try_from(measured(gpu, gpu.temperature)?).unwrap_or(c_int::MAX);
        if temperature.is_null() {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by NVML's contract a pointer to such a structure.
        unsafe { (*temperature).temperature = value };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperatureThreshold(
    device: sys::nvmlDevice_t,
    threshold: sys::nvmlTemperatureThresholds_t,
    temperature: *mut c_uint,
) -> Code {
    with(device, |gpu| {
        let value = match threshold {
            sys::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SHUTDOWN => {
                gpu.shutdown_temperature
            }
            sys::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SLOWDOWN => {
                gpu.slowdown_temperature
            }
            _ => return Err(sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
        };
        // SAFETY: NVML's contract is a pointer to an unsigned int.
        unsafe { give(temperature, value) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: sys::nvmlDevice_t, milliwatts: *mut c_uint) -> Code {
    // SAFETY: NVML's contract is a pointer to an unsigned int.
    with(device, |gpu| unsafe { give(milliwatts, measured(gpu, gpu.power.saturating_mul(1000))?) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(
    device: sys::nvmlDevice_t,
    milliwatts: *mut c_uint,
) -> Code {
    // SAFETY: NVML's contract is a pointer to an unsigned int.
    with(device, |gpu| unsafe { give(milliwatts, gpu.power_limit.saturating_mul(1000)) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerManagementLimit(
    device: sys::nvmlDevice_t,
    milliwatts: *mut c_uint,
) -> Code {
    // SAFETY: the caller's contract is the same.
    unsafe { nvmlDeviceGetEnforcedPowerLimit(device, milliwatts) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetNumFans(device: sys::nvmlDevice_t, fans: *mut c_uint) -> Code {
    // SAFETY: NVML's contract is a pointer to an unsigned int.
    with(device, |gpu| unsafe { give(fans, c_uint::from(gpu.fan.is_some())) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetFanSpeed_v2(
    device: sys::nvmlDevice_t,
    fan: c_uint,
    percent: *mut c_uint,
) -> Code {
    with(device, |gpu| match (fan, gpu.fan) {
        // SAFETY: NVML's contract is a pointer to an unsigned int.
        (0, Some(speed)) => unsafe { give(percent, measured(gpu, speed)?) },
        (_, Some(_)) => Err(sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
        (_, None) => Err(sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetFanSpeed(device: sys::nvmlDevice_t, percent: *mut c_uint) -> Code {
    // SAFETY: the caller's contract is the same.
    unsafe { nvmlDeviceGetFanSpeed_v2(device, 0, percent) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: sys::nvmlDevice_t,
    utilization: *mut sys::nvmlUtilization_t,
) -> Code {
    with(device, |gpu| {
        let used = c_uint::try_from(gpu.used_mib() * 100 / gpu.memory_total_mib.max(1)).unwrap_or(100);
        measured(gpu, ())?;
        // SAFETY: NVML's contract is a pointer to such a structure.
        unsafe {
            give(
                utilization,
                sys::nvmlUtilization_t { gpu: gpu.utilization, memory: used.min(gpu.utilization) },
            )
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCurrentClocksEventReasons(
    device: sys::nvmlDevice_t,
    reasons: *mut c_ulonglong,
) -> Code {
    with(device, |gpu| {
        let mut bits = 0;
        if gpu.utilization == 0 {
            bits |= sys::nvmlClocksEventReasonGpuIdle;
        }
        if gpu.power >= gpu.power_limit {
            bits |= sys::nvmlClocksEventReasonSwPowerCap;
        }
        if gpu.temperature >= gpu.slowdown_temperature {
            bits |= sys::nvmlClocksThrottleReasonHwThermalSlowdown | sys::nvmlClocksThrottleReasonHwSlowdown;
        }
        // SAFETY: NVML's contract is a pointer to an unsigned long long.
        unsafe { give(reasons, c_ulonglong::from(bits)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: sys::nvmlDevice_t,
    reasons: *mut c_ulonglong,
) -> Code {
    // SAFETY: the caller's contract is the same; this is the call's older name.
    unsafe { nvmlDeviceGetCurrentClocksEventReasons(device, reasons) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPerformanceState(
    device: sys::nvmlDevice_t,
    state: *mut sys::nvmlPstates_t,
) -> Code {
    let busy = sys::nvmlPStates_enum_NVML_PSTATE_2;
    let idle = sys::nvmlPStates_enum_NVML_PSTATE_8;
    // SAFETY: NVML's contract is a pointer to such a value.
    with(device, |gpu| unsafe { give(state, if gpu.utilization > 0 { busy } else { idle }) })
}
