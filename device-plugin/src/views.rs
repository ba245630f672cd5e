//! In which view a GPU stands, and when it changes: exact, as `principium.ai/gpu-<index>`, or in the generic pool. Pure.
//!
//! The kubelet counts the two views apart, so a GPU that stood in both would be given out twice. A change therefore goes
//! through a time in which the GPU is offered in neither, long enough for an allocation that was under way to arrive and
//! be seen; and it happens only while nobody holds anything of the GPU.

use principium_api::gpu_node::GpuView;
use std::time::Duration;

/// How long a GPU is offered in neither view before it changes.
pub const SETTLE: Duration = Duration::from_secs(3);

/// Where a GPU stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The view in force.
    pub view: GpuView,
    /// Since when it is to be in the other one.
    pub leaving: Option<Duration>,
    /// Whether it stood in the other view in this run. The kubelet knows its devices there, and must go on to hear that
    /// they can't be had.
    pub moved: bool,
}

impl Place {
    /// A GPU that is first seen, or was left in this view by an earlier run.
    #[must_use]
    pub fn new(view: GpuView) -> Self {
        Self { view, leaving: None, moved: false }
    }

    /// The place after a look at who holds the GPU. `free_at`: when the kubelet last said that nobody does.
    #[must_use]
    pub fn step(self, wanted: GpuView, free_at: Option<Duration>, now: Duration) -> Self {
        if self.view == wanted {
            return Self { leaving: None, ..self };
        }
        let leaving = self.leaving.unwrap_or(now);
        if free_at.is_some_and(|free_at| free_at >= leaving + SETTLE) {
            Self { view: wanted, leaving: None, moved: true }
        } else {
            Self { leaving: Some(leaving), ..self }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_changes_once_nobody_held_it_for_a_while_after_it_was_offered_to_nobody() {
        let second = Duration::from_secs;
        let mut place = Place::new(GpuView::Exact);
        for (now, free_at, view, leaving) in [
            // Held when the change is asked for, whatever was so before.
            (10, Some(9), GpuView::Exact, Some(10)),
            (12, None, GpuView::Exact, Some(10)),
            // Free, but an allocation may be under way.
            (12, Some(12), GpuView::Exact, Some(10)),
            // It was: held again, for long.
            (60, None, GpuView::Exact, Some(10)),
            (61, Some(61), GpuView::Generic, None),
            (62, Some(62), GpuView::Generic, None),
        ] {
            place = place.step(GpuView::Generic, free_at.map(second), second(now));
            assert_eq!((place.view, place.leaving), (view, leaving.map(second)), "second {now}");
        }
        assert!(place.moved);
        // Asked back, and then not.
        let leaving = place.step(GpuView::Exact, Some(second(63)), second(63));
        assert_eq!(leaving.leaving, Some(second(63)));
        assert_eq!(leaving.step(GpuView::Generic, Some(second(70)), second(70)), place);
    }
}
