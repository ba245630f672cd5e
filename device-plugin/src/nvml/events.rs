//! Xid events, waited for between two samples.

use super::cards::{Card, Cards};
use crate::device::Xid;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventTypeXidCriticalError};
use std::time::{Duration, Instant};

/// What NVML says where an event is about no instance.
const NO_INSTANCE: u32 = u32::MAX;

/// Waits until the next sample is due, or less: an Xid event ends the wait.
pub(super) fn wait<'nvml>(
    nvml: &'nvml Nvml,
    cards: &Cards<'nvml>,
    events: Option<EventSet<'nvml>>,
    time: Duration,
    xids: &mut Vec<Xid>,
) -> Option<EventSet<'nvml>> {
    let until = Instant::now() + time;
    let Some(events) = events.or_else(|| watch(nvml, cards)) else {
        std::thread::sleep(time);
        return None;
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // After the first event only those that are there already are taken.
        let left = if xids.is_empty() { left } else { Duration::ZERO };
        match next(nvml, &events, u32::try_from(left.as_millis()).unwrap_or(u32::MAX)) {
            Ok(event) if event.eventType == u64::from(nvmlEventTypeXidCriticalError) => {
                let (code, gpu_instance) = (event.eventData, event.gpuInstanceId);
                let uuid = card_of(event.device, cards).map(|card| card.identity.uuid.clone());
                let gpu_instance = Some(gpu_instance).filter(|instance| *instance != NO_INSTANCE);
                tracing::warn!(code, uuid, gpu_instance, "Xid event");
                xids.push(Xid { uuid, gpu_instance, code });
            }
            Ok(_) => {}
            Err(NvmlError::Timeout) => return Some(events),
            // For example because a card of the set is lost: wait the rest, then watch those that are left.
            Err(error) => {
                tracing::debug!(%error, "waiting for events failed");
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                return None;
            }
        }
    }
}

/// Watches every card that can be watched. A card that can't spoils the set, so it is made anew without that one.
fn watch<'nvml>(nvml: &'nvml Nvml, cards: &Cards<'nvml>) -> Option<EventSet<'nvml>> {
    let mut watched: Vec<_> = cards
        .open()
        .filter(|card| !card.lost)
        .filter(|card| {
            card.device
                .supported_event_types()
                .is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR))
        })
        .collect();
    while !watched.is_empty() {
        let mut set = nvml.create_event_set().ok()?;
        let mut spoiled = None;
        for (position, card) in watched.iter().enumerate() {
            match card.device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
                Ok(same) => set = same,
                Err(_) => {
                    spoiled = Some(position);
                    break;
                }
            }
            if position + 1 == watched.len() {
                return Some(set);
            }
        }
        watched.remove(spoiled?);
    }
    None
}

/// The next event. The wrapper's own call leaves out which GPU instance it is about.
#[allow(unsafe_code)]
fn next(nvml: &Nvml, events: &EventSet<'_>, timeout_ms: u32) -> Result<nvmlEventData_t, NvmlError> {
    let wait = nvml_sym(nvml.lib().nvmlEventSetWait_v2.as_ref())?;
    // SAFETY: the structure is plain data, for which all zeros are a value; the set is valid for as long as `events`
    // lives, and the call writes to the structure only.
    unsafe {
        let mut event: nvmlEventData_t = std::mem::zeroed();
        nvml_try(wait(events.handle(), &raw mut event, timeout_ms))?;
        Ok(event)
    }
}

/// The card that an event is about. A lost card no longer tells its UUID, so the handles are compared.
#[allow(unsafe_code)]
fn card_of<'card, 'nvml>(device: nvmlDevice_t, cards: &'card Cards<'nvml>) -> Option<&'card Card<'nvml>> {
    // SAFETY: the handles are only compared, and nothing is made of them.
    let handle = |card: &Card<'_>| unsafe { Device::handle(&card.device) };
    cards.open().find(|card| handle(card) == device)
}
