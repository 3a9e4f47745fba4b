//! What a policy remembers: JSON, changed by the operations of a JSON patch (RFC 6902) that a rule asks for.

use serde_json::{Value, json};

/// Why an operation can't be done. Then none of its list is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatchError {
    #[error("ops is not a list of operations with op and path")]
    Form,
    #[error("operation {op:?} is not one of add, replace and remove")]
    Operation { op: String },
    #[error("operation {op} at {path:?}: there is no such place")]
    Place { op: &'static str, path: String },
}

/// What there is before the first request.
pub(super) fn initial() -> Value {
    json!({ "pstate": {} })
}

/// Applies a list of operations.
pub(super) fn apply(data: &mut Value, operations: &Value) -> Result<(), PatchError> {
    let mut changed = data.clone();
    for operation in operations.as_array().ok_or(PatchError::Form)? {
        apply_one(&mut changed, operation)?;
    }
    *data = changed;
    Ok(())
}

fn apply_one(data: &mut Value, operation: &Value) -> Result<(), PatchError> {
    let field = |name: &str| operation.get(name).and_then(Value::as_str).ok_or(PatchError::Form);
    let path = field("path")?;
    let value = || operation.get("value").cloned().ok_or(PatchError::Form);
    let no_place = |op| PatchError::Place { op, path: path.to_owned() };
    match field("op")? {
        "add" => add(data, path, value()?).ok_or_else(|| no_place("add")),
        "replace" => {
            let place = data.pointer_mut(path).ok_or_else(|| no_place("replace"))?;
            *place = value()?;
            Ok(())
        }
        "remove" => remove(data, path).ok_or_else(|| no_place("remove")),
        op => Err(PatchError::Operation { op: op.to_owned() }),
    }
}

/// The container of the place that a JSON pointer (RFC 6901) names, and the key in it.
fn around<'a>(data: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parent, key) = path.rsplit_once('/')?;
    Some((data.pointer_mut(parent)?, key.replace("~1", "/").replace("~0", "~")))
}

fn add(data: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *data = value;
        return Some(());
    }
    let (parent, key) = around(data, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(key, value);
        }
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => {
            let index: usize = key.parse().ok().filter(|index| *index <= list.len())?;
            list.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(data: &mut Value, path: &str) -> Option<()> {
    let (parent, key) = around(data, path)?;
    match parent {
        Value::Object(map) => map.remove(&key).map(drop),
        Value::Array(list) => {
            let index: usize = key.parse().ok().filter(|index| *index < list.len())?;
            list.remove(index);
            Some(())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_change_what_their_paths_name() {
        let mut data = json!({ "pstate": { "list": [1, 3] } });
        let operations = json!([
            { "op": "add", "path": "/pstate/a~1b", "value": "x" },
            { "op": "add", "path": "/pstate/list/1", "value": 2 },
            { "op": "add", "path": "/pstate/list/-", "value": 4 },
            { "op": "replace", "path": "/pstate/list/0", "value": 0 },
            { "op": "add", "path": "/pstate/gone", "value": null },
            { "op": "remove", "path": "/pstate/gone" },
            { "op": "remove", "path": "/pstate/list/3" },
        ]);
        apply(&mut data, &operations).unwrap();
        assert_eq!(data, json!({ "pstate": { "a/b": "x", "list": [0, 2, 3] } }));
    }

    #[test]
    fn a_list_that_fails_changes_nothing() {
        for (bad, message) in [
            (json!({}), "ops is not a list of operations with op and path"),
            (
                json!([{ "op": "add", "path": "/pstate/x" }]),
                "ops is not a list of operations with op and path",
            ),
            (
                json!([{ "op": "move", "path": "/x" }]),
                "operation \"move\" is not one of add, replace and remove",
            ),
            (
                json!([{ "op": "remove", "path": "/no/x" }]),
                "operation remove at \"/no/x\": there is no such place",
            ),
            (
                json!([{ "op": "add", "path": "/pstate/list/9", "value": 1 }]),
                "operation add at \"/pstate/list/9\": there is no such place",
            ),
        ] {
            let mut data = json!({ "pstate": { "list": [] } });
            let mut operations = bad;
            if let Some(list) = operations.as_array_mut() {
                list.insert(0, json!({ "op": "add", "path": "/pstate/first", "value": 1 }));
            }
            assert_eq!(apply(&mut data, &operations).unwrap_err().to_string(), message);
            assert_eq!(data, json!({ "pstate": { "list": [] } }));
        }
    }
}
