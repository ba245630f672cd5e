//! Which Events of a pass are told before its writes, and which after them.

use crate::actions::{Action, Note, Write};
use crate::resource::ResourceKey;
use hashbrown::HashSet;

/// The notes that are told before these actions, and those that are told after them. Of a resource whose pods are made or deleted
/// they say why: an operator that ends in between leaves nobody who knows, and one too many does no harm. What is true of a pod
/// that is made is told once it is.
pub(super) fn part<'a>(
    notes: Vec<Note>,
    actions: impl Iterator<Item = &'a Action>,
) -> (Vec<Note>, Vec<Note>) {
    let of_pod = |action: &&Action| matches!(action.write, Write::CreatePod(_) | Write::DeletePod { .. });
    let changing: HashSet<&ResourceKey> = actions.filter(of_pod).map(|action| &action.resource).collect();
    notes.into_iter().partition(|note| note.made.is_none() && changing.contains(&note.key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::{Plan, Severity, Status, StatusUpdate};
    use crate::apply::{FIRST_WAIT, Writer};
    use crate::events::Recorder;
    use crate::leader::Term;
    use crate::resource::Kind;
    use axum::body::Bytes;
    use axum::http::{Method, StatusCode, Uri};
    use axum::{Json, Router};
    use k8s_openapi::api::core::v1::Pod;
    use kube::core::ObjectMeta;
    use kube::{Client, Config};
    use serde_json::{Value, json};
    use std::sync::Arc;
    use std::time::Instant;
    use tokio::sync::mpsc;

    /// What writes to an API server, and what that is asked: of an Event the reason. What is made is taken, and all else is gone.
    async fn writer() -> (Writer, mpsc::UnboundedReceiver<String>) {
        let (say, said) = mpsc::unbounded_channel();
        let answer = move |method: Method, uri: Uri, body: Bytes| async move {
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let event = body["reason"].as_str().filter(|_| uri.path().ends_with("/events"));
            let asked = event.map_or_else(|| format!("{method} {}", uri.path()), ToOwned::to_owned);
            say.send(asked).unwrap();
            if method == Method::POST {
                return (StatusCode::CREATED, Json(body));
            }
            let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "not found", "reason": "NotFound", "code": 404});
            (StatusCode::NOT_FOUND, Json(gone))
        };
        let router = Router::new().fallback(answer);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(Config::new(address.parse().unwrap())).unwrap();
        let recorder = Recorder::new(client.clone(), "test".to_owned());
        (Writer::new(client, Arc::default(), recorder), said)
    }

    fn key(name: &str) -> ResourceKey {
        ResourceKey { kind: Kind::Reranker, namespace: "demo".to_owned(), name: name.to_owned() }
    }

    fn note(name: &str, reason: &'static str, made: Option<&str>) -> Note {
        Note {
            key: key(name),
            uid: format!("uid-{name}"),
            severity: Severity::Normal,
            reason,
            text: String::new(),
            made: made.map(str::to_owned),
        }
    }

    /// A pod is stopped, another one is made, and the status says so.
    fn plan() -> Plan {
        let meta = ObjectMeta {
            name: Some("x-0-2".to_owned()),
            namespace: Some("demo".to_owned()),
            ..ObjectMeta::default()
        };
        let made = Pod { metadata: meta, ..Pod::default() };
        let stopped = Write::DeletePod { name: "x-0-1".to_owned(), uid: "uid-pod".to_owned() };
        let action = |write| Action { resource: key("x"), write };
        let status = Status::Reranker(Box::default());
        Plan {
            actions: vec![action(Write::CreatePod(Box::new(made))), action(stopped)],
            statuses: vec![StatusUpdate { key: key("x"), uid: "uid-x".to_owned(), status }],
            notes: vec![
                note("y", "Ready", None),
                note("x", "Placed", Some("x-0-2")),
                note("x", "Restarting", None),
                note("x", "Pulling", Some("x-puller-1")),
            ],
            ..Plan::default()
        }
    }

    #[tokio::test]
    async fn why_a_pod_is_stopped_is_told_before_it_is() {
        let (mut writer, mut said) = writer().await;
        let applied = writer.apply(plan(), &Term::unlimited()).await;
        assert_eq!((applied.made.len(), applied.skipped, applied.retry_after), (1, false, None));
        let mut asked = Vec::new();
        while let Ok(told) = said.try_recv() {
            asked.push(told);
        }
        // Those that come last are told at once.
        asked[4..].sort();
        assert_eq!(
            asked,
            [
                "Restarting",
                "DELETE /api/v1/namespaces/demo/pods/x-0-1",
                "POST /api/v1/namespaces/demo/pods",
                "PATCH /apis/principium.ai/v1alpha1/namespaces/demo/rerankers/x/status",
                "Placed",
                "Ready",
            ]
        );
    }

    #[tokio::test]
    async fn a_leader_whose_term_has_ended_writes_nothing() {
        let Plan { actions, statuses, notes, .. } = plan();
        for (what, skips, plan) in [
            ("an action", true, Plan { actions, ..Plan::default() }),
            ("a status", true, Plan { statuses, ..Plan::default() }),
            ("an Event", false, Plan { notes, ..Plan::default() }),
        ] {
            let (mut writer, mut said) = writer().await;
            let applied = writer.apply(plan.clone(), &Term::until(Instant::now())).await;
            assert!(said.try_recv().is_err(), "{what}");
            let again = skips.then_some(FIRST_WAIT);
            assert_eq!((applied.skipped, applied.retry_after), (skips, again), "{what}");
            // Its term was prolonged after all.
            let applied = writer.apply(plan, &Term::unlimited()).await;
            assert!(said.try_recv().is_ok() && !applied.skipped, "{what}");
        }
    }
}
