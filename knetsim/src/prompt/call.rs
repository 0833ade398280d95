//! The calls of the original's prompt, `C0w1.exec_container("c1", "ping 11.10.0.2 -c 5")`: a small part of Python's
//! expressions, enough for a receiver, methods and literal arguments.
//!
//! ```text
//! call     = name { "." name "(" [ argument { "," argument } [","] ] ")" }
//! argument = [ name "=" ] value
//! value    = string | integer | "True" | "False" | "None" | list | tuple | dict
//! ```
//!
//! Source: docs.python.org, "The Python Language Reference", sections 2.4 (literals) and 6.3 (primaries).

use std::fmt;

/// A parsed call: `C0.get("w1").run_ingress(…)` has the receiver `C0` and two methods.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What the first method is called on.
    pub receiver: String,
    /// The methods, in order; at least one.
    pub methods: Vec<Method>,
}

/// One `.name(arguments)` of a [`Call`].
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// The arguments without a name, then those with one.
    pub arguments: Vec<Value>,
    /// The arguments given as `name=value`.
    pub named: Vec<(String, Value)>,
}

/// A literal of Python.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `"text"` or `'text'`
    Str(String),
    /// `42`
    Int(i64),
    /// `True`, `False`
    Bool(bool),
    /// `None`
    None,
    /// `[…]` and `(…)`
    List(Vec<Value>),
    /// `{"key": value}`, in the order written
    Dict(Vec<(String, Value)>),
}

impl Value {
    /// What Python calls this type, for messages.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Str(_) => "string",
            Value::Int(_) => "integer",
            Value::Bool(_) => "boolean",
            Value::None => "None",
            Value::List(_) => "list",
            Value::Dict(_) => "dict",
        }
    }
}

/// Why a call cannot be read: what was expected at which column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} at column {column}\n  {text}\n  {caret:>column$}", caret = '^')]
pub struct CallError {
    /// The whole text.
    pub text: String,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

/// Lists and dicts may be nested this deep; more is a mistake, and would only use up the stack.
const MAX_DEPTH: usize = 16;

impl Call {
    /// Reads one call.
    ///
    /// # Errors
    ///
    /// [`CallError`] with the column at which the text stops being a call.
    pub fn parse(text: &str) -> Result<Self, CallError> {
        let mut parser = Parser { characters: text.chars().collect(), position: 0 };
        let receiver = parser.name("a node or cluster, like C0w1 or C0")?;
        let mut methods = Vec::new();
        parser.space();
        while parser.take('.') {
            methods.push(parser.method()?);
            parser.space();
        }
        if parser.position < parser.characters.len() {
            return Err(parser.error("the call should end"));
        }
        if methods.is_empty() {
            return Err(parser.error("a method is missing, like .exec_container(\"c1\", \"ifconfig\"),"));
        }
        Ok(Self { receiver, methods })
    }
}

struct Parser {
    characters: Vec<char>,
    position: usize,
}

impl Parser {
    fn method(&mut self) -> Result<Method, CallError> {
        let name = self.name("a method's name")?;
        self.expect('(', "a '(' after the method's name is missing")?;
        let mut method = Method { name, arguments: Vec::new(), named: Vec::new() };
        loop {
            self.space();
            if self.take(')') {
                return Ok(method);
            }
            match self.keyword() {
                Some(keyword) => {
                    let value = self.value(0)?;
                    method.named.push((keyword, value));
                }
                None if method.named.is_empty() => {
                    let value = self.value(0)?;
                    method.arguments.push(value);
                }
                None => return Err(self.error("an argument without a name cannot follow one with a name")),
            }
            self.space();
            if !self.take(',') && self.peek() != Some(')') {
                return Err(self.error("',' or ')' is missing"));
            }
        }
    }

    /// Takes `name=` if it stands here.
    fn keyword(&mut self) -> Option<String> {
        let start = self.position;
        if let Ok(name) = self.name("") {
            self.space();
            if self.take('=') {
                return Some(name);
            }
        }
        self.position = start;
        None
    }

