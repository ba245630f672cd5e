//! Which index a GPU has: given by PCI address at first sight and kept, whatever the driver's own order is later.
//!
//! A pod's spec names a GPU by index, so an index must not slide when a card is pulled or dies: a missing card leaves a
//! gap. The memory is a file beside the kubelet's plugin sockets, not the GPUNode: the kubelet starts pods without an
//! API server, and a node that is deleted and made again still has the same slots.

use crate::device::Identity;
use crate::health::Kept;
use principium_api::gpu_node::GpuView;
use principium_api::names;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// Every GPU that this node has or had, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// The boot of the node that `kept` was written in.
    boot_id: String,
    gpus: BTreeMap<u32, Known>,
}

/// What is remembered of one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    /// The card, as it was last seen.
    pub identity: Identity,
    /// Why it is withheld.
    #[serde(default)]
    pub kept: Kept,
    /// The view that it stands in; absent before it was first offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<GpuView>,
}

impl Registry {
    /// An empty registry of this boot.
    #[must_use]
    pub fn new(boot_id: String) -> Self {
        Self { boot_id, gpus: BTreeMap::new() }
    }

    /// The GPUs in order of index.
    pub fn gpus(&self) -> impl Iterator<Item = (u32, &Known)> {
        self.gpus.iter().map(|(index, known)| (*index, known))
    }

    /// Index of the card with this UUID.
    #[must_use]
    pub fn index_of(&self, uuid: &str) -> Option<u32> {
        self.gpus.iter().find(|(_, known)| known.identity.uuid == uuid).map(|(index, _)| *index)
    }

    /// Gives every card that was seen its index: the one that its slot has, else the next free one, in order of slots. A
    /// MIG device gets one of its GPU's. A card that is in another slot now has the index of that one; what it had stays as
    /// a gap.
    pub fn admit<'a>(&mut self, seen: impl IntoIterator<Item = &'a Identity>) {
        let mut seen: Vec<_> = seen.into_iter().map(|identity| (identity.slot(), identity)).collect();
        // A GPU's slot comes before those of its parts.
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        for (index, known) in &mut self.gpus {
            let Identity { uuid, .. } = &known.identity;
            let mut now = seen.iter().filter(|(_, identity)| identity.uuid == *uuid).peekable();
            if now.peek().is_some() && !now.any(|(slot, _)| *slot == known.identity.slot()) {
                tracing::warn!(index, uuid, "this GPU is in another slot now, and has the index of that one");
                // One card under two indices would be offered twice.
                known.identity.uuid = gone(*index);
            }
        }
        for (slot, identity) in seen {
            match self.gpus.values_mut().find(|known| known.identity.slot() == slot) {
                Some(known) if known.identity.uuid == identity.uuid => known.identity.clone_from(identity),
                // Another card in the same slot: its own health, the slot's index and view.
                Some(known) => {
                    *known = Known { identity: identity.clone(), kept: Kept::default(), view: known.view };
                }
                None => {
                    if let Some(index) = self.next_index(identity) {
                        let known = Known { identity: identity.clone(), ..Known::default() };
                        self.gpus.insert(index, known);
                    } else {
                        tracing::warn!(
                            uuid = identity.uuid,
                            "no index is left for this GPU, so it is not offered"
                        );
                    }
                }
            }
        }
    }

    fn next_index(&self, identity: &Identity) -> Option<u32> {
        let after = |last: Option<u32>| last.map_or(0, |last| last + 1);
        let places = self.gpus.keys().map(|index| (*index, names::mig_place(*index)));
        match &identity.part {
            None => {
                let gpus = places.filter_map(|(index, place)| place.is_none().then_some(index));
                Some(after(gpus.max())).filter(|index| names::mig_place(*index).is_none())
            }
            Some(part) => {
                let parent = self.index_of(&part.of)?;
                let numbers = places.filter_map(|(_, place)| place.filter(|place| place.0 == parent));
                names::mig_index(parent, after(numbers.map(|(_, number)| number).max()))
            }
        }
    }

    /// Forgets a MIG device that was taken apart.
    pub fn forget(&mut self, index: u32) {
        self.gpus.remove(&index);
    }

    /// Remembers in which view a GPU stands.
    pub fn place(&mut self, index: u32, view: GpuView) {
        if let Some(known) = self.gpus.get_mut(&index) {
            known.view = Some(view);
        }
    }

    /// Remembers why a GPU is withheld.
    pub fn keep(&mut self, index: u32, kept: Kept) {
        if let Some(known) = self.gpus.get_mut(&index) {
            known.kept = kept;
        }
    }

    /// What an earlier run knew. After a reboot the cards keep their indices and lose their failures.
    fn resumed(mut self, boot_id: &str) -> Self {
        if self.boot_id != boot_id {
            boot_id.clone_into(&mut self.boot_id);
            self.gpus.values_mut().for_each(|known| known.kept = Kept::default());
        }
        self
    }
}

