//! The cluster's certificate authority, the certificates of its components, and their kubeconfigs.

use super::paths::{ADDRESS, API_PORT, DOMAIN, NODE, Paths, SERVICE_ADDRESS};
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Who a certificate is for: file name, user, group, and the names under which it serves.
const LEAVES: [(&str, &str, Option<&str>, &[&str]); 9] = [
    (
        "apiserver",
        "kube-apiserver",
        None,
        &[
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
            ADDRESS,
            SERVICE_ADDRESS,
        ],
    ),
    ("apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"), &[]),
    ("kubelet-server", "principium", None, &[NODE, ADDRESS, "127.0.0.1"]),
    ("admin", "principium-admin", Some("system:masters"), &[]),
    ("kube-controller-manager", "system:kube-controller-manager", None, &[]),
    ("kube-scheduler", "system:kube-scheduler", None, &[]),
    ("kubelet", "system:node:principium", Some("system:nodes"), &[]),
    ("kube-proxy", "system:kube-proxy", None, &[]),
    ("coredns", "system:coredns", None, &[]),
];

/// Makes all certificates and kubeconfigs, unless they are there.
///
/// # Errors
/// When a file can't be written.
pub fn ensure(paths: &Paths) -> Result<()> {
    let done = paths.pki("complete");
    if done.exists() {
        return Ok(());
    }
    fs::create_dir_all(paths.pki(""))?;
    fs::set_permissions(paths.pki(""), fs::Permissions::from_mode(0o700))?;

    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name = name("principium-local-cluster", None);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    let authority = parameters.self_signed(&key)?;
    secret(&paths.pki("ca.crt"), &authority.pem())?;
    secret(&paths.pki("ca.key"), &key.serialize_pem())?;
    let issuer = Issuer::from_params(&parameters, &key);

    for (file, user, group, names) in LEAVES {
        let key = KeyPair::generate()?;
        let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        if file == "apiserver" {
            names.push(format!("kubernetes.default.svc.{DOMAIN}"));
        }
        let mut parameters = CertificateParams::new(names)?;
        parameters.distinguished_name = name(user, group);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        secret(&paths.pki(&format!("{file}.crt")), &parameters.signed_by(&key, &issuer)?.pem())?;
        secret(&paths.pki(&format!("{file}.key")), &key.serialize_pem())?;
    }

    let tokens = KeyPair::generate()?;
    secret(&paths.pki("service-account.key"), &tokens.serialize_pem())?;
    secret(&paths.pki("service-account.pub"), &tokens.public_key_pem())?;

    for component in ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns"] {
        let target = paths.component_kubeconfig(component);
        kubeconfig(paths, component, &target)?;
    }
    kubeconfig(paths, "admin", &paths.kubeconfig())?;
    fs::write(done, "")?;
    Ok(())
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

fn kubeconfig(paths: &Paths, user: &str, target: &Path) -> Result<()> {
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: principium
contexts:
  - name: principium
    context: {{cluster: principium, user: {user}}}
clusters:
  - name: principium
    cluster:
      server: https://{ADDRESS}:{API_PORT}
      certificate-authority: {ca}
users:
  - name: {user}
    user:
      client-certificate: {certificate}
      client-key: {key}
",
        ca = paths.pki("ca.crt").display(),
        certificate = paths.pki(&format!("{user}.crt")).display(),
        key = paths.pki(&format!("{user}.key")).display(),
    );
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    secret(target, &text)
}

/// Writes a file that only its owner may read.
fn secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let _ = fs::remove_file(path);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}
