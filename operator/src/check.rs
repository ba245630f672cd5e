//! `principium-operator check`: looks with the operator's own rights at whether an installation works, and says what is
//! wrong. `helm test` runs it. It changes nothing.

use crate::args::Args;
use crate::caches::PLUGIN_LEASE;
use crate::leader;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use principium_api::GPUNode;
use principium_api::names::GROUP;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What the operator does: group, resource and verb. What it may not do, it will fail at.
const RIGHTS: [(&str, &str, &str); 24] = [
    (GROUP, "datafactories", "watch"),
    (GROUP, "rerankers", "watch"),
    (GROUP, "ollamapools", "watch"),
    (GROUP, "ingestions", "watch"),
    (GROUP, "datafactories/status", "patch"),
    (GROUP, "rerankers/status", "patch"),
    (GROUP, "ollamapools/status", "patch"),
    (GROUP, "ingestions/status", "patch"),
    ("", "pods", "watch"),
    ("", "pods", "get"),
    ("", "pods", "create"),
    ("", "pods", "delete"),
    ("", "pods/status", "patch"),
    ("", "services", "watch"),
    // Whose it is that has the name.
    ("", "services", "get"),
    // Server-side apply is a patch, and a creation the first time.
    ("", "services", "create"),
    ("", "services", "patch"),
    ("", "services", "delete"),
    ("policy", "poddisruptionbudgets", "watch"),
    ("policy", "poddisruptionbudgets", "get"),
    ("policy", "poddisruptionbudgets", "create"),
    ("policy", "poddisruptionbudgets", "patch"),
    ("policy", "poddisruptionbudgets", "delete"),
    ("events.k8s.io", "events", "create"),
];
/// How long an installation that has just been made may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks; longer than between two renewals of the leader's Lease.
const BETWEEN: Duration = Duration::from_secs(4);
/// How late a plugin's renewal may be, clocks that differ included.
const LATE: SignedDuration = SignedDuration::from_secs(60);

/// The outcome of one look.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    /// As it must be.
    Good(String),
    /// It works, but somebody should know.
    Note(String),
    /// Something can't work.
    Bad(String),
}

/// Prints every finding; fails if one of them is still bad after a while.
pub async fn check(args: &Args, client: Client) -> ExitCode {
    let started = Instant::now();
    let mut renewed = None;
    loop {
        let findings = look(args, &client, &mut renewed).await;
        let bad = findings.iter().any(|(_, finding)| matches!(finding, Finding::Bad(_)));
        if bad && started.elapsed() < PATIENCE {
            sleep(BETWEEN).await;
            continue;
        }
        for (what, finding) in findings {
            let (sign, text) = match finding {
                Finding::Good(text) => ("ok  ", text),
                Finding::Note(text) => ("note", text),
                Finding::Bad(text) => ("BAD ", text),
            };
            println!("{sign}  {what}: {text}");
        }
        return if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
}

async fn look(args: &Args, client: &Client, renewed: &mut Option<MicroTime>) -> [(&'static str, Finding); 3] {
    let leases = Api::<Lease>::namespaced(client.clone(), &args.namespace);
    let found = leases.list(&ListParams::default()).await.map(|found| found.items);
    let (leader, plugins) = match &found {
        Ok(leases) => {
            let of_leader = leases.iter().find(|lease| lease.name_any() == leader::NAME);
            let leader = leader(of_leader, renewed.as_ref());
            *renewed = of_leader.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
            (leader, plugins(client, leases).await)
        }
        Err(error) => {
            let bad = Finding::Bad(format!("the Leases in {} can't be read: {error}", args.namespace));
            (bad.clone(), bad)
        }
    };
    [("rights", rights(client, args.watch_namespace.as_deref()).await), ("leader", leader), ("GPUs", plugins)]
}

async fn rights(client: &Client, namespace: Option<&str>) -> Finding {
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut lacking = Vec::new();
    for (group, resource, verb) in RIGHTS {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: Some(subresource.to_owned()),
            verb: Some(verb.to_owned()),
            namespace: namespace.map(ToOwned::to_owned),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
            ..SelfSubjectAccessReview::default()
        };
        match reviews.create(&PostParams::default(), &review).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => {}
            Ok(_) => lacking.push(format!(
                "{verb} {resource}{}{subresource}",
                if subresource.is_empty() { "" } else { "/" }
            )),
            Err(error) => {
                return Finding::Bad(format!("the API server doesn't say what is allowed: {error}"));
            }
        }
    }
    let scope =
        namespace.map_or_else(|| "in all namespaces".to_owned(), |name| format!("in namespace {name}"));
    if lacking.is_empty() {
        Finding::Good(format!("all that the operator needs {scope}"))
    } else {
        Finding::Bad(format!("the operator's service account may not {} {scope}", lacking.join(", ")))
    }
}