    fn value(&mut self, depth: usize) -> Result<Value, CallError> {
        if depth > MAX_DEPTH {
            return Err(self.error("lists are nested too deeply"));
        }
        self.space();
        match self.peek() {
            Some('"' | '\'') => self.string().map(Value::Str),
            Some('[') => self.list(']', depth),
            Some('(') => self.list(')', depth),
            Some('{') => self.dict(depth),
            Some(digit) if digit.is_ascii_digit() || digit == '-' => self.integer(),
            Some(letter) if letter.is_alphabetic() => self.constant(),
            _ => Err(self.error("a value is missing: a \"string\", a number, a [list] or a {\"dict\": …}")),
        }
    }

    fn list(&mut self, close: char, depth: usize) -> Result<Value, CallError> {
        self.position += 1;
        let mut values = Vec::new();
        loop {
            self.space();
            if self.take(close) {
                return Ok(Value::List(values));
            }
            values.push(self.value(depth + 1)?);
            self.space();
            if !self.take(',') && self.peek() != Some(close) {
                return Err(self.error(&format!("',' or '{close}' is missing")));
            }
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Value, CallError> {
        self.position += 1;
        let mut entries = Vec::new();
        loop {
            self.space();
            if self.take('}') {
                return Ok(Value::Dict(entries));
            }
            if !matches!(self.peek(), Some('"' | '\'')) {
                return Err(self.error("a \"key\" or '}' is missing"));
            }
            let key = self.string()?;
            self.expect(':', "':' after the key is missing")?;
            entries.push((key, self.value(depth + 1)?));
            self.space();
            if !self.take(',') && self.peek() != Some('}') {
                return Err(self.error("',' or '}' is missing"));
            }
        }
    }

    fn string(&mut self) -> Result<String, CallError> {
        let opened = self.position;
        let quote = self.characters[self.position];
        self.position += 1;
        let mut text = String::new();
        while let Some(character) = self.peek() {
            self.position += 1;
            match character {
                end if end == quote => return Ok(text),
                '\\' => text.push_str(&self.escape()?),
                other => text.push(other),
            }
        }
        self.position = opened;
        Err(self.error("the string has no closing quote"))
    }

    /// What a backslash and the next character stand for. An unknown pair stands for itself, as in Python.
    fn escape(&mut self) -> Result<String, CallError> {
        let Some(character) = self.peek() else { return Err(self.error("a character after '\\' is missing")) };
        self.position += 1;
        Ok(match character {
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            'r' => "\r".to_owned(),
            '\\' | '\'' | '"' => character.to_string(),
            other => format!("\\{other}"),
        })
    }

    fn integer(&mut self) -> Result<Value, CallError> {
        let start = self.position;
        self.position += 1;
        while self.peek().is_some_and(|digit| digit.is_ascii_digit()) {
            self.position += 1;
        }
        let digits: String = self.characters[start..self.position].iter().collect();
        digits.parse().map(Value::Int).map_err(|_| {
            self.position = start;
            self.error("this is not a whole number of 64 bits")
        })
    }

    fn constant(&mut self) -> Result<Value, CallError> {
        let start = self.position;
        match self.name("a value")?.as_str() {
            "True" => Ok(Value::Bool(true)),
            "False" => Ok(Value::Bool(false)),
            "None" => Ok(Value::None),
            other => {
                self.position = start;
                Err(self.error(&format!("{other} is not a value; is a quote missing, as in \"{other}\"?")))
            }
        }
    }

    fn name(&mut self, what: &str) -> Result<String, CallError> {
        self.space();
        let start = self.position;
        while self.peek().is_some_and(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
            self.position += 1;
        }
        if start == self.position || self.characters[start].is_ascii_digit() {
            self.position = start;
            return Err(self.error(&format!("{what} is missing")));
        }
        Ok(self.characters[start..self.position].iter().collect())
    }

    fn expect(&mut self, character: char, message: &str) -> Result<(), CallError> {
        self.space();
        if self.take(character) { Ok(()) } else { Err(self.error(message)) }
    }

    fn take(&mut self, character: char) -> bool {
        let found = self.peek() == Some(character);
        if found {
            self.position += 1;
        }
        found
    }

    fn peek(&self) -> Option<char> {
        self.characters.get(self.position).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.position += 1;
        }
    }

    fn error(&self, message: &str) -> CallError {
        // The text is shown on one line, so that the caret stands below the right character.
        let text = self.characters.iter().map(|&c| if c.is_control() { ' ' } else { c }).collect();
        CallError { text, column: self.position + 1, message: message.to_owned() }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Str(text) => write!(f, "{text:?}"),
            Value::Int(number) => write!(f, "{number}"),
            Value::Bool(true) => f.write_str("True"),
            Value::Bool(false) => f.write_str("False"),
            Value::None => f.write_str("None"),
            Value::List(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Value::Dict(entries) => {
                f.write_str("{")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    write!(f, "{}{key:?}: {value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string(text: &str) -> Value {
        Value::Str(text.to_owned())
    }

    #[test]
    fn the_calls_of_the_lessons_are_read() {
        let call = Call::parse(r#"C0w1.exec_container("c1", "ping 11.10.0.2 -c 5")"#).unwrap();
        assert_eq!(call.receiver, "C0w1");
        assert_eq!(call.methods[0].name, "exec_container");
        assert_eq!(call.methods[0].arguments, [string("c1"), string("ping 11.10.0.2 -c 5")]);

        let call = Call::parse(r#"C0.kp_vip_add("100.64.10.1", ["c2", 'c3',])"#).unwrap();
        assert_eq!(call.methods[0].arguments[1], Value::List(vec![string("c2"), string("c3")]));

        let call = Call::parse(
            r#" C0.get("w1").run_ingress("grp1", 8001, [{"path": "/svc1", "endpoint": "100.64.11.1:8000"}]) "#,
        )
        .unwrap();
        assert_eq!(call.methods.len(), 2);
        let path = vec![("path".to_owned(), string("/svc1")), ("endpoint".to_owned(), string("100.64.11.1:8000"))];
        assert_eq!(call.methods[1].arguments[2], Value::List(vec![Value::Dict(path)]));
    }

    #[test]
    fn named_arguments_follow_the_others() {
        let call = Call::parse("C0.get(name='w1')").unwrap();
        assert_eq!(call.methods[0].named, [("name".to_owned(), string("w1"))]);
        assert!(Call::parse("C0.get(name='w1', 'w2')").unwrap_err().message.contains("cannot follow"));
    }

    #[test]
    fn escapes_are_those_of_python() {
        let call = Call::parse(r#"C0w1.cmd("a\n\"b\" \d")"#).unwrap();
        assert_eq!(call.methods[0].arguments, [string("a\n\"b\" \\d")]);
    }

    #[test]
    fn mistakes_are_named_with_their_column() {
        let table = [
            ("C0w1", 5, "a method is missing"),
            ("C0w1.exec_container(\"c1\", ping)", 27, "is a quote missing, as in \"ping\"?"),
            ("C0w1.exec_container(\"c1\"", 25, "',' or ')' is missing"),
            ("C0w1.exec_container(\"c1", 21, "no closing quote"),
            ("C0w1.exec_container(\"c1\") x", 27, "the call should end"),
            ("1 + 1", 1, "a node or cluster"),
            ("C0.kp_vip_add(\"100.64.10.1\", [\"c2\" \"c3\"])", 36, "',' or ']' is missing"),
            ("C0.f(99999999999999999999)", 6, "64 bits"),
            ("C0.f({1: 2})", 7, "a \"key\""),
        ];
        for (text, column, message) in table {
            let error = Call::parse(text).unwrap_err();
            assert_eq!((error.column, error.message.contains(message)), (column, true), "{text}: {error}");
        }
    }

    #[test]
    fn the_caret_stands_below_the_mistake() {
        let error = Call::parse("C0.f(x)").unwrap_err().to_string();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines[1], "  C0.f(x)");
        assert_eq!(lines[2], "       ^");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!("C0.f({})", "[".repeat(5000));
        assert!(Call::parse(&text).unwrap_err().message.contains("too deeply"));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            "[a-z \n\"'\\\\é]{0,8}".prop_map(Value::Str),
            any::<i64>().prop_map(Value::Int),
            any::<bool>().prop_map(Value::Bool),
            Just(Value::None),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                prop::collection::vec(("[a-z]{1,4}", inner), 0..4).prop_map(Value::Dict),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_printed_value_is_read_back(value in any_value()) {
            let call = Call::parse(&format!("C0.f({value})")).unwrap();
            prop_assert_eq!(&call.methods[0].arguments[0], &value);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            let _ = Call::parse(&text);
        }
    }
}
