//! What the embedder's figures have to reach against ONNX Runtime in f32, and which of them do.

use super::{BASELINE, Figures};
use anyhow::{Result, ensure};

/// Tokens a second, in multiples of the baseline's.
const THROUGHPUT: [(&str, f64); 3] =
    [("principium f32", 1.0), ("principium bf16", 2.0), ("principium int8", 3.0)];
/// The lowest cosine of a vector to that in f32.
const COSINE: (&str, f64) = ("principium bf16", 0.999);
/// The texts that are computed one at a time, for a median that is at most the baseline's.
const TEXTS: [&str; 2] = ["short", "long"];

/// The tables that have targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Throughput,
    Latency,
    Quality,
}

/// A figure of one contender that has to reach something.
pub(super) struct Target {
    table: Table,
    contender: &'static str,
    /// What has to be reached, as its table says it.
    bound: String,
    met: bool,
    /// What there is instead, where it was missed.
    found: String,
}

impl Figures {
    /// All targets. One whose figures are not there is missed.
    pub(super) fn targets(&self) -> Vec<Target> {
        let speed = |name: &str| {
            let found = self.throughput.iter().find(|it| it.name == name);
            found.map_or(f64::NAN, |it| it.tokens_per_second)
        };
        let median = |name: &str, text: &str| {
            let found = self.latency.iter().find(|it| it.name == name && it.text == text);
            found.map_or(f64::NAN, |it| it.p50)
        };
        let mut targets = Vec::new();
        for (contender, least) in THROUGHPUT {
            let ratio = speed(contender) / speed(BASELINE);
            targets.push(Target {
                table: Table::Throughput,
                contender,
                bound: format!("≥ {least:.1}×"),
                met: ratio >= least,
                found: format!("{ratio:.3}× as many tokens/s"),
            });
            for text in TEXTS {
                let (own, most) = (median(contender, text), median(BASELINE, text));
                targets.push(Target {
                    table: Table::Latency,
                    contender,
                    bound: format!("{text} p50 ≤ {most:.1}"),
                    met: own <= most,
                    found: format!("{own:.2} ms"),
                });
            }
        }
        let (contender, least) = COSINE;
        let found = self.quality.iter().find(|it| it.name == contender);
        let lowest = found.map_or(f64::NAN, |it| it.cosine_min);
        targets.push(Target {
            table: Table::Quality,
            contender,
            bound: format!("lowest ≥ {least}"),
            met: lowest >= least,
            found: format!("a cosine of {lowest:.5}"),
        });
        targets
    }
}

/// What the column of targets has for a contender; nothing where it has none.
pub(super) fn cell(targets: &[Target], table: Table, contender: &str) -> String {
    let own = targets.iter().filter(|it| it.table == table && it.contender == contender);
    let words = own.map(|it| format!("{}: {}", it.bound, if it.met { "met" } else { "missed" }));
    words.collect::<Vec<_>>().join(", ")
}

/// Fails with the names of those that were missed.
pub(super) fn judge(targets: &[Target]) -> Result<()> {
    let missed = targets.iter().filter(|it| !it.met);
    let missed: Vec<String> =
        missed.map(|it| format!("{} has {}, not {}", it.contender, it.found, it.bound)).collect();
    ensure!(missed.is_empty(), "missed targets against {BASELINE}: {}", missed.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Figures that meet every target, some of them barely, but for one that is changed.
    fn figures(change: impl FnOnce(&mut Value)) -> Figures {
        let speed = |name: &str, speed: f64| json!({ "name": name, "tokens_per_second": speed, "slowest": speed, "fastest": speed });
        let time =
            |name: &str, text: &str, p50: f64| json!({ "name": name, "text": text, "p50": p50, "p99": 9.0 });
        let quality = |name: &str, lowest: f64| {
            json!({
                "name": name, "queries": 9, "cosine_mean": 1.0, "cosine_min": lowest,
                "recall_1": 0.5, "recall_10": 0.8, "ndcg_10": 0.6,
            })
        };
        let mut value = json!({
            "texts": 256, "tokens": 2560, "short_tokens": 11, "long_tokens": 96, "rounds": 5,
            "kernels": { "f32": "avx512" },
            "throughput": [
                speed("principium f32", 1000.0), speed("principium bf16", 2000.0),
                speed("principium int8", 3000.0), speed(BASELINE, 1000.0),
            ],
            "latency": [
                time("principium f32", "short", 2.0), time("principium f32", "long", 8.0),
                time("principium bf16", "short", 1.0), time("principium bf16", "long", 4.0),
                time("principium int8", "short", 0.5), time("principium int8", "long", 2.0),
                time(BASELINE, "short", 2.0), time(BASELINE, "long", 8.0),
            ],
            "quality": [quality("principium f32", 1.0), quality("principium bf16", 0.999)],
            "server": { "alone": { "p50": 1.0, "p99": 2.0 }, "beside_bulk": { "p50": 1.0, "p99": 2.0 } },
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_missed_fails_by_name_and_stands_in_its_table() {
        type Change = fn(&mut Value);
        let met = figures(|_| ());
        judge(&met.targets()).unwrap();
        let table = met.markdown();
        assert!(table.contains("| principium bf16 | 2000 | 2000–2000 | 2.00× | ≥ 2.0×: met |"), "{table}");
        assert!(table.contains("| 8.0 | 9.0 | short p50 ≤ 2.0: met, long p50 ≤ 8.0: met |"), "{table}");
        assert!(table.contains("| 0.99900 | lowest ≥ 0.999: met |") && !table.contains("missed"), "{table}");

        let cases: [(Change, &str, &str); 6] = [
            (
                |it| it["throughput"][0]["tokens_per_second"] = json!(999.0),
                "principium f32 has 0.999× as many tokens/s, not ≥ 1.0×",
                "| ≥ 1.0×: missed |",
            ),
            (
                |it| it["throughput"][1]["tokens_per_second"] = json!(1990.0),
                "principium bf16 has 1.990×",
                "| ≥ 2.0×: missed |",
            ),
            (
                |it| it["throughput"][2]["tokens_per_second"] = json!(2990.0),
                "principium int8 has 2.990×",
                "| ≥ 3.0×: missed |",
            ),
            (
                |it| it["latency"][1]["p50"] = json!(8.01),
                "principium f32 has 8.01 ms, not long p50 ≤ 8.0",
                "| short p50 ≤ 2.0: met, long p50 ≤ 8.0: missed |",
            ),
            (
                |it| it["quality"][1]["cosine_min"] = json!(0.9989),
                "principium bf16 has a cosine of 0.99890, not lowest ≥ 0.999",
                "| lowest ≥ 0.999: missed |",
            ),
            (
                |it| it["throughput"][3]["name"] = json!("another"),
                "principium int8 has NaN×",
                "| ≥ 3.0×: missed |",
            ),
        ];
        for (change, says, cell) in cases {
            let figures = figures(change);
            let error = judge(&figures.targets()).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
            let table = figures.markdown();
            assert!(table.contains(cell), "{cell} is not in {table}");
        }
    }
}
