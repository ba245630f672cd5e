//! Leader election by a Lease: of several operators one works.
//!
//! Every write of the Lease names the version that was read, so of two that take it at once one fails. Crates for
//! this were looked at: those for this version of kube patch the Lease without its version, and two could lead for a
//! moment.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Name of the Lease.
pub const NAME: &str = "principium-operator";
/// How long a Lease holds after its last renewal.
const LASTS: Duration = Duration::from_secs(15);
/// How long before its end the holder stops to write: a request may still be under way.
const MARGIN: Duration = Duration::from_secs(5);
/// How often the holder renews it and others look at it.
const PERIOD: Duration = Duration::from_secs(2);
/// How long one renewal may take, so that after one that hangs there is time for another, which may take what is left.
const TRY: Duration = Duration::from_secs(3);

/// Until when this operator may write. Read before every write.
#[derive(Clone, Debug)]
pub struct Term(Arc<Mutex<Option<Instant>>>);

impl Term {
    /// Without an election: for ever.
    pub fn unlimited() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    /// Until then, unless it is renewed.
    pub fn until(end: Instant) -> Self {
        Self(Arc::new(Mutex::new(Some(end))))
    }

    /// Whether this operator leads now.
    pub fn holds(&self) -> bool {
        !self.left().is_zero()
    }

    /// How long it leads yet, unless it renews.
    fn left(&self) -> Duration {
        let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()))
    }

    fn extend(&self, end: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }
}

/// A candidate.
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
    /// What was last seen of another's Lease, and since when it is unchanged on the own clock.
    seen: Option<(Option<MicroTime>, Instant)>,
}

/// What came of a look at the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// It was taken or renewed, and holds until then.
    Until(Instant),
    ByAnother,
    /// It was changed between the look and the write: by another, or by an own write whose answer was not waited for. The
    /// next look tells.
    Changed,
}

/// What a candidate does about the Lease that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Take it, or renew it: the same write.
    Hold,
    Wait,
}

impl Candidate {
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self { api: Api::namespaced(client, namespace), identity, seen: None }
    }

    /// Waits until this operator leads.
    pub async fn elected(&mut self) -> Term {
        let mut told = false;
        loop {
            match self.hold().await {
                Ok(Held::Until(end)) if end > Instant::now() => return Term::until(end),
                // Its term was over before the answer came.
                Ok(Held::Until(_) | Held::Changed) => {}
                Ok(Held::ByAnother) if told => {}
                Ok(Held::ByAnother) => {
                    tracing::info!("another operator leads; waiting");
                    told = true;
                }
                Err(error) => {
                    tracing::warn!(%error, lease = NAME, "could not read or take the Lease; trying again");
                }
            }
            sleep(PERIOD).await;
        }
    }

    /// Renews the Lease until it is lost; then this operator must not write any more.
    pub async fn keep(&mut self, term: &Term) {
        let mut hung = false;
        while term.holds() {
            // What hangs is tried once more, at once and for as long as the term lasts: the API server may only be slow.
            let limit = if hung { term.left() } else { TRY };
            if !hung {
                sleep(PERIOD).await;
            }
            hung = false;
            // An answer that comes after the end of the term is none.
            match timeout(term.left().min(limit), self.hold()).await {
                Ok(Ok(Held::Until(end))) => term.extend(end),
                Ok(Ok(Held::ByAnother)) => return,
                Ok(Ok(Held::Changed)) => {
                    tracing::debug!(lease = NAME, "the Lease was changed meanwhile; looking again");
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = NAME, "could not renew the Lease; trying again");
                }
                Err(_) => {
                    hung = true;
                    tracing::warn!(
                        lease = NAME,
                        "the API server did not answer a renewal of the Lease in time"
                    );
                }
            }
        }
    }

    /// Gives the Lease back, so that another need not wait for its end.
    pub async fn release(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(NAME).await else { return };
        let Some(spec) = &mut lease.spec else { return };
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return;
        }
        spec.holder_identity = None;
        if let Err(error) = self.api.replace(NAME, &PostParams::default(), &lease).await {
            tracing::debug!(%error, "could not release the Lease; it will run out");
        }
    }

    /// Takes or renews the Lease if that is allowed, and says until when it is held.
    async fn hold(&mut self) -> Result<Held, kube::Error> {
        // An own term counts from before the request: the Lease may last longer than is believed here, never shorter.
        let asked = Instant::now();
        let found = self.api.get_opt(NAME).await?;
        // What is seen of another counts from after it: the holder may have written while the answer was on its way.
        let read = Instant::now();
        let Some(mut lease) = found else {
            let new = Lease {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.renewed(&LeaseSpec::default(), Timestamp::now())),
            };
            return taken(self.api.create(&PostParams::default(), &new).await, asked);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(renewed, _)| *renewed != spec.renew_time) {
            self.seen = Some((spec.renew_time.clone(), read));
        }
        let since = self.seen.as_ref().map_or(read, |(_, since)| *since);
        let unchanged = asked.saturating_duration_since(since);
        if step(&self.identity, &spec, unchanged) == Step::Wait {
            return Ok(Held::ByAnother);
        }
        lease.spec = Some(self.renewed(&spec, Timestamp::now()));
        // Carries the version that was read: a Lease that changed since is not overwritten.
        taken(self.api.replace(NAME, &PostParams::default(), &lease).await, asked)
    }

    fn renewed(&self, before: &LeaseSpec, now: Timestamp) -> LeaseSpec {
        let mine = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            renew_time: Some(MicroTime(now)),
            acquire_time: if mine { before.acquire_time.clone() } else { Some(MicroTime(now)) },
            lease_transitions: Some(transitions.saturating_add(i32::from(!mine))),
            ..before.clone()
        }
    }
}

