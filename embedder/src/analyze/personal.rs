//! Hints of personal data: what looks like it and passes the checks that its kind has. Hints, not a promise: names and postal
//! addresses are not looked for. Pure.

use regex::Regex;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// Places that are told of each kind.
const PLACES: usize = 20;

/// Personal data of one kind in a document. What it says is not repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PersonalData {
    /// `email`, `phone`, `iban`, `card` or `ip`.
    pub kind: &'static str,
    /// How often.
    pub count: usize,
    /// Where, at most the first twenty: first byte and the byte after the last.
    pub places: Vec<(usize, usize)>,
}

/// What may be of a kind, and whether it is.
struct Kind {
    name: &'static str,
    pattern: LazyLock<Regex>,
    check: fn(&str) -> bool,
}

/// The kinds; a place belongs to the first that takes it.
static KINDS: [Kind; 6] = [
    Kind {
        name: "email",
        pattern: LazyLock::new(|| {
            compile(r"[\p{L}\p{N}._%+-]+@[\p{L}\p{N}-]+(?:\.[\p{L}\p{N}-]+)*\.\p{L}{2,}")
        }),
        check: |_| true,
    },
    Kind {
        name: "iban",
        pattern: LazyLock::new(|| compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")),
        check: is_iban,
    },
    Kind {
        name: "card",
        pattern: LazyLock::new(|| compile(r"\b[2-6][0-9](?:[ -]?[0-9]){11,17}\b")),
        check: is_card,
    },
    Kind {
        name: "ip",
        pattern: LazyLock::new(|| compile(r"\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b")),
        check: |text| text.parse::<Ipv4Addr>().is_ok_and(|address| !address.is_unspecified()),
    },
    Kind {
        name: "ip",
        pattern: LazyLock::new(|| compile(r"[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}")),
        check: |text| text.len() > 7 && text.parse::<Ipv6Addr>().is_ok(),
    },
    Kind {
        name: "phone",
        pattern: LazyLock::new(|| {
            compile(
                r"(?:\+|\b00)[1-9][0-9]{0,2}(?:[ ./-]?\(?[0-9]{1,5}\)?){2,6}\b|\(?\b0?[1-9][0-9]{1,4}\)?[ /-][0-9]{3,5}(?:[ -][0-9]{2,5}){0,3}\b",
            )
        }),
        check: is_phone,
    },
];

/// The personal data in a text.
pub fn find(text: &str) -> Vec<PersonalData> {
    // The end of each place by its start. They don't overlap: only the last that starts before a place ends can reach into it.
    let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
    let mut found: Vec<PersonalData> = Vec::new();
    for kind in &KINDS {
        for place in kind.pattern.find_iter(text).filter(|found| (kind.check)(found.as_str())) {
            let place = place.range();
            if taken.range(..place.end).next_back().is_some_and(|(_, end)| place.start < *end) {
                continue;
            }
            let entry = match found.iter_mut().find(|it| it.kind == kind.name) {
                Some(entry) => entry,
                None => {
                    found.push(PersonalData { kind: kind.name, count: 0, places: Vec::new() });
                    let last = found.len() - 1;
                    &mut found[last]
                }
            };
            entry.count += 1;
            if entry.places.len() < PLACES {
                entry.places.push((place.start, place.end));
            }
            taken.insert(place.start, place.end);
        }
    }
    found
}

#[expect(clippy::expect_used, reason = "the patterns are constants, and a test compiles each")]
fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

/// ISO 13616: the number, with its beginning moved to its end, leaves 1 when divided by 97.
fn is_iban(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| *c != ' ').collect();
    let Some((beginning, rest)) = plain.split_at_checked(4) else { return false };
    let remainder = rest.chars().chain(beginning.chars()).try_fold(0_u32, |remainder, character| {
        let value = character.to_digit(36)?;
        Some((remainder * if value > 9 { 100 } else { 10 } + value) % 97)
    });
    (15..=34).contains(&plain.len()) && remainder == Some(1)
}

/// Luhn's check, on as many digits as cards have.
fn is_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => *digit,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    let alike = digits.windows(2).all(|pair| pair[0] == pair[1]);
    (13..=19).contains(&digits.len()) && sum.is_multiple_of(10) && !alike
}

/// As many digits as numbers have, and no date or year range.
fn is_phone(text: &str) -> bool {
    let digits = text.chars().filter(char::is_ascii_digit).count();
    let international = text.starts_with('+') || text.starts_with("00");
    (if international { 8 } else { 9 }..=15).contains(&digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personal_data_is_found_where_it_is_and_nowhere_else() {
        for (text, expected) in [
            ("Write to anna.roe+news@mail.example.org.", vec![("email", 1)]),
            ("DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432", vec![("iban", 2)]),
            ("DE89 3704 0044 0532 0130 02 has a wrong check", vec![]),
            ("Card 4111 1111 1111 1111, not 4111 1111 1111 1112.", vec![("card", 1)]),
            ("Call +49 30 901820 or (030) 901-8200 or 415-555-0132.", vec![("phone", 3)]),
            ("From 192.168.1.17 and 2001:db8::ff00:42:8329, not 999.1.1.1 nor 12:30:45.", vec![("ip", 2)]),
            ("In 1626-1628 she cost 40 000 daler, on page 1234567890123.", vec![]),
            ("Version 1.2.3, 3.14159265358979 and 2026-01-31.", vec![]),
            ("To 192.168.1.17@example.org, 10.0.0.1 or 10.0.0.2@example.org.", vec![("email", 2), ("ip", 1)]),
        ] {
            let found: Vec<(&str, usize)> = find(text).iter().map(|it| (it.kind, it.count)).collect();
            assert_eq!(found, expected, "{text}: {:?}", find(text));
        }
        // Each is compared with one place, and not with all that were found before.
        let many = find(&"10.0.0.1 a@example.org ".repeat(100_000));
        let many: Vec<(&str, usize)> = many.iter().map(|it| (it.kind, it.count)).collect();
        assert_eq!(many, [("email", 100_000), ("ip", 100_000)]);
        let text = "ä anna@example.org";
        assert_eq!(&text[find(text)[0].places[0].0..], "anna@example.org");
    }
}
