//! Bodies of requests as JSON, and what is wrong with them, in words that name the field and its value.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use serde::de::DeserializeOwned;
use serde_json::{Deserializer, Value};
use serde_path_to_error::{Path, Segment};

use super::error::ApiError;

/// How much of a wrong value is repeated, in characters.
const SHOWN: usize = 60;
/// Largest body of which a wrong value is repeated, in bytes: to look it up takes many times as much memory.
const REPEATED: usize = 1 << 20;

/// A request's body as JSON, whatever content type it claims.
pub fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, ApiError> {
    let body = body?;
    serde_json::from_slice(&body).map_err(|error| ApiError::validation(explain::<T>(&body, &error)))
}

/// Reads a body that is wrong once more, to say where. Good ones don't pay for it.
fn explain<T: DeserializeOwned>(body: &[u8], error: &serde_json::Error) -> String {
    let mut deserializer = Deserializer::from_slice(body);
    let found = serde_path_to_error::deserialize::<_, T>(&mut deserializer).err();
    if body.len() > REPEATED {
        let path = found.as_ref().map(serde_path_to_error::Error::path);
        return match path.filter(|path| path.iter().len() > 0) {
            Some(path) if error.is_data() => format!("{path}: {error}"),
            None if error.is_data() => format!("the request's body: {error}"),
            _ => format!("the request's body is not JSON: {error}"),
        };
    }
    let value = serde_json::from_slice::<Value>(body).ok();
    match (&found, &value) {
        (Some(found), Some(whole)) if found.path().iter().len() > 0 => {
            let value = find(whole, found.path()).map_or_else(|| "missing".to_owned(), shorten);
            format!("{} is {value}: {error}", found.path())
        }
        (_, Some(_)) => format!("the request's body: {error}"),
        (_, None) => format!("the request's body is not JSON: {error}"),
    }
}

fn find<'a>(value: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get(index),
        Segment::Map { key } => value.get(key),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only what is refused is looked at")]
    struct Body {
        texts: Vec<String>,
        count: Option<usize>,
    }

    #[test]
    fn a_wrong_body_is_answered_with_the_field_and_its_value() {
        let long = format!(r#"{{"texts":["a"],"count":"{}"}}"#, "x".repeat(500));
        let large = |rest: &str| format!(r#"{{"texts":["{}"{rest}"#, "x".repeat(REPEATED));
        let (wrong, missing, broken) =
            (large(",5]}"), format!("{{}}{}", " ".repeat(REPEATED)), large(",a]}"));
        for (body, expected) in [
            ("nonsense", "the request's body is not JSON: expected ident"),
            ("{}", "the request's body: missing field `texts`"),
            (r#"{"texts":["a",5]}"#, "texts[1] is 5: invalid type: integer `5`, expected a string"),
            (r#"{"texts":[],"count":-1}"#, "count is -1: invalid value: integer `-1`"),
            (r#"{"texts":[],"top":1}"#, "top is 1: unknown field `top`, expected `texts` or `count`"),
            (&long, "xxx…: invalid type"),
            (&wrong, "texts[1]: invalid type: integer `5`, expected a string"),
            (&missing, "the request's body: missing field `texts`"),
            (&broken, "the request's body is not JSON: expected value"),
        ] {
            let answer = parse::<Body>(Ok(Bytes::copy_from_slice(body.as_bytes()))).unwrap_err();
            assert!(answer.to_string().contains(expected), "{body}: {answer}");
        }
    }
}
