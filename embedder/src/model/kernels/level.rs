//! Instruction sets that loops over rows are compiled for, and the best one that this processor has.

/// An instruction set; the best one comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every processor of the architecture has.
    Portable,
}

/// The best one that this processor has.
#[inline]
pub(super) fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = tests::LEVEL.get() {
        return level;
    }
    // std caches the answer of CPUID: these are loads and bit tests.
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        return Level::Avx512;
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return Level::Avx2;
    }
    Level::Portable
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Level, level};
    use std::cell::Cell;
    use std::sync::LazyLock;

    const LEVELS: &[Level] = &[
        #[cfg(target_arch = "x86_64")]
        Level::Avx512,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2,
        Level::Portable,
    ];

    thread_local! {
        /// What `level` says on this thread; never more than the processor has.
        pub(super) static LEVEL: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// Threads that take each instruction set of this processor for the best one.
    static THREADS: LazyLock<Vec<(Level, rayon::ThreadPool)>> = LazyLock::new(|| {
        let best = level();
        let threads = |level: Level| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(2);
            (level, builder.start_handler(move |_| LEVEL.set(Some(level))).build().unwrap())
        };
        LEVELS.iter().copied().filter(|level| *level >= best).map(threads).collect()
    });

    /// What `compute` makes with each instruction set that this processor has, the best one first. Tasks that it spreads
    /// over cores keep to that set.
    pub(in super::super) fn on_each_level<T: Send>(compute: impl Fn(Level) -> T + Sync) -> Vec<T> {
        THREADS.iter().map(|(level, threads)| threads.install(|| compute(*level))).collect()
    }

    #[test]
    fn every_instruction_set_up_to_the_best_is_tried_on_threads_of_its_own() {
        let tried = on_each_level(|expected| {
            let (here, there) = rayon::join(level, level);
            assert_eq!((here, there), (expected, expected));
            expected
        });
        assert_eq!((tried.first(), tried.last()), (Some(&level()), Some(&Level::Portable)));
        assert!(tried.is_sorted() && LEVELS.ends_with(&tried), "{tried:?}");
    }
}
