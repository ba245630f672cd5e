//! Clients of other servers: what they have in common is TLS.

use std::sync::Arc;

/// A builder of HTTP clients that speak HTTPS.
pub fn http() -> reqwest::ClientBuilder {
    install_tls();
    reqwest::Client::builder().user_agent(concat!("principium-embedder/", env!("CARGO_PKG_VERSION")))
}

/// TLS with the system's certificates.
pub fn tls() -> rustls::ClientConfig {
    install_tls();
    let mut roots = rustls::RootCertStore::empty();
    // One that can't be read is left out; a server that needs it will say so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    rustls::ClientConfig::builder().with_root_certificates(Arc::new(roots)).with_no_client_auth()
}

/// Says which cryptography rustls uses in this process. Needed before the first client is made.
pub fn install_tls() {
    // Whoever was first has installed the same.
    drop(rustls::crypto::ring::default_provider().install_default());
}
