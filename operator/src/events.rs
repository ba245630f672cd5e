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

/// How long the same Event of the same resource is not repeated.
const QUIET: SignedDuration = SignedDuration::from_mins(10);
/// Events under way at once.
const AT_ONCE: usize = 8;
/// The longest note that the API takes, in characters; it allows 1024 bytes.
const LONGEST_NOTE: usize = 480;

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

    /// Writes what is new of these. An Event that can't be written is logged and forgotten.
    pub async fn record(&mut self, notes: Vec<Note>, now: Timestamp) {
        self.written.retain(|_, written| now.duration_since(*written) < QUIET);
        let new = notes.into_iter().filter(|note| {
            let key = (note.uid.clone(), note.reason, note.text.clone());
            self.written.insert(key, now).is_none()
        });
        let new: Vec<Note> = new.collect();
        let (client, instance) = (&self.client, &self.instance);
        let failed: Vec<Note> = futures::stream::iter(new)
            .map(|note| async move {
                tracing::info!(resource = %note.key, reason = note.reason, "{}", note.text);
                let event = build_event(&note, instance, now);
                let api: Api<Event> = Api::namespaced(client.clone(), &note.key.namespace);
                let written = api.create(&PostParams::default(), &event).await;
                written.err().map(|error| {
                    tracing::warn!(resource = %note.key, %error, "could not write an Event");
                    note
                })
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
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", key.name, now.as_nanosecond().wrapping_add(number(note)))),
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
        note: Some(note.text.chars().take(LONGEST_NOTE).collect()),
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
