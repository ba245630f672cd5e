//! `principium-operator check`: looks with the operator's own rights at whether an installation works, and says what is
//! wrong. `helm test` runs it. It changes nothing.

use crate::args::Args;
use crate::caches::PLUGIN_LEASE;
use crate::leader;
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

/// What the looks before saw. Renewals are compared with one another and never with this clock, from which that of a node
/// may differ.
#[derive(Default)]
struct Seen {
    /// The renewal of the leader's Lease, by the last look.
    leader: Option<MicroTime>,
    plugins: Plugins,
}

/// The renewal of each plugin's Lease by the first look that saw it, and when that was; by node.
type Plugins = BTreeMap<String, (MicroTime, Duration)>;

/// Whether a device plugin lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// It was seen to renew its Lease.
    Lives,
    /// It was not yet, and need not have been.
    Open,
    /// It did not renew it for as long as one renewal holds.
    Silent,
}

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
    let mut seen = Seen::default();
    loop {
        let (findings, open) = look(args, &client, &mut seen, started.elapsed()).await;
        let bad = findings.iter().any(|(_, finding)| matches!(finding, Finding::Bad(_)));
        if (bad || open) && started.elapsed() < PATIENCE {
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

/// What is found now, and whether a later look may find that another plugin lives.
async fn look(
    args: &Args,
    client: &Client,
    seen: &mut Seen,
    now: Duration,
) -> ([(&'static str, Finding); 3], bool) {
    let leases = Api::<Lease>::namespaced(client.clone(), &args.namespace);
    let found = leases.list(&ListParams::default()).await.map(|found| found.items);
    let (leader, plugins, open) = match &found {
        Ok(leases) => {
            let of_leader = leases.iter().find(|lease| lease.name_any() == leader::NAME);
            let leader = leader(of_leader, seen.leader.as_ref());
            seen.leader = of_leader.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
            let signs = signs(leases, &mut seen.plugins, now);
            let open = signs.values().any(|sign| *sign == Sign::Open);
            (leader, plugins(client, &signs).await, open)
        }
        Err(error) => {
            let bad = Finding::Bad(format!("the Leases in {} can't be read: {error}", args.namespace));
            (bad.clone(), bad, false)
        }
    };
    let rights = rights(client, args.watch_namespace.as_deref()).await;
    ([("rights", rights), ("leader", leader), ("GPUs", plugins)], open)
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

async fn plugins(client: &Client, signs: &BTreeMap<String, Sign>) -> Finding {
    match Api::<GPUNode>::all(client.clone()).list(&ListParams::default()).await {
        Ok(nodes) => gpus(&nodes.items, signs),
        Err(error) => Finding::Bad(format!("GPUNodes can't be read: {error}")),
    }
}

/// Which device plugins live, by node.
fn signs(leases: &[Lease], seen: &mut Plugins, now: Duration) -> BTreeMap<String, Sign> {
    leases.iter().filter_map(|lease| sign(lease, seen, now)).collect()
}

/// The node of a device plugin's Lease, and whether the plugin lives.
fn sign(lease: &Lease, seen: &mut Plugins, now: Duration) -> Option<(String, Sign)> {
    let node = lease.metadata.name.as_deref()?.strip_prefix(PLUGIN_LEASE)?;
    let spec = lease.spec.as_ref()?;
    let renewed = spec.renew_time.as_ref()?;
    let lasts = Duration::from_secs(spec.lease_duration_seconds?.try_into().ok()?);
    let (first, at) = seen.entry(node.to_owned()).or_insert_with(|| (renewed.clone(), now));
    let sign = if renewed != first {
        Sign::Lives
    } else if now.saturating_sub(*at) < lasts {
        Sign::Open
    } else {
        Sign::Silent
    };
    Some((node.to_owned(), sign))
}

fn gpus(nodes: &[GPUNode], signs: &BTreeMap<String, Sign>) -> Finding {
    let (mut gpus, mut offering, mut silent) = (0, 0, Vec::new());
    for node in nodes {
        let name = node.name_any();
        let status = node.status.as_ref();
        let found = status.map(|status| status.gpus.len()).unwrap_or_default();
        let message = status.and_then(|status| status.message.clone());
        match (signs.get(&name), message) {
            (Some(Sign::Lives), None) if found > 0 => {
                gpus += found;
                offering += 1;
            }
            (Some(Sign::Lives), message) => {
                silent.push(format!("{name} ({})", message.unwrap_or("no GPU".to_owned())));
            }
            (Some(Sign::Open | Sign::Silent) | None, _) => {
                silent.push(format!("{name} (its device plugin gives no sign of life)"));
            }
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

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
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
    fn a_plugin_lives_when_it_is_seen_to_renew_its_lease_whatever_its_clock_says() {
        // Hours apart: what the clocks of the nodes say is no sign.
        for renewed in [100, 100_000] {
            let mut seen = Plugins::new();
            let mut sign = |renewed, second| {
                let lease = lease("principium-gpu-a", "a", renewed);
                signs(&[lease], &mut seen, Duration::from_secs(second)).remove("a")
            };
            assert_eq!(sign(renewed, 0), Some(Sign::Open), "seen once only");
            assert_eq!(sign(renewed, 36), Some(Sign::Open), "one renewal holds 40 s");
            assert_eq!(sign(renewed, 40), Some(Sign::Silent), "paused, or gone");
            assert_eq!(sign(renewed + 10, 44), Some(Sign::Lives), "late");
            assert_eq!(sign(renewed - 500, 48), Some(Sign::Lives), "its clock was set");
        }
        let mut seen = Plugins::new();
        let leader = lease(leader::NAME, "op-1", 100);
        assert_eq!(signs(&[leader], &mut seen, Duration::ZERO), BTreeMap::new(), "not of a plugin");
        let first = |seen: &mut Plugins, second| {
            signs(&[lease("principium-gpu-b", "b", 7)], seen, Duration::from_secs(second)).remove("b")
        };
        assert_eq!(first(&mut seen, 50), Some(Sign::Open), "a node that came meanwhile has its time too");
        assert_eq!(first(&mut seen, 90), Some(Sign::Silent));
    }

    #[test]
    fn gpus_count_only_where_a_living_plugin_reports_them() {
        let gpu = json!({"index": 0, "uuid": "GPU-0", "product": "p", "pciAddress": "a", "units": 8,
            "memory": {"total": 8192, "used": 0, "free": 8192}});
        let good = node("a", &json!({"gpus": [gpu]}));
        let without = node("b", &json!({"message": "no driver"}));
        let both: BTreeMap<_, _> = ["a", "b"].map(|node| (node.to_owned(), Sign::Lives)).into();
        assert_eq!(gpus(std::slice::from_ref(&good), &both), Finding::Good("1 on 1 nodes".to_owned()));
        let found = gpus(&[good.clone(), without.clone()], &both);
        assert_eq!(found, Finding::Note("1 on 1 nodes; none on b (no driver)".to_owned()));
        let Finding::Bad(text) = gpus(&[without], &both) else { panic!("a GPU without a driver") };
        assert!(text.contains("no driver"), "{text}");
        for sign in [Sign::Open, Sign::Silent] {
            let Finding::Bad(text) = gpus(std::slice::from_ref(&good), &[("a".to_owned(), sign)].into())
            else {
                panic!("a plugin that is not seen to live")
            };
            assert!(text.contains("no sign of life"), "{text}");
        }
        assert!(matches!(gpus(&[], &BTreeMap::new()), Finding::Bad(_)));
    }
}
