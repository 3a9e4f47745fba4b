//! `docs/faults.md` names tests; they have to be there.

use std::path::Path;

use libtest_mimic::Failed;

/// Looks for every test that the page names.
pub(crate) fn check() -> Result<(), Failed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/faults.md"))?;
    let scenarios: Vec<String> = super::all().into_iter().map(|scenario| scenario.name).collect();
    let words =
        page.split('`').skip(1).step_by(2).filter(|word| word.contains("::") && !word.contains("..."));
    let mut missing = Vec::new();
    let mut named = 0;
    for word in words.filter(|word| !word.starts_with("file::")) {
        named += 1;
        let is_there = match word.split_once("::") {
            // A unit test, of the client's too.
            Some((file, name)) if file.ends_with(".rs") => {
                std::fs::read_to_string(root.join(file))?.contains(&format!("fn {name}("))
            }
            _ => scenarios.iter().any(|name| name == word),
        };
        if !is_there {
            missing.push(word);
        }
    }
    if named > 0 && missing.is_empty() { Ok(()) } else { Err(format!("no such tests: {missing:?}").into()) }
}
