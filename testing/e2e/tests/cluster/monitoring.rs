//! The dashboard and the alerts ask for what the parts really tell.

use crate::pods::reranker;
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use principium_api::Reranker;
use principium_e2e::{gpus, run};
use promql_parser::parser::{Expr, parse};
use promql_parser::util::{ExprVisitor, walk_expr};
use std::collections::BTreeSet;
use std::fs;

#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_that_exist() -> Result<()> {
    run("monitoring", |world| async move {
        let asked = asked()?;
        assert!(asked.len() > 15, "{asked:?}");
        // What is told only once something has happened.
        gpus::set(0, &["--xid", "13"])?;
        world.apply::<Reranker>(&reranker("scored", "{memory: 2Gi}")).await?;
        world.ready::<Reranker>("scored").await?;
        let worker = world.pods_of("scored").await?.pop().context("the Reranker has no pod")?;
        let rerank = format!("{}/rerank", proxy(&worker, 9200));
        let body = br#"{"query": "q", "texts": ["a", "b"]}"#.to_vec();
        let request = http::Request::post(rerank).header("content-type", "application/json").body(body)?;
        world.client.request_text(request).await?;

        world
            .eventually("every metric that is asked for is told", || async {
                let told = told(&world.client, &worker).await?;
                let missing: Vec<_> = asked.difference(&told).collect();
                if missing.is_empty() {
                    return Ok(Some(()));
                }
                eprintln!("not told: {missing:?}");
                Ok(None)
            })
            .await
    })
}

/// Names of the metrics that the chart's dashboard and alerts ask for.
fn asked() -> Result<BTreeSet<String>> {
    let folder = principium_local_cluster::repository().join("charts/principium/files/monitoring");
    let dashboard: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("dashboard.json"))?)?;
    let alerts: serde_json::Value = serde_yaml::from_slice(&fs::read(folder.join("alerts.yaml"))?)?;
    let mut expressions = Vec::new();
    collect(&dashboard, &mut expressions);
    collect(&alerts, &mut expressions);
    let mut names = Names::default();
    for expression in expressions {
        let expression = expression.replace("$__rate_interval", "5m");
        let parsed = parse(&expression).map_err(|error| anyhow::anyhow!("{expression}: {error}"))?;
        walk_expr(&mut names, &parsed)?;
    }
    Ok(names.0)
}

/// Every text under a key `expr`.
fn collect(value: &serde_json::Value, expressions: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            expressions.extend(fields.get("expr").and_then(|expr| expr.as_str()).map(str::to_owned));
            fields.values().for_each(|value| collect(value, expressions));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, expressions)),
        _ => {}
    }
}

#[derive(Default)]
struct Names(BTreeSet<String>);

impl ExprVisitor for Names {
    type Error = anyhow::Error;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool> {
        let selector = match expression {
            Expr::VectorSelector(selector) => Some(selector),
            Expr::MatrixSelector(matrix) => Some(&matrix.vs),
            _ => None,
        };
        self.0.extend(selector.and_then(|selector| selector.name.clone()));
        Ok(true)
    }
}

/// Names of the metrics that the operator, the device plugin and a worker tell.
async fn told(client: &Client, worker: &Pod) -> Result<BTreeSet<String>> {
    let ours = Api::<Pod>::namespaced(client.clone(), principium_local_cluster::NAMESPACE);
    let mut pods = vec![(worker.clone(), 9200)];
    for (component, port) in [("operator", 8080), ("device-plugin", 9401)] {
        let labels = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
        pods.extend(ours.list(&labels).await?.items.into_iter().map(|pod| (pod, port)));
    }
    let mut names = BTreeSet::new();
    for (pod, port) in pods {
        let request = http::Request::get(format!("{}/metrics", proxy(&pod, port))).body(Vec::new())?;
        let text = client.request_text(request).await?;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        names.extend(samples.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned));
    }
    Ok(names)
}

/// The way to a pod's port through the API server.
fn proxy(pod: &Pod, port: u16) -> String {
    let namespace = pod.namespace().unwrap_or_default();
    format!("/api/v1/namespaces/{namespace}/pods/{}:{port}/proxy", pod.name_any())
}