/// Stands for the UUID of a card whose slot is empty and that has another index by now. No card answers to it, and no two
/// indices share it.
fn gone(index: u32) -> String {
    format!("gone-{index}")
}

/// The registry's file.
#[derive(Clone, Debug)]
pub struct RegistryFile {
    path: PathBuf,
}

/// Why the registry could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the plugin's memory {path}: {source}")]
pub struct RegistryError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl RegistryFile {
    /// The file in this directory. Simulated cards have one of their own, so that they never mix with real ones.
    #[must_use]
    pub fn new(directory: &Path, simulated: bool) -> Self {
        Self { path: directory.join(if simulated { "simulated-gpus.json" } else { "gpus.json" }) }
    }

    /// What an earlier run wrote, or an empty registry.
    ///
    /// # Errors
    /// If there is a file that cannot be read. The caller then starts anew, and says so.
    pub fn load(&self, boot_id: &str) -> Result<Registry, RegistryError> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice::<Registry>(&bytes)
                .map(|registry| registry.resumed(boot_id))
                .map_err(|source| self.error("understand", source.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Registry::new(boot_id.to_owned())),
            Err(error) => Err(self.error("read", error)),
        }
    }

    /// Writes the registry whole or not at all.
    ///
    /// # Errors
    /// If the directory or the file cannot be written.
    pub fn save(&self, registry: &Registry) -> Result<(), RegistryError> {
        let write = || {
            if let Some(directory) = self.path.parent() {
                fs::create_dir_all(directory)?;
            }
            let new = self.path.with_extension("json.new");
            let mut file = fs::File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(registry)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|source| self.error("write", source))
    }

    fn error(&self, action: &'static str, source: io::Error) -> RegistryError {
        RegistryError { action, path: self.path.clone(), source }
    }
}

