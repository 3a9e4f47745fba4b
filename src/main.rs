//! The agent's program: wiring only.

fn main() {}
