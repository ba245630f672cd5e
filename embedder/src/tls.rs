//! Which cryptography TLS uses in this process.

/// Chooses it; needed before the first HTTP client is made. Another part of the process may have chosen already.
pub fn install() {
    drop(rustls::crypto::ring::default_provider().install_default());
}
