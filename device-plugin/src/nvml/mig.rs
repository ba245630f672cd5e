//! MIG: what a divided card consists of.
//!
//! A MIG device has an UUID, memory and processes of its own. Its temperature, its errors and whether it is there at all
//! are its card's, so they are taken from there.

use super::cards::{Card, MIB};
use super::ends_session;
use crate::device::{Identity, Observation, Part, Probe, Reading};
use nvml_wrapper::Device;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};

/// MIG mode is on.
const ENABLED: u32 = 1;

/// The MIG devices of a card that answers; `None` where the card is not divided.
pub(super) fn parts(
    nvml: &Nvml,
    card: &Card<'_>,
    found: &Observation,
) -> Result<Option<Vec<Observation>>, NvmlError> {
    let Probe::Answer(of_card) = &found.probe else { return Ok(None) };
    match card.device.mig_mode() {
        Ok(mode) if mode.current == ENABLED => {}
        Err(error) if ends_session(&error) => return Err(error),
        Ok(_) | Err(_) => return Ok(None),
    }
    let most = card.device.mig_device_count().unwrap_or_default();
    let mut parts = Vec::new();
    for place in 0..most {
        // Places may be empty.
        match card
            .device
            .mig_device_by_index(place)
            .and_then(|part| read(nvml, &part, &card.identity, of_card))
        {
            Ok(part) => parts.push(part),
            Err(error) if ends_session(&error) => return Err(error),
            Err(error) => tracing::trace!(place, %error, "no MIG device"),
        }
    }
    Ok(Some(parts))
}

fn read(
    nvml: &Nvml,
    part: &Device<'_>,
    card: &Identity,
    of_card: &Reading,
) -> Result<Observation, NvmlError> {
    let memory = part.memory_info()?;
    let (gpu_instance, compute_instance) = instances(nvml, part)?;
    let identity = Identity {
        uuid: part.uuid()?,
        product: part.name()?,
        memory_total_mib: memory.total / MIB,
        divided: false,
        part: Some(Part { of: card.uuid.clone(), gpu_instance, compute_instance }),
        ..card.clone()
    };
    let mine = |instance: Option<u32>| instance == Some(gpu_instance);
    let reading = Reading {
        memory_used_mib: memory.used / MIB,
        memory_free_mib: memory.free / MIB,
        // Nobody measures what one part draws, or how busy it is.
        power: None,
        utilization: None,
        processes: of_card.processes.iter().filter(|process| mine(process.gpu_instance)).copied().collect(),
        ..of_card.clone()
    };
    Ok(Observation { identity, probe: Probe::Answer(reading) })
}

/// NVML's numbers of the GPU instance and of the compute instance, which the wrapper does not ask for.
#[allow(unsafe_code)]
fn instances(nvml: &Nvml, part: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    let gpu_instance = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let compute_instance = nvml_sym(nvml.lib().nvmlDeviceGetComputeInstanceId.as_ref())?;
    let mut ids = (0, 0);
    // SAFETY: the handle is valid for as long as `part` lives, and each call writes one unsigned int.
    unsafe {
        nvml_try(gpu_instance(part.handle(), &raw mut ids.0))?;
        nvml_try(compute_instance(part.handle(), &raw mut ids.1))?;
    }
    Ok(ids)
}
