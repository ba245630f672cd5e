//! The only clock. Everything that decides is given a [`Now`] instead.

use crate::device::Now;
use std::time::Instant;

/// A clock that counts from when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { elapsed: self.start.elapsed(), wall: jiff::Timestamp::now() }
    }
}
