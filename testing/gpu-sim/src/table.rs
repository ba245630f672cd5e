//! The simulated GPUs as a table for people.

use crate::amount::readable;
use crate::state::{Gpu, RecoveryAction, State};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// One line a GPU, and a line about the driver where it matters.
pub(crate) fn render(state: &State) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([
            "GPU",
            "Product",
            "PCI",
            "Temperature",
            "Power",
            "Memory",
            "Busy",
            "Processes",
            "State",
        ]);
    for (position, gpu) in state.gpus.iter().enumerate() {
        table.add_row(row(state, position, gpu));
    }
    for column in [0, 3, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let trouble = match (state.driver.loaded, state.driver.hangs) {
        (false, _) => ", not loaded: NVML answers nothing",
        (true, true) => ", hangs: NVML's calls don't return",
        (true, false) => "",
    };
    format!("{table}\nDriver {} (simulated{trouble})", state.driver.version)
}

fn row(state: &State, position: usize, gpu: &Gpu) -> [String; 9] {
    let processes: Vec<_> = gpu
        .processes
        .iter()
        .map(|process| format!("{} ({})", process.pid, readable(process.memory_mib)))
        .collect();
    [
        position.to_string(),
        gpu.product.clone(),
        gpu.pci_address.clone(),
        format!("{} °C", gpu.temperature),
        format!("{} / {} W", gpu.power, gpu.power_limit),
        format!("{} / {}", readable(gpu.used_mib()), readable(gpu.memory_total_mib)),
        format!("{} %", gpu.utilization),
        if processes.is_empty() { "-".into() } else { processes.join(", ") },
        condition(state, position, gpu),
    ]
}

/// What is wrong with a card, most serious first.
fn condition(state: &State, position: usize, gpu: &Gpu) -> String {
    let last_xid =
        state.xids.iter().rev().find(|event| event.gpu as usize == position).map(|event| event.xid);
    let xid = last_xid.map(|xid| format!(" (Xid {xid})")).unwrap_or_default();
    if gpu.removed {
        return "removed".into();
    }
    if gpu.lost {
        return format!("lost{xid}");
    }
    match gpu.recovery_action {
        RecoveryAction::GpuReset => format!("needs a reset{xid}"),
        RecoveryAction::NodeReboot => format!("needs a reboot{xid}"),
        RecoveryAction::None => match gpu.ecc {
            Some(ecc) if ecc.uncorrected > 0 => format!("{} uncorrectable memory errors", ecc.uncorrected),
            _ if gpu.temperature >= gpu.slowdown_temperature => "slowed down by heat".into(),
            _ => match &gpu.mig {
                Some(devices) => {
                    let profiles: Vec<_> = devices.iter().map(|device| device.profile.to_string()).collect();
                    format!("MIG {}", profiles.join(" "))
                }
                None => "ok".into(),
            },
        },
    }
}
