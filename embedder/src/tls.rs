//! TLS of this process: which cryptography it uses, and the clients that speak it.

use std::sync::Arc;

/// Chooses the cryptography; needed before the first HTTP client is made. Another part of the process may have chosen already.
pub fn install() {
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// A builder of HTTP clients that say who they are.
pub fn http_client() -> reqwest::ClientBuilder {
    install();
    reqwest::Client::builder().user_agent(concat!("principium-embedder/", env!("CARGO_PKG_VERSION")))
}

/// TLS with the system's certificates, for what is no HTTP.
pub fn config() -> rustls::ClientConfig {
    install();
    let mut roots = rustls::RootCertStore::empty();
    // One that can't be read is left out; a server that needs it will say so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    rustls::ClientConfig::builder().with_root_certificates(Arc::new(roots)).with_no_client_auth()
}
