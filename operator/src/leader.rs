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

/// Until when this operator may write. Read before every write.
#[derive(Clone, Debug)]
pub struct Term(Arc<Mutex<Option<Instant>>>);

impl Term {
    /// Without an election: for ever.
    pub fn unlimited() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    fn until(end: Instant) -> Self {
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
                Ok(Some(end)) => return Term::until(end),
                Ok(None) if told => {}
                Ok(None) => {
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
        while term.holds() {
            sleep(PERIOD).await;
            // An answer that comes after the end of the term is none.
            match timeout(term.left(), self.hold()).await {
                Ok(Ok(Some(end))) => term.extend(end),
                Ok(Ok(None)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = NAME, "could not renew the Lease; trying again");
                }
                Err(_) => {
                    tracing::warn!(lease = NAME, "the API server did not answer before the Lease ended");
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
    async fn hold(&mut self) -> Result<Option<Instant>, kube::Error> {
        // Counted from before the request: the Lease may last longer than is believed here, never shorter.
        let asked = Instant::now();
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let new = Lease {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.renewed(&LeaseSpec::default(), Timestamp::now())),
            };
            return taken(self.api.create(&PostParams::default(), &new).await, asked);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(renewed, _)| *renewed != spec.renew_time) {
            self.seen = Some((spec.renew_time.clone(), asked));
        }
        let unchanged = self.seen.as_ref().map(|(_, since)| asked.duration_since(*since)).unwrap_or_default();
        if step(&self.identity, &spec, unchanged) == Step::Wait {
            return Ok(None);
        }
        lease.spec = Some(self.renewed(&spec, Timestamp::now()));
        // Carries the version that was read: a Lease that changed since is not overwritten.
        taken(self.api.replace(NAME, &PostParams::default(), &lease).await, asked)
    }

    fn renewed(&self, before: &LeaseSpec, now: Timestamp) -> LeaseSpec {
        let mine = before.holder_identity.as_deref() == Some(&self.identity);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            renew_time: Some(MicroTime(now)),
            acquire_time: if mine { before.acquire_time.clone() } else { Some(MicroTime(now)) },
            lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(!mine)),
            ..before.clone()
        }
    }
}

fn taken(result: Result<Lease, kube::Error>, asked: Instant) -> Result<Option<Instant>, kube::Error> {
    match result {
        Ok(_) => Ok(Some(asked + LASTS - MARGIN)),
        // Another was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_term_ends_by_itself() {
        let term = Term::until(Instant::now());
        assert!(!term.holds());
        term.extend(Instant::now() + Duration::from_secs(60));
        assert!(term.holds());
        assert!(Term::unlimited().holds());
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
