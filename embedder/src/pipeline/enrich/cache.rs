//! Contexts that were given before. The key is all that the answer depends on: the whole prompt, which holds the document, the
//! chunk and the instruction, and the model with its limits.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

/// What a cache may hold unless told otherwise, in bytes.
const LIMIT: usize = 64 << 20;
/// What an entry costs beside its text, in bytes.
const ENTRY: usize = 128;

/// A key: see [`key`].
pub type Key = [u8; 32];

/// Contexts in memory; those that were not asked for longest go first.
pub struct ContextCache {
    limit: usize,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    contexts: HashMap<Key, (String, u64)>,
    /// Keys by when they were last asked for.
    order: BTreeMap<u64, Key>,
    now: u64,
    bytes: usize,
}

impl Default for ContextCache {
    fn default() -> Self {
        Self::new(LIMIT)
    }
}

impl ContextCache {
    /// A cache of so many bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, entries: Mutex::default() }
    }

    /// A context that was given before.
    pub fn get(&self, key: &Key) -> Option<String> {
        let mut guard = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = &mut *guard;
        entries.now += 1;
        let (context, used) = entries.contexts.get_mut(key)?;
        entries.order.remove(used);
        *used = entries.now;
        entries.order.insert(entries.now, *key);
        Some(context.clone())
    }

    /// Keeps a context.
    pub fn put(&self, key: Key, context: &str) {
        let mut guard = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = &mut *guard;
        entries.now += 1;
        entries.bytes += context.len() + ENTRY;
        if let Some((before, used)) = entries.contexts.insert(key, (context.to_owned(), entries.now)) {
            entries.order.remove(&used);
            entries.bytes -= before.len() + ENTRY;
        }
        entries.order.insert(entries.now, key);
        while entries.bytes > self.limit
            && let Some((_, oldest)) = entries.order.pop_first()
        {
            if let Some((context, _)) = entries.contexts.remove(&oldest) {
                entries.bytes -= context.len() + ENTRY;
            }
        }
    }
}

/// The key of a question to a model.
pub fn key(model: &str, most_tokens: usize, window: u32, prompt: &str) -> Key {
    let mut hasher = Sha256::new();
    // With their lengths, so that no two questions look alike.
    for part in [model.as_bytes(), &most_tokens.to_le_bytes(), &window.to_le_bytes(), prompt.as_bytes()] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_last_stays() {
        let cache = ContextCache::new(3 * (ENTRY + 1));
        let keys: Vec<Key> = (0..4).map(|prompt| key("m", 100, 4096, &prompt.to_string())).collect();
        for key in &keys[..3] {
            cache.put(*key, "c");
        }
        assert_eq!(cache.get(&keys[0]).as_deref(), Some("c"));
        cache.put(keys[3], "d");
        cache.put(keys[3], "e");
        let kept: Vec<bool> = keys.iter().map(|key| cache.get(key).is_some()).collect();
        assert_eq!(kept, [true, false, true, true]);
        assert_eq!(cache.get(&keys[3]).as_deref(), Some("e"));
    }

    #[test]
    fn whatever_changes_the_answer_changes_the_key() {
        let keys = [
            key("m", 100, 4096, "p"),
            key("n", 100, 4096, "p"),
            key("m", 99, 4096, "p"),
            key("m", 100, 8192, "p"),
            key("m", 100, 4096, "q"),
        ];
        let different: std::collections::HashSet<Key> = keys.into_iter().collect();
        assert_eq!(different.len(), keys.len());
    }
}
