//! Conditions by kstatus: what a pass found, and when it changed.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use principium_api::status::condition;

/// Reasons of conditions. A reason is a constant; what varies is in the message.
pub mod reason {
    pub const READY: &str = "Ready";
    pub const SCALED_TO_ZERO: &str = "ScaledToZero";
    pub const WAITING_FOR_GPU: &str = "WaitingForGPU";
    pub const STARTING: &str = "Starting";
    pub const UPDATING: &str = "Updating";
    pub const PULLING_MODELS: &str = "PullingModels";
    pub const LOADING_MODELS: &str = "LoadingModels";
    pub const MODEL_FAILED: &str = "ModelFailed";
    pub const POD_FAILED: &str = "PodFailed";
    pub const APPLY_FAILED: &str = "ApplyFailed";
    pub const DELETING: &str = "Deleting";
    pub const INVALID_NAME: &str = "InvalidName";
    pub const NO_MODEL: &str = "NoModel";
    pub const DUPLICATE_DEVICES: &str = "DuplicateDevices";
    pub const NO_SUCH_GPU: &str = "NoSuchGPU";
    pub const NO_SUCH_PRODUCT: &str = "NoSuchProduct";
    pub const NOT_ENOUGH_GPUS: &str = "NotEnoughGPUs";
    pub const TOO_MUCH_MEMORY: &str = "TooMuchMemory";
    pub const NOT_ACCELERATED: &str = "NotAccelerated";
    pub const COMPLETED: &str = "Completed";
    pub const SUSPENDED: &str = "Suspended";
    pub const RUNNING: &str = "Running";
    pub const RUN_FAILED: &str = "RunFailed";
    pub const REFUSED: &str = "Refused";
    pub const INVALID_SCHEDULE: &str = "InvalidSchedule";
    pub const DATA_FACTORY_MISSING: &str = "DataFactoryMissing";
    pub const DATA_FACTORY_NOT_READY: &str = "DataFactoryNotReady";
    pub const DATA_FACTORY_SILENT: &str = "DataFactorySilent";
    pub const ON_GPU: &str = "OnGPU";
    pub const SIMULATED_HARDWARE: &str = "SimulatedHardware";
    pub const COMPUTES_ON_CPU: &str = "ComputesOnCPU";
    pub const NO_GPU_REQUESTED: &str = "NoGPURequested";
    pub const NOT_ANSWERED: &str = "NotAnswered";
    pub const POOL_READY: &str = "PoolReady";
    pub const POOL_MISSING: &str = "PoolMissing";
    pub const POOL_NOT_READY: &str = "PoolNotReady";
    pub const MODEL_NOT_IN_POOL: &str = "ModelNotInPool";
    pub const SAME_SINK: &str = "SameSink";
    pub const OTHER_SINK: &str = "OtherSink";
}

/// Condition of a DataFactory with enrichment: whether its pool can put chunks in context.
pub const ENRICHMENT_READY: &str = "EnrichmentReady";

/// Condition of an Ingestion whose corpus another one fills too: whether both name the same sink.
pub const SINK_AGREED: &str = "SinkAgreed";

/// The longest message that is written, in characters; Kubernetes allows 32768 bytes.
const LONGEST_MESSAGE: usize = 1024;

/// What one condition says now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub type_: &'static str,
    /// `None`: not known.
    pub status: Option<bool>,
    pub reason: &'static str,
    pub message: String,
}

/// How far a resource is, in one of the ways that kstatus knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything that the spec asks for runs and answers.
    Ready { reason: &'static str, message: String },
    /// On the way, or waiting for something that can come by itself.
    Reconciling { reason: &'static str, message: String },
    /// Nothing will happen until the spec changes.
    Stalled { reason: &'static str, message: String },
}

impl Progress {
    /// The three conditions of kstatus.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let (ready, reconciling, stalled) = match self {
            Self::Ready { .. } => (true, false, false),
            Self::Reconciling { .. } => (false, true, false),
            Self::Stalled { .. } => (false, false, true),
        };
        let (reason, message) = self.why();
        [(condition::READY, ready), (condition::RECONCILING, reconciling), (condition::STALLED, stalled)]
            .into_iter()
            .map(|(type_, status)| Verdict {
                type_,
                status: Some(status),
                reason,
                // What is false and abnormal needs no explanation.
                message: if status || type_ == condition::READY { message.to_owned() } else { String::new() },
            })
            .collect()
    }

    pub fn why(&self) -> (&'static str, &str) {
        match self {
            Self::Ready { reason, message }
            | Self::Reconciling { reason, message }
            | Self::Stalled { reason, message } => (reason, message),
        }
    }
}

/// The conditions to write, from those written before and what is found now. The transition time changes with the
/// status only.
pub fn updated(
    before: &[Condition],
    verdicts: &[Verdict],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    verdicts
        .iter()
        .map(|verdict| {
            let status = match verdict.status {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let since = before
                .iter()
                .find(|condition| condition.type_ == verdict.type_ && condition.status == status)
                .map_or_else(|| Time(whole_second(now)), |condition| condition.last_transition_time.clone());
            Condition {
                type_: verdict.type_.to_owned(),
                status: status.to_owned(),
                reason: verdict.reason.to_owned(),
                message: verdict.message.chars().take(LONGEST_MESSAGE).collect(),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

/// Kubernetes keeps whole seconds; a finer time would differ from what it gives back.
fn whole_second(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The reason and message that a condition had before.
pub fn before<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn waiting(message: &str) -> Vec<Verdict> {
        Progress::Reconciling { reason: reason::WAITING_FOR_GPU, message: message.to_owned() }.verdicts()
    }

    #[test]
    fn the_transition_time_changes_with_the_status_only() {
        let first = updated(&[], &waiting("a"), Some(1), at(100));
        let second = updated(&first, &waiting("b"), Some(2), at(200));
        assert_eq!(second[0].last_transition_time, Time(at(100)));
        assert_eq!((second[0].message.as_str(), second[0].observed_generation), ("b", Some(2)));
        let ready = Progress::Ready { reason: reason::READY, message: String::new() }.verdicts();
        let third = updated(&second, &ready, Some(2), at(300));
        assert_eq!(third[0].last_transition_time, Time(at(300)));
        assert_eq!(third[2].last_transition_time, Time(at(100)), "Stalled stayed False");
    }

    #[test]
    fn exactly_one_of_the_three_conditions_is_true() {
        for progress in [
            Progress::Ready { reason: reason::READY, message: String::new() },
            Progress::Reconciling { reason: reason::STARTING, message: String::new() },
            Progress::Stalled { reason: reason::NO_SUCH_GPU, message: String::new() },
        ] {
            let verdicts = progress.verdicts();
            assert_eq!(
                verdicts.iter().filter(|verdict| verdict.status == Some(true)).count(),
                1,
                "{progress:?}"
            );
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let written = updated(&[], &waiting(&"é".repeat(2000)), None, at(1));
        assert_eq!(written[0].message.chars().count(), LONGEST_MESSAGE);
    }
}
