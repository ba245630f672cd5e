//! What a number format costs: how near its vectors are to those in f32, and how well they find.
//!
//! The task: the first sentence of a docstring of Python's standard library is the query, the rest of it the passage.

use std::cmp::Reverse;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::contenders::{Contender, list};

/// How many passages a query looks at.
const DEPTH: usize = 10;

pub fn measure(contenders: &mut [Contender], texts: &Value) -> Result<Value> {
    let mut rows = Vec::new();
    let mut reference: Option<Vec<Vec<f32>>> = None;
    for contender in contenders {
        let (queries, passages) = (contender.vectors("queries")?, contender.vectors("passages")?);
        let expected = list(&texts["queries"]).count();
        anyhow::ensure!(queries.len() == expected, "{} gave {} vectors", contender.name(), queries.len());
        let ranks: Vec<Option<usize>> =
            queries.iter().enumerate().map(|(index, query)| rank(query, &passages, index)).collect();
        let share = |most: usize| {
            ranks.iter().flatten().filter(|rank| **rank < most).count() as f64 / ranks.len() as f64
        };
        // One passage is right, so the ideal sum is 1.
        let gain: f64 = ranks.iter().flatten().map(|rank| 1.0 / (*rank as f64 + 2.0).log2()).sum();
        // The first contender is the embedder in f32.
        let reference = reference.get_or_insert_with(|| passages.clone());
        let cosines: Vec<f64> = reference.iter().zip(&passages).map(|(a, b)| cosine(a, b)).collect();
        let lowest = cosines.iter().copied().reduce(f64::min).context("no passage")?;
        rows.push(json!({
            "name": contender.name(),
            "queries": ranks.len(),
            "cosine_mean": cosines.iter().sum::<f64>() / cosines.len() as f64,
            "cosine_min": lowest,
            "recall_1": share(1),
            "recall_10": share(DEPTH),
            "ndcg_10": gain / ranks.len() as f64,
        }));
    }
    Ok(rows.into())
}

/// At which place passage `right` is among all, if it is among the first ones.
fn rank(query: &[f32], passages: &[Vec<f32>], right: usize) -> Option<usize> {
    let score = |passage: &[f32]| -> f32 { query.iter().zip(passage).map(|(a, b)| a * b).sum() };
    let own = score(&passages[right]);
    let better = passages.iter().enumerate().filter(|(index, passage)| {
        let other = score(passage);
        // Of equal scores the earlier passage comes first.
        (other, Reverse(*index)) > (own, Reverse(right))
    });
    Some(better.count()).filter(|rank| *rank < DEPTH)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
