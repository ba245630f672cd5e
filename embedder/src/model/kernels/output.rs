//! A result that several tasks write at the same time, each to places of its own. It is not zeroed first.

use super::dot::PANEL;

pub(super) struct Output {
    start: *mut f32,
    /// Owns the memory; its length stays zero until all is written.
    memory: Vec<f32>,
    length: usize,
}

#[allow(unsafe_code, reason = "the pointer goes to several threads")]
// SAFETY: `write`, the only use of the pointer, demands places that no other task has; the memory itself is not touched
// through a shared reference.
unsafe impl Sync for Output {}

impl Output {
    pub(super) fn new(length: usize) -> Self {
        let mut memory = Vec::with_capacity(length);
        Self { start: memory.as_mut_ptr(), memory, length }
    }

    /// Writes `values` to `place` and behind it.
    ///
    /// # Safety
    /// No other task writes there at the same time.
    #[allow(unsafe_code, reason = "rows are shared between tasks by columns, which no slice can express")]
    #[inline]
    pub(super) unsafe fn write(&self, place: usize, values: &[f32]) {
        assert!(place + values.len() <= self.length, "a task writes outside of the output");
        // SAFETY: inside of the memory, as asserted.
        let target = unsafe { self.start.add(place) };
        // SAFETY: inside of the memory, and nobody else's at the moment.
        unsafe {
            match <&[f32; PANEL]>::try_from(values) {
                // The rows of a whole panel, which are nearly all: a few moves instead of a call.
                Ok(whole) => target.cast::<[f32; PANEL]>().write(*whole),
                Err(_) => std::ptr::copy_nonoverlapping(values.as_ptr(), target, values.len()),
            }
        }
    }

    /// The result.
    ///
    /// # Safety
    /// Every place has been written.
    #[allow(unsafe_code, reason = "the memory was filled through a pointer")]
    pub(super) unsafe fn finish(mut self) -> Vec<f32> {
        // SAFETY: the capacity is at least `length`, and the caller vouches for what is in it.
        unsafe { self.memory.set_len(self.length) };
        self.memory
    }
}
