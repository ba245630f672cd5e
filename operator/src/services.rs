//! Services of the resources, and whether an observed one is as wanted.

use crate::observed::Identity;
use crate::resource::Role;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What a Service is built from.
pub struct ServiceParts<'a> {
    pub id: &'a Identity,
    pub name: String,
    pub role: Role,
    pub port: u32,
    /// No address of its own: its name resolves to every ready pod.
    pub headless: bool,
}

/// A Service in front of the pods of one role, which listen on the port named `http`.
pub fn build_service(parts: ServiceParts<'_>) -> Service {
    Service {
        metadata: ObjectMeta {
            name: Some(parts.name),
            namespace: Some(parts.id.key.namespace.clone()),
            labels: Some(parts.id.key.labels()),
            owner_references: Some(vec![crate::finish::owner(parts.id)]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: parts.headless.then(|| "None".to_owned()),
            selector: Some(parts.id.key.selector(parts.role)),
            publish_not_ready_addresses: Some(false),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                port: i32::try_from(parts.port).unwrap_or(i32::MAX),
                target_port: Some(IntOrString::String("http".to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Whether an observed Service already is what is wanted; what the API server added doesn't matter.
pub fn covers(observed: &Service, wanted: &Service) -> bool {
    let label = |name| observed.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let labelled = wanted.metadata.labels.iter().flatten().all(|(name, value)| label(name) == Some(value));
    let (Some(is), Some(to_be)) = (&observed.spec, &wanted.spec) else { return false };
    fn ports(spec: &ServiceSpec) -> impl Iterator<Item = impl PartialEq> {
        let ports = spec.ports.iter().flatten();
        ports.map(|port| (&port.name, port.port, &port.target_port, &port.protocol))
    }
    labelled
        && is.selector == to_be.selector
        && (to_be.cluster_ip.is_none() || is.cluster_ip == to_be.cluster_ip)
        // The API server leaves out what is false.
        && is.publish_not_ready_addresses.unwrap_or_default()
            == to_be.publish_not_ready_addresses.unwrap_or_default()
        && ports(is).eq(ports(to_be))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Kind, Order, ResourceKey};

    fn service(port: u32) -> Service {
        let key = ResourceKey { kind: Kind::Reranker, namespace: "demo".to_owned(), name: "rr".to_owned() };
        let id = Identity {
            order: Order::new(0, jiff::Timestamp::UNIX_EPOCH, &key),
            uid: "u".to_owned(),
            generation: None,
            created: jiff::Timestamp::UNIX_EPOCH,
            leaving: false,
            key,
        };
        build_service(ServiceParts {
            id: &id,
            name: "rr".to_owned(),
            role: Role::Worker,
            port,
            headless: false,
        })
    }

    #[test]
    fn what_the_api_server_adds_is_no_difference_but_another_port_is() {
        let mut observed = service(9200);
        observed.metadata.uid = Some("x".to_owned());
        let spec = observed.spec.as_mut().unwrap();
        spec.cluster_ip = Some("10.0.0.1".to_owned());
        spec.publish_not_ready_addresses = None;
        assert!(covers(&observed, &service(9200)));
        assert!(!covers(&observed, &service(9300)));
    }
}
