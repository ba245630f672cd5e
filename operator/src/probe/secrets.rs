//! Reads the keys that DataFactories want to be shown, one at a time and when it is needed. The operator has no right to read
//! Secrets; who wants jobs of a DataFactory with a key gives it the right to this one.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use principium_api::pod::SecretKeyRef;
use std::time::Duration;
use tokio::time::timeout;

/// Longest wait for the API server.
const PATIENCE: Duration = Duration::from_secs(10);
/// The key in a Secret where none is named.
const DEFAULT_KEY: &str = "api-key";

/// Reads keys.
#[derive(Clone)]
pub struct Secrets(Option<Client>);

/// A key. It is shown to nobody but the server that wants it.
#[derive(Clone)]
pub struct Key(String);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "the operator may not read Secret {0}, which has the key that the DataFactory wants: give it the right to `get` it"
    )]
    Forbidden(String),
    #[error("Secret {0} does not exist")]
    Missing(String),
    #[error("Secret {secret} has no text under {key:?}")]
    Empty { secret: String, key: String },
    #[error("Secret {0} can't be read: the API server does not answer")]
    Silent(String),
}

impl Secrets {
    pub fn new(client: Client) -> Self {
        Self(Some(client))
    }

    pub async fn read(&self, namespace: &str, reference: &SecretKeyRef) -> Result<Key, KeyError> {
        let secret = format!("{namespace}/{}", reference.name);
        let Some(client) = &self.0 else { return Err(KeyError::Silent(secret)) };
        let api = Api::<Secret>::namespaced(client.clone(), namespace);
        let found = match timeout(PATIENCE, api.get_opt(&reference.name)).await {
            Ok(Ok(Some(found))) => found,
            Ok(Ok(None)) => return Err(KeyError::Missing(secret)),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                return Err(KeyError::Forbidden(secret));
            }
            // What else the client says is left out: it may have read a part of the Secret.
            Ok(Err(_)) | Err(_) => return Err(KeyError::Silent(secret)),
        };
        let key = reference.key.as_deref().unwrap_or(DEFAULT_KEY);
        let text = found.data.as_ref().and_then(|data| std::str::from_utf8(&data.get(key)?.0).ok());
        let first = text.and_then(first).ok_or_else(|| KeyError::Empty { secret, key: key.to_owned() })?;
        Ok(Key(first.to_owned()))
    }
}

#[cfg(test)]
impl Secrets {
    /// One that reads nothing.
    pub fn nobodys() -> Self {
        Self(None)
    }
}

#[cfg(test)]
impl Key {
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Key {
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// The first of several keys, one a line or divided by commas: each of them opens the server.
fn first(text: &str) -> Option<&str> {
    text.split([',', '\n']).map(str::trim).find(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_keys_the_first_is_shown() {
        for (text, key) in [("a", Some("a")), ("\n a, b\n", Some("a")), (" ,\n", None)] {
            assert_eq!(first(text), key, "{text:?}");
        }
    }
}
