//! Licence expressions, as crates have them in `package.license`.
//!
//! The SPDX expression language (annex D of the SPDX specification 2.3) with `AND`, `OR`, `WITH` and parentheses, and
//! cargo's older `/` for `OR`. What does not parse is an error, never a yes.

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// One licence, with its exception if it has one: `Apache-2.0 WITH LLVM-exception`.
    Licence(String),
    /// All apply.
    And(Vec<Expression>),
    /// The user chooses.
    Or(Vec<Expression>),
}

/// Text that is no licence expression.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no licence expression: {expected} expected before {found:?}")]
pub(crate) struct ExpressionError {
    text: String,
    expected: &'static str,
    found: String,
}

impl Expression {
    /// Parses an expression.
    pub(crate) fn parse(text: &str) -> Result<Self, ExpressionError> {
        let spaced = text.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        let mut parser = Parser { text, words: spaced.split_whitespace().peekable() };
        let expression = parser.alternatives()?;
        match parser.words.peek() {
            None => Ok(expression),
            Some(_) => Err(parser.expected("an operator or the end")),
        }
    }

    /// Whether what is allowed is enough to use the crate.
    pub(crate) fn is_satisfied(&self, allowed: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Self::Licence(licence) => allowed(licence),
            Self::And(all) => all.iter().all(|part| part.is_satisfied(allowed)),
            Self::Or(any) => any.iter().any(|part| part.is_satisfied(allowed)),
        }
    }
}

struct Parser<'a, Words: Iterator<Item = &'a str>> {
    text: &'a str,
    words: std::iter::Peekable<Words>,
}

impl<'a, Words: Iterator<Item = &'a str>> Parser<'a, Words> {
    /// `all OR all ...`
    fn alternatives(&mut self) -> Result<Expression, ExpressionError> {
        let mut parts = vec![self.all()?];
        while self.words.next_if_eq(&"OR").is_some() {
            parts.push(self.all()?);
        }
        Ok(one_or(parts, Expression::Or))
    }

    /// `single AND single ...`, which binds tighter.
    fn all(&mut self) -> Result<Expression, ExpressionError> {
        let mut parts = vec![self.single()?];
        while self.words.next_if_eq(&"AND").is_some() {
            parts.push(self.single()?);
        }
        Ok(one_or(parts, Expression::And))
    }

    /// A licence, with an exception or without, or something in parentheses.
    fn single(&mut self) -> Result<Expression, ExpressionError> {
        if self.words.next_if_eq(&"(").is_some() {
            let inner = self.alternatives()?;
            return match self.words.next_if_eq(&")") {
                Some(_) => Ok(inner),
                None => Err(self.expected("a closing parenthesis")),
            };
        }
        let licence = self.name()?;
        if self.words.next_if_eq(&"WITH").is_none() {
            return Ok(Expression::Licence(licence.into()));
        }
        let exception = self.name()?;
        Ok(Expression::Licence(format!("{licence} WITH {exception}")))
    }

    fn name(&mut self) -> Result<&'a str, ExpressionError> {
        let is_name = |word: &&str| !matches!(*word, "AND" | "OR" | "WITH" | "(" | ")");
        self.words.next_if(is_name).ok_or_else(|| self.expected("a licence or an exception"))
    }

    fn expected(&mut self, expected: &'static str) -> ExpressionError {
        let found = self.words.peek().copied().unwrap_or("the end").into();
        ExpressionError { text: self.text.into(), expected, found }
    }
}

fn one_or(mut parts: Vec<Expression>, several: fn(Vec<Expression>) -> Expression) -> Expression {
    if parts.len() == 1 { parts.remove(0) } else { several(parts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(text: &str) -> bool {
        let list = ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"];
        Expression::parse(text).unwrap().is_satisfied(&|licence| list.contains(&licence))
    }

    #[test]
    fn satisfied_expressions() {
        for text in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0 OR MIT",
            "Apache-2.0/MIT",
            "Apache-2.0 / MIT",
            "MIT AND Zlib",
            "(MIT OR GPL-3.0) AND Zlib",
            "GPL-3.0 AND GPL-2.0 OR MIT",
            "MIT OR GPL-3.0 AND GPL-2.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0",
            "((MIT))",
        ] {
            assert!(allowed(text), "{text}");
        }
    }

    #[test]
    fn refused_expressions() {
        for text in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR GPL-3.0) AND GPL-2.0",
            // The plain licence is not the one with the exception, nor the other way around.
            "Apache-2.0",
            "MIT WITH LLVM-exception",
            "mit",
        ] {
            assert!(!allowed(text), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_expression() {
        for text in
            ["", "MIT OR", "OR MIT", "(MIT", "MIT)", "MIT Zlib", "MIT WITH", "AND", "()", "MIT AND OR Zlib"]
        {
            Expression::parse(text).expect_err(text);
        }
        let error = Expression::parse("MIT Zlib").unwrap_err().to_string();
        assert_eq!(
            error,
            "\"MIT Zlib\" is no licence expression: an operator or the end expected before \"Zlib\""
        );
    }
}
