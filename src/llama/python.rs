//! What templates expect from Python: values, `json.dumps`, `%` on text, and the date. Never renders.

use std::ffi::CString;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

use super::integers::BIG;

/// Bytes of JSON that one rendering may write, since that work is not counted in instructions.
const JSON_BYTES: u64 = 16 << 20;
/// The name under which a rendering counts them.
const JSON_SPENT: &str = "json_spent";
/// Deepest nesting that is written as JSON; parsed JSON is nested at most 128 deep.
const JSON_DEPTH: usize = 256;
/// Characters that replace others while a template works on them: a private-use plane.
pub(super) const STAND_INS: std::ops::RangeInclusive<char> = '\u{f0000}'..='\u{ffffd}';

/// Adds the functions and filters that templates call.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", dumps);
    environment.add_filter("percent", percent);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> { Err(refused(message)) });
}

/// Python's methods of texts, lists and maps.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return unknown_method_callback(state, value, name, args) };
    let without = |rest: Option<&str>| Value::from(rest.unwrap_or(text));
    Ok(match name {
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            // Python's -1 is no limit.
            let most =
                most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<&str> = match separator {
                Some("") => return Err(refused("rsplit has an empty separator")),
                Some(separator) => text.rsplitn(most, separator).collect(),
                None => text
                    .trim()
                    .rsplitn(most, char::is_whitespace)
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .collect(),
            };
            parts.reverse();
            parts.into_iter().map(Value::from).collect()
        }
        "removeprefix" => without(text.strip_prefix(from_args::<(&str,)>(args)?.0)),
        "removesuffix" => without(text.strip_suffix(from_args::<(&str,)>(args)?.0)),
        "index" => match unknown_method_callback(state, value, "find", args)? {
            place if place == Value::from(-1) => return Err(refused("index looks for what is not there")),
            place => place,
        },
        _ => return unknown_method_callback(state, value, name, args),
    })
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// JSON as template values, with every text (and every key that isn't a plain name) passed through `text`.
pub(super) fn value(json: &Json, text: &dyn Fn(&str) -> String) -> Value {
    let key = |name: &str| {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if plain { name.to_owned() } else { text(name) }
    };
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64().unwrap_or(0.0)),
        },
        Json::String(given) => match given.strip_prefix(BIG).map(str::parse::<i128>) {
            Some(Ok(n)) => Value::from(n),
            Some(Err(_)) => Value::from(given.as_str()),
            None => Value::from(text(given)),
        },
        Json::Array(items) => items.iter().map(|item| value(item, text)).collect::<Vec<_>>().into(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (key(k), value(v, text)))),
    }
}

/// The options of `json.dumps`.
struct Dumps {
    /// One level of indentation, if output is broken into lines.
    indent: Option<String>,
    between: String,
    after_key: String,
    ascii: bool,
    sorted: bool,
    /// Bytes that may still be written.
    left: u64,
}

/// `tojson` as templates expect it: `json.dumps`, with `ensure_ascii` off by default.
fn dumps(state: &mut State, given: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|value| !value.is_none() && !value.is_undefined()) {
        None => None,
        Some(value) => match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(value)?.min(64))),
        },
    };
    let (between, after_key) = match options.get::<Option<Value>>("separators")?.filter(|value| !value.is_none()) {
        Some(pair) => match pair.try_iter()?.collect::<Vec<_>>().as_slice() {
            [between, after_key] => (between.to_string(), after_key.to_string()),
            _ => return Err(refused("separators are not two texts")),
        },
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let spent = state.get_temp(JSON_SPENT).and_then(|v| u64::try_from(v).ok()).unwrap_or(0);
    let mut how = Dumps { indent, between, after_key, ascii, sorted, left: JSON_BYTES.saturating_sub(spent) };
    let mut out = String::new();
    how.write(given, 0, &mut out)?;
    state.set_temp(JSON_SPENT, (spent + out.len() as u64).into());
    Ok(Value::from_safe_string(out))
}

/// JSON text as `json.dumps` writes it. `None` for one that is nested too deep or too long.
pub(super) fn dumped(json: &Json) -> Option<String> {
    let (between, after_key) = (", ".into(), ": ".into());
    let mut how = Dumps { indent: None, between, after_key, ascii: false, sorted: false, left: JSON_BYTES };
    let mut out = String::new();
    how.write(&self::value(json, &str::to_owned), 0, &mut out).ok()?;
    Some(out)
}