/// Identifies the running boot of the node.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Part;
    use crate::health::Mark;
    use principium_api::gpu_node::WithheldReason;

    fn card(slot: u32, uuid: &str) -> Identity {
        Identity {
            uuid: uuid.into(),
            pci_address: format!("00000000:{slot:02X}:00.0"),
            ..Identity::default()
        }
    }

    fn indices(registry: &Registry) -> Vec<(u32, &str)> {
        registry.gpus().map(|(index, known)| (index, known.identity.uuid.as_str())).collect()
    }

    fn failed() -> Kept {
        let mark = Mark { message: "Xid 79".into(), since: jiff::Timestamp::UNIX_EPOCH };
        Kept { heat: None, failure: Some((WithheldReason::Xid, mark)) }
    }

    #[test]
    fn indices_follow_the_slots_and_a_missing_card_leaves_a_gap() {
        let mut registry = Registry::new("boot".into());
        registry.admit(&[card(3, "c"), card(1, "a"), card(2, "b")]);
        assert_eq!(indices(&registry), [(0, "a"), (1, "b"), (2, "c")]);
        // b is pulled, d appears in a slot before all others.
        registry.admit(&[card(0, "d"), card(1, "a"), card(3, "c")]);
        assert_eq!(indices(&registry), [(0, "a"), (1, "b"), (2, "c"), (3, "d")]);
        assert_eq!((registry.index_of("c"), registry.index_of("x")), (Some(2), None));
    }

    #[test]
    fn a_card_in_another_slot_has_the_index_of_that_one_and_leaves_a_gap() {
        let mut registry = Registry::new("boot".into());
        registry.admit(&[card(1, "a"), card(2, "b")]);
        registry.admit(&[card(2, "b"), card(7, "a")]);
        assert_eq!(indices(&registry), [(0, "gone-0"), (1, "b"), (2, "a")]);
        assert_eq!(registry.index_of("a"), Some(2), "under one index");
        // Back where it was.
        registry.admit(&[card(1, "a"), card(2, "b")]);
        assert_eq!(indices(&registry), [(0, "a"), (1, "b"), (2, "gone-2")]);
        // Two that changed places.
        registry.admit(&[card(1, "b"), card(2, "a")]);
        assert_eq!(indices(&registry), [(0, "b"), (1, "a"), (2, "gone-2")]);
    }

    #[test]
    fn a_registry_that_has_a_card_twice_is_put_right() {
        let twice = [(0, card(1, "a")), (1, card(7, "a"))];
        let known = twice.map(|(index, identity)| (index, Known { identity, ..Known::default() }));
        let mut registry = Registry { boot_id: "boot".into(), gpus: known.into() };
        registry.admit(&[card(7, "a")]);
        assert_eq!(indices(&registry), [(0, "gone-0"), (1, "a")]);
    }

    #[test]
    fn another_card_in_the_same_slot_takes_the_index_and_not_the_failure() {
        let mut registry = Registry::new("boot".into());
        registry.admit(&[card(1, "a"), card(2, "b")]);
        registry.keep(0, failed());
        registry.keep(1, failed());
        registry.admit(&[card(1, "new"), card(2, "b")]);
        let kept: Vec<_> = registry.gpus().map(|(_, known)| known.kept.failure.is_some()).collect();
        assert_eq!((indices(&registry), kept), (vec![(0, "new"), (1, "b")], vec![false, true]));
    }

    #[test]
    fn a_restart_remembers_failures_and_a_reboot_only_indices() {
        let directory = tempfile::tempdir().unwrap();
        let file = RegistryFile::new(&directory.path().join("principium"), false);
        assert_eq!(file.load("boot 1").unwrap(), Registry::new("boot 1".into()));
        let mut registry = Registry::new("boot 1".into());
        registry.admit(&[card(1, "a"), card(2, "b")]);
        registry.keep(1, failed());
        file.save(&registry).unwrap();
        assert_eq!(file.load("boot 1").unwrap(), registry);
        let rebooted = file.load("boot 2").unwrap();
        assert_eq!(indices(&rebooted), indices(&registry));
        assert!(rebooted.gpus().all(|(_, known)| known.kept == Kept::default()));
    }

    #[test]
    fn a_file_that_is_no_registry_is_reported_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("gpus.json"), "{").unwrap();
        let error = RegistryFile::new(directory.path(), false).load("boot").unwrap_err().to_string();
        assert!(error.contains("gpus.json"), "{error}");
    }
    #[test]
    fn mig_devices_have_indices_of_their_gpu_and_are_forgotten_when_told() {
        let part = |of: u32, gpu_instance, uuid: &str| Identity {
            part: Some(Part { of: format!("GPU-{of}"), gpu_instance, compute_instance: 0 }),
            ..card(of, uuid)
        };
        let mut registry = Registry::new("boot".into());
        registry.admit(&[
            part(2, 9, "y"),
            part(1, 3, "x"),
            part(2, 1, "z"),
            card(2, "GPU-2"),
            card(1, "GPU-1"),
        ]);
        let all = [(0, "GPU-1"), (1, "GPU-2"), (100, "x"), (200, "z"), (201, "y")];
        assert_eq!(indices(&registry), all);
        registry.forget(200);
        let mut moved = registry.clone();
        moved.admit(&[
            card(1, "GPU-1"),
            card(9, "GPU-2"),
            Identity { pci_address: card(9, "").pci_address, ..part(2, 9, "y") },
        ]);
        assert_eq!(
            indices(&moved),
            [(0, "GPU-1"), (1, "gone-1"), (2, "GPU-2"), (100, "x"), (201, "gone-201"), (300, "y")],
            "a GPU takes its parts along"
        );
        registry.admit(&[part(2, 5, "new"), card(3, "GPU-3")]);
        assert_eq!(
            indices(&registry),
            [(0, "GPU-1"), (1, "GPU-2"), (2, "GPU-3"), (100, "x"), (201, "y"), (202, "new")]
        );
    }
}
