//! Events: what users see in `kubectl describe`. One is written once; the same again within a while is left out.

use crate::actions::{Note, Severity};
use crate::resource::Kind;
use futures::StreamExt;
use hashbrown::HashMap;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use principium_api::names::{GROUP, MANAGED_BY};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long the same Event of the same resource is not repeated.
const QUIET: SignedDuration = SignedDuration::from_mins(10);
/// Events under way at once.
const AT_ONCE: usize = 8;
/// How long one Event may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long all may take together that are told before the writes of a pass: those wait for them.
pub const BEFORE: Duration = PATIENCE;
/// How long all may take together that are told after them: the next pass waits for them.
pub const AFTER: Duration = Duration::from_secs(10);
/// The longest note that the API takes, in bytes.
const LONGEST_NOTE: usize = 1024;
/// The longest part of an Event's name that names its object, in bytes; a name may have 253.
const LONGEST_NAME: usize = 200;

/// Writes Events. kube's own recorder counts Events of one reason as one and keeps the first text; here the text says
/// which GPU and which holder, so each text is an Event.
pub struct Recorder {
    client: Client,
    instance: String,
    written: HashMap<(String, &'static str, String), Timestamp>,
}

impl Recorder {
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance, written: HashMap::new() }
    }

    /// Writes what is new of these, and takes no longer than `patience`. An Event that can't be written is logged and forgotten.
    pub async fn record(&mut self, notes: Vec<Note>, now: Timestamp, patience: Duration) {
        self.written.retain(|_, written| now.duration_since(*written) < QUIET);
        let new = notes.into_iter().filter(|note| {
            let key = (note.uid.clone(), note.reason, note.text.clone());
            self.written.insert(key, now).is_none()
        });
        let new: Vec<Note> = new.collect();
        let (client, instance) = (&self.client, &self.instance);
        let until = Instant::now() + patience;
        let failed: Vec<Note> = futures::stream::iter(new)
            .map(|note| async move {
                tracing::info!(resource = %note.key, reason = note.reason, "{}", note.text);
                let event = build_event(&note, instance, now);
                let api: Api<Event> = Api::namespaced(client.clone(), &note.key.namespace);
                let params = PostParams::default();
                let end = (Instant::now() + PATIENCE).min(until);
                let error = match timeout_at(end, api.create(&params, &event)).await {
                    Ok(Ok(_)) => return None,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "the API server did not answer in time".to_owned(),
                };
                tracing::warn!(resource = %note.key, %error, "could not write an Event");
                Some(note)
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        for note in failed {
            self.written.remove(&(note.uid, note.reason, note.text));
        }
    }
}

fn build_event(note: &Note, instance: &str, now: Timestamp) -> Event {
    let key = &note.key;
    // What stands before a point ends with a letter or a digit.
    let name = key.name[..key.name.floor_char_boundary(LONGEST_NAME)].trim_end_matches(['-', '.']);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond().wrapping_add(number(note)))),
            namespace: Some(key.namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        regarding: Some(reference(key.kind, &key.namespace, &key.name, &note.uid)),
        type_: Some(
            match note.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            }
            .to_owned(),
        ),
        reason: Some(note.reason.to_owned()),
        action: Some(note.reason.to_owned()),
        note: Some(note.text[..note.text.floor_char_boundary(LONGEST_NOTE)].to_owned()),
        reporting_controller: Some(format!("{GROUP}/{MANAGED_BY}")),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

/// Tells Events of one resource and one instant apart.
fn number(note: &Note) -> i128 {
    note.text
        .bytes()
        .chain(note.reason.bytes())
        .fold(0, |sum, byte| (sum * 31 + i128::from(byte)) % 1_000_003)
}

fn reference(kind: Kind, namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(format!("{GROUP}/v1alpha1")),
        kind: Some(kind.name().to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::ResourceKey;
    use kube::Config;

    fn note(name: String, text: String) -> Note {
        Note {
            key: ResourceKey { kind: Kind::Ingestion, namespace: "demo".to_owned(), name },
            uid: "uid-1".to_owned(),
            severity: Severity::Normal,
            reason: "Completed",
            text,
            made: None,
        }
    }

    #[test]
    fn an_event_is_as_long_as_the_api_takes_it() {
        let name = |parts: &[(&str, usize)]| -> String {
            parts.iter().map(|(letter, times)| letter.repeat(*times)).collect()
        };
        for (object, text, said) in [
            ("short".to_owned(), "a".repeat(1024), 1024),
            (name(&[("a", 253)]), "a".repeat(1025), 1024),
            (name(&[("a", 198), ("-", 2), ("b", 50)]), format!("a{}", "é".repeat(600)), 1023),
        ] {
            let event = build_event(&note(object, text), "operator-1", Timestamp::now());
            assert_eq!(event.note.unwrap().len(), said);
            let name = event.metadata.name.unwrap();
            let (object, number) = name.split_once('.').unwrap();
            assert!(name.len() <= 253 && !number.is_empty() && !object.ends_with('-'), "{name}");
        }
    }

    #[tokio::test]
    async fn events_that_nobody_answers_hold_no_pass_up() -> Result<(), Box<dyn std::error::Error>> {
        // Connections are made, and nobody ever answers.
        let frozen = std::net::TcpListener::bind("127.0.0.1:0")?;
        let server = format!("http://{}", frozen.local_addr()?);
        let client = Client::try_from(Config::new(server.parse()?))?;
        let mut recorder = Recorder::new(client, "operator-1".to_owned());
        let notes = (0..AT_ONCE).map(|at| note("x".to_owned(), format!("done {at}"))).collect();
        let recording = recorder.record(notes, Timestamp::now(), AFTER);
        tokio::time::timeout(PATIENCE + Duration::from_secs(3), recording).await?;
        assert!(recorder.written.is_empty(), "they may be told again");
        Ok(())
    }
}
