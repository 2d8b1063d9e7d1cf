//! The page at `/`: files that are part of the program, as they are. Answers no other call and knows no data; what the
//! page shows it asks of the API like any client, with the key that its user gives it.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// Nothing from other hosts, nothing inline, nothing framed: what a model or a user wrote can't become code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

macro_rules! files {
    ($($name:literal $kind:literal,)*) => {
        /// Name, media type and content.
        const FILES: &[(&str, &str, &str)] = &[$(($name, $kind, include_str!(concat!("page/", $name))),)*];
    };
}

files! {
    "index.html" "text/html; charset=utf-8",
    "style.css" "text/css; charset=utf-8",
    "icon.svg" "image/svg+xml",
    "main.js" "text/javascript; charset=utf-8",
    "answer.js" "text/javascript; charset=utf-8",
    "api.js" "text/javascript; charset=utf-8",
    "dom.js" "text/javascript; charset=utf-8",
    "live.js" "text/javascript; charset=utf-8",
    "chat.js" "text/javascript; charset=utf-8",
    "rating.js" "text/javascript; charset=utf-8",
    "learning.js" "text/javascript; charset=utf-8",
    "versions.js" "text/javascript; charset=utf-8",
    "compare.js" "text/javascript; charset=utf-8",
    "plots.js" "text/javascript; charset=utf-8",
    "uplot.js" "text/javascript; charset=utf-8",
    "uplot.css" "text/css; charset=utf-8",
    "uplot.LICENSE" "text/plain; charset=utf-8",
}

/// Where the page's other files are.
pub(super) const FOLDER: &str = "/page/";

/// GET /
pub(super) async fn index() -> Response {
    file("index.html")
}

/// GET /page/{name}
pub(super) async fn part(Path(name): Path<String>) -> Response {
    file(&name)
}

fn file(name: &str) -> Response {
    let Some((_, kind, text)) = FILES.iter().find(|(known, ..)| *known == name) else {
        return ApiError::not_found(format!("the page has no file {name:?}")).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, *kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another build may serve at the same address tomorrow, and the files belong together.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (StatusCode::OK, headers, *text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the policy would refuse, and what could turn a text into markup.
    #[test]
    fn the_page_holds_no_inline_code_and_never_writes_markup() {
        for (name, _, text) in FILES.iter().filter(|(name, ..)| !name.starts_with("uplot")) {
            let markup = ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"];
            for refused in markup.into_iter().chain(["eval(", "style=\"", " onclick=", "://"]) {
                let found = text.lines().find(|line| line.contains(refused) && !line.contains("www.w3.org"));
                assert!(found.is_none(), "{name} has {refused}: {found:?}");
            }
            assert!(!text.contains("<script>") && !text.contains("<style>"), "{name}");
        }
    }

    #[test]
    fn every_file_that_the_page_names_is_there() {
        for (name, _, text) in FILES.iter().filter(|(name, ..)| !name.starts_with("uplot")) {
            let named = text.split(['"', '\'']).filter_map(|part| {
                part.strip_prefix("page/").or_else(|| part.strip_prefix("./").filter(|part| part.ends_with(".js")))
            });
            for file in named {
                assert!(FILES.iter().any(|(known, ..)| *known == file), "{name} names {file}");
            }
        }
    }
}
