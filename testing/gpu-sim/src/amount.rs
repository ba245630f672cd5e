//! Amounts of memory as a person writes and reads them. MiB inside.

use std::str::FromStr;

/// An amount of GPU memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The amount in MiB.
    pub mib: u64,
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is no amount of memory: write for example 3GiB, 1.5GiB or 512MiB");
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let mib_per_unit = match unit.trim().to_ascii_lowercase().as_str() {
            "mib" | "mi" | "m" | "" => 1,
            "gib" | "gi" | "g" => 1024,
            _ => return Err(error()),
        };
        // Fractions in thousandths, so that no float decides how much memory there is.
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.len() > 3 || number.ends_with('.') {
            return Err(error());
        }
        let whole: u64 = whole.parse().map_err(|_| error())?;
        let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| error())?;
        let mib = whole.checked_mul(mib_per_unit).ok_or_else(error)? + thousandths * mib_per_unit / 1000;
        Ok(Self { mib })
    }
}

/// An amount in the unit that reads best, `3.0 GiB` or `512 MiB`.
#[must_use]
pub fn readable(mib: u64) -> String {
    if mib < 1024 { format!("{mib} MiB") } else { format!("{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_in_the_units_that_people_write() {
        for (text, mib) in [
            ("3GiB", 3072),
            ("3 gib", 3072),
            ("3Gi", 3072),
            ("1.5GiB", 1536),
            ("512MiB", 512),
            ("0", 0),
            ("700", 700),
        ] {
            assert_eq!(text.parse::<Memory>().map(|memory| memory.mib), Ok(mib), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused_with_an_example() {
        for text in ["", "GiB", "-1GiB", "3TB", "1.GiB", "1.2345GiB", "99999999999999999999GiB"] {
            let error = text.parse::<Memory>().unwrap_err();
            assert!(error.contains("3GiB"), "{error}");
        }
    }

    #[test]
    fn amounts_read_well() {
        for (mib, text) in [(0, "0 MiB"), (1023, "1023 MiB"), (3072, "3.0 GiB"), (7967, "7.7 GiB")] {
            assert_eq!(readable(mib), text);
        }
    }
}
