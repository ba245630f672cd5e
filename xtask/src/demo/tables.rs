//! Tables of the demo.

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::Value;

/// Who has which GPU, with temperature and memory.
pub fn gpus(nodes: &[Value]) -> String {
    let mut table = table(&["GPU", "product", "°C", "W", "GiB held", "held by"]);
    for gpu in nodes
        .iter()
        .flat_map(|node| node.pointer("/status/gpus").and_then(Value::as_array).into_iter().flatten())
    {
        let allocations = gpu["allocations"].as_array().map(Vec::as_slice).unwrap_or_default();
        let held: u64 = allocations.iter().filter_map(|a| a["units"].as_u64()).sum();
        let holders: Vec<String> = allocations
            .iter()
            .map(|a| format!("{} ({} GiB)", a["pod"].as_str().unwrap_or_default(), a["units"]))
            .collect();
        let celsius = gpu["temperature"].as_u64();
        table.add_row(vec![
            Cell::new(&gpu["index"]).add_attribute(Attribute::Bold),
            Cell::new(gpu["product"].as_str().unwrap_or_default()),
            Cell::new(celsius.map_or_else(|| "-".into(), |c| c.to_string())).fg(match celsius {
                Some(85..) => Color::Red,
                Some(70..) => Color::Yellow,
                _ => Color::Green,
            }),
            Cell::new(gpu["power"].as_u64().map_or_else(|| "-".into(), |w| w.to_string())),
            Cell::new(format!("{held} of {}", gpu["units"])),
            Cell::new(if holders.is_empty() { "free".into() } else { holders.join(" + ") }),
        ]);
    }
    indented(&table)
}

/// Passages in two orders: by vector alone and by the cross-encoder.
pub fn passages(rows: &[(String, f32, f32, String)]) -> String {
    let mut table = table(&["", "cosine", "reranked", "passage"]);
    for (place, (document, cosine, score, text)) in rows.iter().enumerate() {
        table.add_row(vec![
            Cell::new(place + 1).add_attribute(Attribute::Bold),
            Cell::new(format!("{cosine:.3}")),
            Cell::new(format!("{score:.4}")).fg(if place == 0 { Color::Green } else { Color::Reset }),
            Cell::new(format!("{document}: {text}")),
        ]);
    }
    indented(&table)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none() {
        table.set_width(110);
    }
    table.set_header(header.iter().map(|text| Cell::new(text).add_attribute(Attribute::Dim)));
    table
}

fn indented(table: &Table) -> String {
    table.to_string().lines().map(|line| format!("    {line}\n")).collect()
}
