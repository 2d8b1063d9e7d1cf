//! Patterns of web origins in the settings: one origin, all subdomains, or all hosts of a scheme. Never decides who is
//! let in.

/// An origin or a pattern of origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`: all.
    All,
    /// `null`: pages without an origin of their own, such as files.
    Null,
    /// Pages of a scheme and a host.
    Site {
        /// Before `://`, in small letters.
        scheme: String,
        /// In small letters; after `*.` any subdomain, `*` any host.
        host: String,
        /// If it is not the scheme's default.
        port: Option<u16>,
    },
}

impl OriginPattern {
    /// Reads one: `https://chat.example.org`, `https://*.example.org`, `app://obsidian.md`, `chrome-extension://*`,
    /// `null` or `*`.
    pub fn parse(text: &str) -> Option<OriginPattern> {
        match text {
            "*" => return Some(OriginPattern::All),
            "null" => return Some(OriginPattern::Null),
            _ => {}
        }
        let (scheme, host, port) = site(text)?;
        let bare = host.strip_prefix("*.").unwrap_or(&host);
        (host == "*" || !bare.contains('*')).then_some(OriginPattern::Site { scheme, host, port })
    }

    /// Whether the origin matches.
    pub fn matches(&self, origin: &str) -> bool {
        match self {
            OriginPattern::All => true,
            OriginPattern::Null => origin == "null",
            OriginPattern::Site { scheme, host, port } => site(origin).is_some_and(|(of, at, port_of)| {
                let fits = match host.strip_prefix('*') {
                    Some(rest) => at.len() > rest.len() && at.ends_with(rest),
                    None => at == *host,
                };
                // Any host of a scheme may have any port.
                of == *scheme && fits && (port_of == *port || host == "*")
            }),
        }
    }
}

/// Scheme, host and port of an origin, which has no path.
fn site(text: &str) -> Option<(String, String, Option<u16>)> {
    let (scheme, rest) = text.split_once("://")?;
    let in_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(in_scheme) {
        return None;
    }
    let scheme = scheme.to_ascii_lowercase();
    let (host, port) = match rest.rsplit_once(':') {
        // Within brackets a colon is a part of the address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse::<u16>().ok()?)),
        _ => (rest, None),
    };
    // Browsers write other letters as `xn--`.
    let in_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '*' | '[' | ']' | ':');
    if host.is_empty() || !host.chars().all(in_host) {
        return None;
    }
    let own = match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    Some((scheme, host.to_ascii_lowercase(), port.filter(|port| Some(*port) != own)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, origin: &str) -> bool {
        OriginPattern::parse(pattern).unwrap().matches(origin)
    }

    #[test]
    fn a_pattern_matches_the_origins_that_it_names_and_no_others() {
        for (pattern, yes, no) in [
            ("https://Chat.example.org", "https://chat.example.org", "http://chat.example.org"),
            ("http://a.example:80", "http://a.example", "http://a.example:81"),
            ("https://a.example", "https://a.example:443", "https://b.a.example"),
            ("https://*.example.org", "https://a.b.example.org", "https://example.org"),
            ("https://*.example.org", "https://a.example.org", "https://a.example.org.evil.net"),
            ("https://*.example.org", "https://a.example.org", "https://evilexample.org"),
            ("app://obsidian.md", "app://obsidian.md", "app://other.md"),
            ("chrome-extension://abc", "chrome-extension://abc", "chrome-extension://abcd"),
            ("chrome-extension://*", "chrome-extension://abcd", "moz-extension://abcd"),
            ("tauri://localhost", "tauri://localhost", "tauri://localhost.evil"),
            ("http://[::2]:8080", "http://[::2]:8080", "http://[::2]"),
            ("null", "null", "file://x"),
            ("*", "https://any.example", "*"),
        ] {
            assert!(allows(pattern, yes), "{pattern} {yes}");
            assert!(pattern == "*" || !allows(pattern, no), "{pattern} {no}");
        }
    }

    #[test]
    fn what_no_origin_can_be_is_no_pattern() {
        for text in [
            "b.org",
            "https://",
            "https://a/",
            "https://a/b",
            "://a",
            "https://a*b",
            "https://*.*",
            "http://a:x",
            "https://a b",
        ] {
            assert_eq!(OriginPattern::parse(text), None, "{text}");
        }
    }
}