fn taken(result: Result<Lease, kube::Error>, asked: Instant) -> Result<Held, kube::Error> {
    match result {
        Ok(_) => Ok(Held::Until(asked + LASTS - MARGIN)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Held::Changed),
        Err(error) => Err(error),
    }
}

/// What to do about a Lease that has been unchanged for this long.
fn step(identity: &str, spec: &LeaseSpec, unchanged: Duration) -> Step {
    let lasts = spec
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(LASTS, Duration::from_secs);
    match spec.holder_identity.as_deref() {
        None | Some("") => Step::Hold,
        Some(holder) if holder == identity => Step::Hold,
        Some(_) if unchanged > lasts => Step::Hold,
        Some(_) => Step::Wait,
    }
}

// Two renewals may fail before the Lease is lost.
const _: () = assert!(PERIOD.as_secs() * 3 < LASTS.as_secs() && MARGIN.as_secs() < LASTS.as_secs());
// One of two tries may hang.
const _: () = assert!(PERIOD.as_secs() + TRY.as_secs() * 2 < LASTS.as_secs() - MARGIN.as_secs());

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::{Value, json};
    use std::collections::VecDeque;

    /// A candidate before an API server with this Lease. The first reads of it take so long, and the first writes meet those
    /// of others.
    async fn candidate(holder: &str, reads: &[Duration], conflicts: usize) -> Candidate {
        let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": 1,
            "renewTime": "2026-01-01T00:00:00.000000Z"});
        let meta = json!({"name": NAME, "namespace": "test", "resourceVersion": "1"});
        let lease =
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec});
        let reads = Arc::new(Mutex::new(reads.iter().copied().collect::<VecDeque<_>>()));
        let read = move || async move {
            let wait = reads.lock().unwrap().pop_front().unwrap_or_default();
            sleep(wait).await;
            Json(lease)
        };
        let conflicts = Arc::new(Mutex::new(conflicts));
        let write = move |Json(lease): Json<Value>| async move {
            let mut left = conflicts.lock().unwrap();
            if *left == 0 {
                return (StatusCode::OK, Json(lease));
            }
            *left -= 1;
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "it has been modified", "reason": "Conflict", "code": 409});
            (StatusCode::CONFLICT, Json(status))
        };
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/test/leases/{NAME}");
        let router = Router::new().route(&path, get(read).put(write));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(kube::Config::new(address.parse().unwrap())).unwrap();
        Candidate::new(client, "test", "me".to_owned())
    }

    fn held_by(holder: Option<&str>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(ToOwned::to_owned),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_it_is_free_own_or_unchanged_for_its_whole_duration() {
        for (holder, unchanged, expected) in [
            (None, 0, Step::Hold),
            (Some(""), 0, Step::Hold),
            (Some("me"), 0, Step::Hold),
            (Some("other"), 14, Step::Wait),
            (Some("other"), 15, Step::Wait),
            (Some("other"), 16, Step::Hold),
        ] {
            let found = step("me", &held_by(holder), Duration::from_secs(unchanged));
            assert_eq!(found, expected, "{holder:?} for {unchanged} s");
        }
    }

    #[tokio::test]
    async fn a_lease_that_changed_hands_as_often_as_can_be_counted_is_taken() {
        let candidate = candidate("other", &[], 0).await;
        for (before, after) in [(None, 1), (Some(7), 8), (Some(i32::MAX), i32::MAX)] {
            let spec = LeaseSpec { lease_transitions: before, ..held_by(Some("other")) };
            assert_eq!(candidate.renewed(&spec, Timestamp::now()).lease_transitions, Some(after));
        }
    }

    #[test]
    fn a_term_ends_by_itself() {
        let term = Term::until(Instant::now());
        assert!(!term.holds());
        term.extend(Instant::now() + Duration::from_secs(60));
        assert!(term.holds());
        assert!(Term::unlimited().holds());
    }

    #[tokio::test]
    async fn a_slow_answer_does_not_make_a_lease_look_older_than_it_is() {
        let slow = Duration::from_millis(1500);
        let mut candidate = candidate("other", &[slow], 0).await;
        for look in ["slow", "fast"] {
            assert_eq!(candidate.hold().await.unwrap(), Held::ByAnother, "{look}");
        }
        sleep(slow).await;
        let held = candidate.hold().await.unwrap();
        assert!(matches!(held, Held::Until(_)), "nobody has renewed it for its whole duration: {held:?}");
    }

    #[tokio::test]
    async fn one_renewal_that_hangs_or_meets_a_write_costs_no_leadership() {
        let keeps = async |mut candidate: Candidate| {
            let term = Term::until(Instant::now() + LASTS - MARGIN);
            let kept = timeout(PERIOD * 2 + TRY + Duration::from_secs(2), candidate.keep(&term)).await;
            kept.is_err() && term.left() > MARGIN
        };
        let hangs = candidate("me", &[Duration::from_secs(60)], 0).await;
        let conflicts = candidate("me", &[], 1).await;
        assert_eq!(tokio::join!(keeps(hangs), keeps(conflicts)), (true, true));
    }

    #[tokio::test]
    async fn a_frozen_connection_does_not_outlast_the_term() -> Result<(), Box<dyn std::error::Error>> {
        // Connections are made, and nobody ever answers.
        let frozen = std::net::TcpListener::bind("127.0.0.1:0")?;
        let server = format!("http://{}", frozen.local_addr()?);
        let client = Client::try_from(kube::Config::new(server.parse()?))?;
        let mut candidate = Candidate::new(client, "test", "me".to_owned());
        let term = Term::until(Instant::now() + PERIOD + Duration::from_millis(300));
        timeout(PERIOD * 5, candidate.keep(&term)).await?;
        assert!(!term.holds());
        Ok(())
    }
}
