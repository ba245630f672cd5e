//! Placeholder until the part lands.
fn main() {}
