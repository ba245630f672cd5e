//! A pod of a slot is made or deleted: its name, its number, the actions.

use super::{Report, Settling, in_words};
use crate::actions::{Action, Plan, Write};
use crate::desired::{Desired, Slot};
use crate::finish::{Finish, finish};
use crate::placement::Placement;
use crate::pods::PodView;
use crate::resource::Role;
use principium_api::status::Assignment;

pub(super) fn latest_revision(with: &Settling<'_, '_>, slot: &Slot) -> u32 {
    let used = with.family.latest_revision(slot);
    let counted = match slot.role {
        Role::Worker => {
            usize::try_from(slot.ordinal).ok().and_then(|at| with.desired.revisions.get(at)).copied()
        }
        Role::Analyzer | Role::Puller => None,
    };
    used.max(counted.unwrap_or_default())
}

/// The name of a slot's pod; a stale cache that would make it twice meets AlreadyExists.
fn pod_name(desired: &Desired<'_>, slot: &Slot, revision: u32) -> String {
    let name = &desired.id.key.name;
    match slot.role {
        Role::Worker => format!("{name}-{}-{revision}", slot.ordinal),
        role => format!("{name}-{}-{revision}", role.label()),
    }
}

pub(super) fn create(
    with: &Settling<'_, '_>,
    slot: &Slot,
    placement: Option<&Placement>,
    failures: u32,
    report: &mut Report<'_>,
    plan: &mut Plan,
) {
    // The status counts it once it is made: one that is refused is tried again under its name, and so ever slower.
    let name = pod_name(with.desired, slot, report.revision.saturating_add(1));
    let node = placement.and_then(|placement| with.inventory.nodes.get(&placement.node));
    let mut pod = with.desired.build_pod(with.observed, slot);
    finish(
        &mut pod,
        &Finish {
            id: &with.desired.id,
            name: &name,
            role: slot.role,
            ordinal: slot.ordinal,
            template: &slot.template,
            failures,
            placement,
            injection: node.map(|node| node.injection).unwrap_or_default(),
        },
    );
    let text = match placement {
        Some(placement) => {
            let gpus = in_words(&placement.gpus);
            format!("Pod {name} gets {gpus} on node {}: {}", placement.node, placement.reason)
        }
        None => format!("Pod {name} needs no GPU"),
    };
    plan.note_made(&with.desired.id, &name, "Placed", text);
    if let Some(placement) = placement {
        report.ahead = Some(assignment(name, placement));
    }
    plan.create(with.observed, with.desired.id.key.clone(), pod);
}

pub(super) fn delete(with: &Settling<'_, '_>, pod: &PodView, plan: &mut Plan) {
    plan.actions.push(delete_action(with.desired, pod));
}

/// Deletes a pod of this resource.
pub fn delete_action(desired: &Desired<'_>, pod: &PodView) -> Action {
    Action {
        resource: desired.id.key.clone(),
        write: Write::DeletePod { name: pod.name.clone(), uid: pod.uid.clone() },
    }
}

/// Where the next pod of a slot is to be.
pub(super) fn ahead(
    with: &Settling<'_, '_>,
    slot: &Slot,
    revision: u32,
    placement: &Placement,
) -> Assignment {
    assignment(pod_name(with.desired, slot, revision.saturating_add(1)), placement)
}

fn assignment(pod: String, placement: &Placement) -> Assignment {
    Assignment {
        pod,
        node: placement.node.clone(),
        gpus: placement.gpus.clone(),
        reason: placement.reason.clone(),
    }
}
