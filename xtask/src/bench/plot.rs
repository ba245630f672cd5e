//! A plot of horizontal bars as SVG, readable on light and dark pages.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const NAMES: f64 = 190.0;
const NUMBERS: f64 = 80.0;
const ROW: usize = 34;
const HEAD: usize = 40;

/// One bar.
pub struct Bar<'a> {
    pub name: &'a str,
    pub value: f64,
    /// Whether it stands out.
    pub ours: bool,
}

/// The plot.
pub fn bars(title: &str, bars: &[Bar<'_>]) -> String {
    let highest = bars.iter().map(|bar| bar.value).fold(1.0, f64::max);
    let height = HEAD + ROW * bars.len() + 10;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <style>text {{ fill: #1f2328 }} @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} }}</style>\n\
         <text x=\"0\" y=\"20\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    for (index, bar) in bars.iter().enumerate() {
        let top = HEAD + ROW * index;
        let length = (WIDTH - NAMES - NUMBERS) * bar.value / highest;
        let color = if bar.ours { "#2f81f7" } else { "#8b949e" };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{top}\" width=\"{length:.1}\" height=\"{}\" fill=\"{color}\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{}\">{:.0}</text>",
            NAMES - 8.0,
            top + 17,
            escaped(bar.name),
            ROW - 10,
            NAMES + length + 6.0,
            top + 17,
            bar.value
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
