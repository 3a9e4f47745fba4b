//! One policy, compiled, with what it remembers.

use regorus::{Engine as Rego, Value};
use serde_json::Value as Json;

use super::{PolicyError, TEXT_LIMIT, one_line, state};

/// The package of rules about requests.
const PACKAGE: &str = "data.agent_policy";
/// The rule that makes refusals warnings.
const TOLERATE: &str = "AllowRequestsFailingPolicy";

/// What a rule said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Allowed,
    Denied,
}

/// Writes down what a policy remembers.
type Keep<'a> = &'a dyn Fn(&Json) -> Result<(), String>;

/// A policy.
#[derive(Debug)]
pub(super) struct Engine {
    rego: Rego,
    tolerant: bool,
}

impl Engine {
    /// Compiles a policy.
    pub(super) fn new(text: &str) -> Result<Self, PolicyError> {
        let len = u64::try_from(text.len()).unwrap_or(u64::MAX);
        if len > TEXT_LIMIT {
            return Err(PolicyError::TooLong { len });
        }
        let invalid = |reason: String| PolicyError::Invalid { reason: one_line(&reason) };
        let mut rego = Rego::new();
        // As policies for agents of this protocol are written. `import rego.v1` makes one the newer language.
        rego.set_rego_v0(true);
        rego.set_strict_builtin_errors(false);
        rego.set_gather_prints(true);
        let package = rego
            .add_policy("agent_policy".to_owned(), text.to_owned())
            .map_err(|error| invalid(error.to_string()))?;
        if package != PACKAGE {
            return Err(invalid(format!("its package is {package}, not agent_policy")));
        }
        let mut engine = Self { rego, tolerant: false };
        engine.remember(&state::initial()).map_err(invalid)?;
        // The first look at a rule compiles all of them.
        engine.tolerant = matches!(engine.look_up(TOLERATE).map_err(invalid)?, Json::Bool(true));
        let _ = engine.prints();
        Ok(engine)
    }

    /// Whether refusals are warnings.
    pub(super) fn tolerates(&self) -> bool {
        self.tolerant
    }

    /// Goes on with what a policy of this text has remembered.
    pub(super) fn recall(&mut self, data: &Json) -> Result<(), PolicyError> {
        self.remember(data).map_err(|reason| PolicyError::Invalid { reason: one_line(&reason) })
    }

    /// Asks the rule `name` about a request. What it wants remembered counts when `keep` has it. Returns what the rule
    /// printed, too.
    pub(super) fn decide(
        &mut self,
        name: &str,
        input: Json,
        keep: Keep<'_>,
    ) -> (Result<Decision, String>, String) {
        let decision = self.ask(name, input, keep);
        let prints = self.prints();
        // The request may be large, and holds what its sender would not have kept.
        self.rego.set_input(Value::Undefined);
        (decision.map_err(|reason| one_line(&reason)), prints)
    }

    fn ask(&mut self, name: &str, input: Json, keep: Keep<'_>) -> Result<Decision, String> {
        self.rego.set_input(value(&input)?);
        let (allowed, operations) = match self.look_up(name)? {
            Json::Bool(allowed) => (allowed, None),
            Json::Object(mut rule) => {
                let allowed = match rule.get("allowed") {
                    Some(Json::Bool(allowed)) => *allowed,
                    other => return Err(format!("{name}.allowed is {other:?}, not a boolean")),
                };
                (allowed, rule.remove("ops"))
            }
            Json::Null => return Err(format!("there is no rule {PACKAGE}.{name}")),
            _ => return Err(format!("{PACKAGE}.{name} is neither a boolean nor an object")),
        };
        if !allowed {
            return Ok(Decision::Denied);
        }
        if let Some(operations) = operations.filter(|operations| !operations.is_null()) {
            let mut data = json(&self.rego.get_data())?;
            state::apply(&mut data, &operations).map_err(|error| error.to_string())?;
            keep(&data)?;
            self.remember(&data)?;
        }
        Ok(Decision::Allowed)
    }

    /// The value of a rule; null if it is undefined.
    fn look_up(&mut self, rule: &str) -> Result<Json, String> {
        let results = self.rego.eval_query(format!("{PACKAGE}.{rule}"), false).map_err(|e| e.to_string())?;
        let value = results.result.first().and_then(|result| result.expressions.first());
        match value.map(|expression| &expression.value) {
            None | Some(Value::Undefined) => Ok(Json::Null),
            Some(value) => json(value),
        }
    }

    fn remember(&mut self, data: &Json) -> Result<(), String> {
        self.rego.clear_data();
        self.rego.add_data(value(data)?).map_err(|error| error.to_string())
    }

    fn prints(&mut self) -> String {
        one_line(&self.rego.take_prints().unwrap_or_default().join(" "))
    }
}

fn value(json: &Json) -> Result<Value, String> {
    Value::from_json_str(&json.to_string()).map_err(|error| error.to_string())
}

fn json(value: &Value) -> Result<Json, String> {
    let text = value.to_json_str().map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}
