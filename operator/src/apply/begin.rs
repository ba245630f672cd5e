//! Which writes of a pass are begun: what failed least first, no more than so many, and none after a while.

use super::{Applied, Writer};
use crate::actions::AT_MOST;
use crate::leader::Term;
use crate::resource::ResourceKey;
use futures::StreamExt;
use std::time::Duration;
use tokio::time::Instant;

/// How long writes of one sort are begun in a pass. Where an admission webhook hangs, each takes as long as the API server may be
/// silent, and meanwhile nobody sees what changes.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Writes under way at once.
const AT_ONCE: usize = 16;

/// What became of a write that was due.
enum Begun<R> {
    Done(R),
    /// The term had ended.
    Skipped,
    /// There was no time for it.
    Left,
}

impl Writer {
    /// How often in a row this has failed; `None` where that was a moment ago.
    pub(super) fn failed_before(&self, key: &(ResourceKey, String)) -> Option<u32> {
        match self.waiting.get(key) {
            None => Some(0),
            Some(wait) => (wait.until <= Instant::now()).then_some(wait.failures),
        }
    }

    /// What did not fail a moment ago, as much as a pass does. What failed least comes first: what is refused again and again keeps
    /// nothing else waiting.
    pub(super) fn due<T>(
        &self,
        all: Vec<T>,
        key: impl Fn(&T) -> (ResourceKey, String),
        applied: &mut Applied,
    ) -> Vec<T> {
        let failures = |one: &T| self.failed_before(&key(one));
        let mut due: Vec<(u32, T)> = all.into_iter().filter_map(|one| Some((failures(&one)?, one))).collect();
        due.sort_by_key(|(failures, _)| *failures);
        applied.left |= due.len() > AT_MOST;
        due.into_iter().take(AT_MOST).map(|(_, one)| one).collect()
    }
}

/// Does these writes, several at once. None is begun once the term has ended, or from `until` on; `applied` says so then.
pub(super) async fn begin<T, R, W: Future<Output = R>>(
    due: Vec<T>,
    term: &Term,
    until: Instant,
    applied: &mut Applied,
    write: impl Fn(T) -> W,
) -> Vec<R> {
    let write = &write;
    let begun: Vec<Begun<R>> = futures::stream::iter(due)
        .map(|one| async move {
            // A leader that was paused must not write after its term.
            if !term.holds() {
                return Begun::Skipped;
            }
            if Instant::now() >= until {
                return Begun::Left;
            }
            Begun::Done(write(one).await)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut done = Vec::with_capacity(begun.len());
    for begun in begun {
        match begun {
            Begun::Done(result) => done.push(result),
            Begun::Skipped => applied.skipped = true,
            Begun::Left => applied.left = true,
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::{Action, Plan, Status, StatusUpdate, Write};
    use crate::apply::{STATUS_OBJECT, Wait};
    use crate::events::Recorder;
    use crate::resource::Kind;
    use kube::{Client, Config};
    use std::sync::Arc;

    /// What writes to an API server that is not there.
    fn writer() -> Writer {
        let client = Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let recorder = Recorder::new(client.clone(), "test".to_owned());
        Writer::new(client, Arc::default(), recorder)
    }

    fn key(name: &str) -> ResourceKey {
        ResourceKey { kind: Kind::Reranker, namespace: "demo".to_owned(), name: name.to_owned() }
    }

    #[tokio::test]
    async fn what_failed_least_comes_first_and_what_failed_a_moment_ago_not_at_all() {
        let mut writer = writer();
        let now = Instant::now();
        let later = now + Duration::from_secs(3600);
        for (name, failures, until) in [("often", 5, now), ("once", 1, now), ("just", 1, later)] {
            let wait = Wait { failures, until, message: String::new() };
            writer.waiting.insert((key(name), STATUS_OBJECT.to_owned()), wait);
        }
        let due = |all: Vec<&'static str>| {
            let mut applied = Applied::default();
            let named = |name: &&'static str| (key(name), STATUS_OBJECT.to_owned());
            (writer.due(all, named, &mut applied), applied.left)
        };
        let all = vec!["often", "new", "once", "just", "newer"];
        assert_eq!(due(all), (vec!["new", "newer", "once", "often"], false));
        let mut many = vec!["often"];
        many.resize(AT_MOST + 1, "new");
        assert_eq!(due(many), (vec!["new"; AT_MOST], true), "what fails takes the place of nothing else");
    }

    #[tokio::test]
    async fn what_waits_behind_slow_writes_is_left() {
        let slow = |until: Instant| {
            move |at: usize| async move {
                tokio::time::sleep_until(until).await;
                at
            }
        };
        let until = Instant::now() + Duration::from_millis(20);
        let mut applied = Applied::default();
        let all = (0..AT_ONCE * 3).collect();
        let done = begin(all, &Term::unlimited(), until, &mut applied, slow(until)).await;
        assert!(done.len() <= AT_ONCE && applied.left && !applied.skipped, "{done:?}");
        let mut applied = Applied::default();
        let until = Instant::now() + Duration::from_secs(3600);
        let all = (0..AT_ONCE * 3).collect();
        let done = begin(all, &Term::unlimited(), until, &mut applied, slow(Instant::now())).await;
        assert!(done.len() == AT_ONCE * 3 && !applied.left, "{done:?}");
    }

    #[tokio::test]
    async fn what_is_not_begun_in_time_comes_with_the_next_pass_and_has_not_failed() {
        let write = Write::DeletePod { name: "x-0-1".to_owned(), uid: "uid-pod".to_owned() };
        let actions = vec![Action { resource: key("x"), write }];
        let status = Status::Reranker(Box::default());
        let statuses = vec![StatusUpdate { key: key("x"), uid: "uid-x".to_owned(), status }];
        for plan in [Plan { actions, ..Plan::default() }, Plan { statuses, ..Plan::default() }] {
            let mut writer = writer();
            writer.patience = Duration::ZERO;
            let applied = writer.apply(plan, &Term::unlimited()).await;
            assert_eq!((applied.skipped, applied.retry_after), (false, Some(Duration::ZERO)));
            assert!(writer.waiting.is_empty(), "it was not tried");
        }
    }
}