/// `before`: the renewal that the last look saw.
fn leader(lease: Option<&Lease>, before: Option<&MicroTime>) -> Finding {
    let spec = lease.and_then(|lease| lease.spec.as_ref());
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
    let Some(holder) = holder else {
        return Finding::Bad("no operator leads; look at the logs of the operator's pods".to_owned());
    };
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
    // Two looks instead of a comparison with this clock, which may differ.
    if before.is_some() && renewed != before {
        Finding::Good(format!("{holder} leads and renews its Lease"))
    } else {
        Finding::Bad(format!("{holder} holds the Lease and does not renew it"))
    }
}

async fn plugins(client: &Client, leases: &[Lease]) -> Finding {
    let alive: BTreeMap<String, bool> =
        leases.iter().filter_map(|lease| plugin(lease, Timestamp::now())).collect();
    match Api::<GPUNode>::all(client.clone()).list(&ListParams::default()).await {
        Ok(nodes) => gpus(&nodes.items, &alive),
        Err(error) => Finding::Bad(format!("GPUNodes can't be read: {error}")),
    }
}

/// The node of a device plugin's Lease, and whether the plugin lives.
fn plugin(lease: &Lease, now: Timestamp) -> Option<(String, bool)> {
    let node = lease.metadata.name.as_deref()?.strip_prefix(PLUGIN_LEASE)?;
    let spec = lease.spec.as_ref()?;
    let lasts = SignedDuration::from_secs(spec.lease_duration_seconds?.into());
    Some((node.to_owned(), now.duration_since(spec.renew_time.as_ref()?.0) < lasts + LATE))
}

fn gpus(nodes: &[GPUNode], alive: &BTreeMap<String, bool>) -> Finding {
    let (mut gpus, mut offering, mut silent) = (0, 0, Vec::new());
    for node in nodes {
        let name = node.name_any();
        let status = node.status.as_ref();
        let found = status.map(|status| status.gpus.len()).unwrap_or_default();
        let message = status.and_then(|status| status.message.clone());
        match (alive.get(&name), message) {
            (Some(true), None) if found > 0 => {
                gpus += found;
                offering += 1;
            }
            (Some(true), message) => {
                silent.push(format!("{name} ({})", message.unwrap_or("no GPU".to_owned())));
            }
            (_, _) => silent.push(format!("{name} (its device plugin gives no sign of life)")),
        }
    }
    if offering == 0 {
        let why = if silent.is_empty() { "there is no GPUNode".to_owned() } else { silent.join(", ") };
        return Finding::Bad(format!("no node offers any: {why}; look at the logs of the device plugins"));
    }
    let text = format!("{gpus} on {offering} nodes");
    if silent.is_empty() {
        Finding::Good(text)
    } else {
        Finding::Note(format!("{text}; none on {}", silent.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn lease(name: &str, holder: &str, renewed: i64) -> Lease {
        Lease {
            metadata: kube::core::ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(40),
                renew_time: Some(MicroTime(at(renewed))),
                ..LeaseSpec::default()
            }),
        }
    }

    fn node(name: &str, status: &serde_json::Value) -> GPUNode {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {}, "status": status})).unwrap()
    }

    #[test]
    fn an_operator_leads_when_it_is_seen_to_renew_its_lease() {
        let held = lease(leader::NAME, "op-1", 100);
        let (same, older) = (MicroTime(at(100)), MicroTime(at(98)));
        assert!(matches!(leader(Some(&held), Some(&older)), Finding::Good(_)));
        assert!(matches!(leader(Some(&held), Some(&same)), Finding::Bad(_)), "paused, or gone");
        assert!(matches!(leader(Some(&held), None), Finding::Bad(_)), "seen once only");
        assert!(matches!(leader(Some(&lease(leader::NAME, "", 100)), Some(&older)), Finding::Bad(_)));
        assert!(matches!(leader(None, None), Finding::Bad(_)));
    }

    #[test]
    fn gpus_count_only_where_a_living_plugin_reports_them() {
        let gpu = json!({"index": 0, "uuid": "GPU-0", "product": "p", "pciAddress": "a", "units": 8,
            "memory": {"total": 8192, "used": 0, "free": 8192}});
        let good = node("a", &json!({"gpus": [gpu]}));
        let without = node("b", &json!({"message": "no driver"}));
        let alive = |leases: &[Lease]| leases.iter().filter_map(|lease| plugin(lease, at(1000))).collect();
        let both: BTreeMap<_, _> =
            alive(&[lease("principium-gpu-a", "a", 990), lease("principium-gpu-b", "b", 990)]);
        assert_eq!(gpus(std::slice::from_ref(&good), &both), Finding::Good("1 on 1 nodes".to_owned()));
        let found = gpus(&[good.clone(), without.clone()], &both);
        assert_eq!(found, Finding::Note("1 on 1 nodes; none on b (no driver)".to_owned()));
        let Finding::Bad(text) = gpus(&[without], &both) else { panic!("a GPU without a driver") };
        assert!(text.contains("no driver"), "{text}");
        let dead = alive(&[lease("principium-gpu-a", "a", 800)]);
        let Finding::Bad(text) = gpus(&[good], &dead) else { panic!("a plugin that is dead") };
        assert!(text.contains("no sign of life"), "{text}");
        assert!(matches!(gpus(&[], &BTreeMap::new()), Finding::Bad(_)));
    }
}