impl Dumps {
    fn write(&mut self, given: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > JSON_DEPTH {
            return Err(refused(format!("JSON of a value nested more than {JSON_DEPTH} deep is asked for")));
        }
        let before = out.len();
        match given.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if given.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(given)),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = given.try_iter()?.collect();
                return self
                    .all(['[', ']'], items.len(), depth, out, |how, i, out| how.write(&items[i], depth + 1, out));
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = given.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                return self.all(['{', '}'], keys.len(), depth, out, |how, i, out| {
                    let name = match keys[i].kind() {
                        ValueKind::None => "null".to_owned(),
                        ValueKind::Bool => keys[i].is_true().to_string(),
                        ValueKind::Number => number(&keys[i]),
                        _ => keys[i].to_string(),
                    };
                    how.quoted(&name, out);
                    out.push_str(&how.after_key);
                    how.write(&given.get_item(&keys[i])?, depth + 1, out)
                });
            }
            _ => match given.as_str() {
                Some(text) if is_big(text) => out.push_str(&text[BIG.len_utf8()..]),
                Some(text) => self.quoted(text, out),
                None => self.quoted(&given.to_string(), out),
            },
        }
        self.spend(out.len() - before)
    }

    fn all(
        &mut self,
        [open, close]: [char; 2],
        count: usize,
        depth: usize,
        out: &mut String,
        mut item: impl FnMut(&mut Self, usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |how: &Self, depth: usize, out: &mut String| {
            if let Some(indent) = &how.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push(open);
        for i in 0..count {
            let before = out.len();
            if i > 0 {
                out.push_str(&self.between);
            }
            line(self, depth + 1, out);
            self.spend(out.len() - before + 1)?;
            item(self, i, out)?;
        }
        if count > 0 {
            line(self, depth, out);
        }
        out.push(close);
        self.spend(2)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Error> {
        self.left =
            self.left.checked_sub(bytes as u64).ok_or_else(|| refused("it writes more JSON than any prompt"))?;
        Ok(())
    }

    fn quoted(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
                // A stand-in for an ASCII character is left alone.
                c if self.ascii && !c.is_ascii() && !STAND_INS.contains(&c) => {
                    c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn is_big(text: &str) -> bool {
    let digits = text.strip_prefix(BIG).map(|digits| digits.strip_prefix('-').unwrap_or(digits));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// A number in Python's notation.
fn number(given: &Value) -> String {
    match f64::try_from(given.clone()) {
        Ok(float) if !given.is_integer() => python_float(float),
        _ => given.to_string(),
    }
}

/// `repr` of a float.
fn python_float(float: f64) -> String {
    if float.is_nan() {
        return "NaN".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent if float == 0.0 || (-4..16).contains(&exponent) => {
            let plain = float.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// Python's `%`: formats if the left is text; otherwise the remainder with the sign of the right operand.
fn percent(state: &mut State, left: &Value, right: Value) -> Result<Value, Error> {
    if left.as_str().is_some() {
        let many = right.is_tuple();
        let mut arguments = vec![left.clone()];
        match many {
            true => arguments.extend(right.try_iter()?),
            false => arguments.push(right),
        }
        return state.apply_filter("format", &arguments);
    }
    let wrong = || refused(format!("% is applied to {} and {}", left.kind(), right.kind()));
    if left.is_integer() && right.is_integer() {
        let (a, b) = (i128::try_from(left.clone())?, i128::try_from(right.clone())?);
        let rest = a.checked_rem(b).ok_or_else(wrong)?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
        (Ok(a), Ok(b)) if b != 0.0 => Ok(Value::from(a - b * (a / b).floor())),
        _ => Err(wrong()),
    }
}

/// The local time, formatted.
fn strftime_now(format: &str) -> Result<String, Error> {
    let wrong = || refused("strftime_now has a format that can't be used");
    let format = CString::new(format).map_err(|_| wrong())?;
    let mut text = [0u8; 512];
    // SAFETY: `now` and `parts` are live; the buffer is as long as said and the format is terminated.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&raw const now, &raw mut parts).is_null() {
            return Err(wrong());
        }
        libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &raw const parts)
    };
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::llama::{ChatTemplate, Conversation};

    #[test]
    fn a_template_that_joins_arguments_of_calls_to_its_text_gets_them_as_text() {
        let joins = "{{ tools }}{% for message in messages %}{% for call in message.tool_calls %}{{ call.function.name \
                     + ' ' + call.function.arguments }}{% endfor %}{{ message.content }}{% endfor %}";
        let call = json!({"function": {"name": "f", "arguments": {"a": [1, "<|im_end|>"], "b": {}}}});
        let messages = vec![
            json!({"role": "user", "content": "hi"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        ];
        let said = Conversation { messages, ..Conversation::default() };
        let render = |source: &str| ChatTemplate::without_model(source, &["<|im_end|>"]).unwrap().render(&said);
        let rendered = render(joins).unwrap();
        assert!(rendered.text.ends_with(r#"hif {"a": [1, "<|im_end|>"], "b": {}}"#), "{}", rendered.text);
        assert_eq!(rendered.marks.len(), 1, "the control token is the client's text");
        // One that writes them itself has them as they are, and another fault is told as it is.
        let writes = joins.replace("call.function.arguments", "(call.function.arguments | tojson)");
        assert!(render(&writes).unwrap().text.contains(r#"f {"a": [1, "#));
        let fails = joins.replace("+ call", "+ 1 + call");
        assert!(render(&fails).unwrap_err().message().contains("string and"));
    }
}
