//! The demo's report as files: a PNG of the curves, one page that needs nothing beside it, and the numbers as JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::report::{Measured, Report, Row, Shown, kl_text};
use super::taste;
use crate::plot::{self, Panel, Series};

const SIZE: (u32, u32) = (1100, 760);

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2rem auto;padding:0 \
    1rem;color:#222;background:#fff}\
    table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .8rem;border-bottom:1px solid \
    #ddd;vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}svg{width:100%;height:auto}\
    .answers td{width:33%}.dim{color:#666}.result{font-weight:bold}";

/// What [`write`] writes.
pub const FILES: [&str; 3] = ["curves.png", "report.html", "report.json"];

/// Writes `curves.png`, `report.html` and `report.json` into `dir`.
///
/// # Errors
/// If a file can't be written.
pub fn write(dir: &Path, report: &Report) -> Result<()> {
    let panels = panels(report);
    plot::write_png(&dir.join("curves.png"), &panels, 2, SIZE)?;
    write_file(&dir.join("report.html"), &html(report, &plot::svg(&panels, 2, SIZE)?))?;
    write_file(&dir.join("report.json"), &(serde_json::to_string_pretty(report)? + "\n"))
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn panels(report: &Report) -> Vec<Panel> {
    let panel = |title: &str, y_label: &str, mark, of_row: fn(&Row) -> f64, of_held_back: fn(&Measured) -> f64| {
        let rows = report.rows.iter().map(|r| (r.version as f64, of_row(r))).collect();
        let held_back = [&report.before, &report.after].map(|m| (m.version as f64, of_held_back(m))).to_vec();
        Panel {
            title: title.into(),
            x_label: "policy version".into(),
            y_label: y_label.into(),
            series: vec![
                Series { name: "rated batches".into(), points: rows, ..Series::default() },
                Series { name: "held-back prompts".into(), points: held_back, ..Series::default() },
            ],
            mark,
        }
    };
    let trade = report.rows.iter().filter_map(|r| Some((r.kl_per_response?, r.mean_reward))).collect();
    vec![
        panel("Reward", "mean reward", Some(0.0), |r| r.mean_reward, |m| m.mean_reward),
        panel(
            "Distance from the initial model",
            "KL, nats a response (k1)",
            None,
            |r| r.kl_per_response.unwrap_or(f64::NAN),
            |m| m.kl_per_response.unwrap_or(f64::NAN),
        ),
        panel("Answer length", "tokens", Some(taste::IDEAL_TOKENS), |r| r.mean_tokens, |m| m.mean_tokens),
        Panel {
            title: "What the distance buys".into(),
            x_label: "KL, nats a response (k1)".into(),
            y_label: "mean reward".into(),
            series: vec![Series { name: String::new(), points: trade, ..Series::default() }],
            mark: Some(0.0),
        },
    ]
}

fn html(report: &Report, curves: &str) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>apad \
         demo</title><style>{STYLE}</style></head><body>\n\
         <h1>A model that learns from its users</h1>\n<p class=\"result\">{}</p>\n\
         <p>Model: {}. Seed {}. The simulated users' taste: {}.</p>\n{curves}\n",
        escape(&report.last_line()),
        escape(&report.model),
        report.seed,
        escape(&report.taste),
    );
    page += "<h2>Versions</h2>\n<p class=\"dim\">Each line is a policy version and the answers that were rated before \
    the next one was trained from it. KL: estimator k1, summed over a response, mean over responses.</p>\n\
             <table><tr><th class=\"n\">version</th><th class=\"n\">mean reward</th><th class=\"n\">KL, nats</th>\
             <th class=\"n\">tokens</th><th class=\"n\">cut off</th><th class=\"n\">answering, s</th>\
             <th class=\"n\">training, s</th></tr>\n";
    for row in &report.rows {
        let cells = [
            row.version.to_string(),
            format!("{:+.3}", row.mean_reward),
            kl_text(row.kl_per_response),
            format!("{:.1}", row.mean_tokens),
            format!("{:.0}%", 100.0 * row.cut_off),
            format!("{:.1}", row.answer_seconds),
            format!("{:.1}", row.train_seconds),
        ];
        page += &numbers(&cells);
    }
    page += "</table>\n<h2>Held-back prompts</h2>\n<p class=\"dim\">Never trained on; the same prompts and seeds for \
    both versions. Plain text: sentences of everyday English that nobody rated, and how likely the version finds a \
    token of them, on average; lower means that more than the taste has changed.</p>\n<table><tr>\
             <th class=\"n\">version</th><th class=\"n\">prompts</th><th class=\"n\">mean reward</th>\
             <th class=\"n\">standard error</th><th class=\"n\">tokens</th><th class=\"n\">cut off</th>\
             <th class=\"n\">KL, nats</th><th class=\"n\">plain text, nats a token</th></tr>\n";
    for measured in [&report.before, &report.after] {
        page += &held_back_row(measured);
    }
    let _ = write!(
        page,
        "</table>\n<h2>Side by side</h2>\n<table class=\"answers\"><tr><th>prompt</th><th>version {}</th><th>version \
        {}</th></tr>\n",
        report.before.version, report.after.version
    );
    for pair in &report.side_by_side {
        let cells = format!("<td>{}</td>{}{}", escape(&pair.prompt), shown(&pair.before), shown(&pair.after));
        let _ = writeln!(page, "<tr>{cells}</tr>");
    }
    page += "</table>\n<h2>Settings</h2>\n<table>\n";
    for (key, value) in &report.settings {
        let _ = writeln!(page, "<tr><td>{}</td><td>{}</td></tr>", escape(key), escape(value));
    }
    page + "</table>\n</body></html>\n"
}

fn held_back_row(measured: &Measured) -> String {
    numbers(&[
        measured.version.to_string(),
        measured.prompts.to_string(),
        format!("{:+.3}", measured.mean_reward),
        format!("{:.3}", measured.standard_error),
        format!("{:.1}", measured.mean_tokens),
        format!("{:.0}%", 100.0 * measured.cut_off),
        kl_text(measured.kl_per_response),
        kl_text(measured.text_logprob),
    ])
}

fn numbers(cells: &[String]) -> String {
    let cells: String = cells.iter().map(|cell| format!("<td class=\"n\">{cell}</td>")).collect();
    format!("<tr>{cells}</tr>\n")
}

fn shown(answer: &Shown) -> String {
    let note = format!("{:+.2}, {} tokens", answer.reward, answer.tokens);
    format!("<td>{}<br><span class=\"dim\">{note}</span></td>", escape(&answer.text))
}

/// Text as HTML: answers come from a model and may hold anything.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\n' => escaped += "<br>",
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn the_page_needs_nothing_beside_it_and_escapes_what_the_model_said() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &example()).unwrap();
        let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert!(page.contains("that &lt;depends&gt; &amp; more"));
        assert!(page.contains("Is 1 &lt; 2?"));
        assert!(page.contains("<svg viewBox"));
        for outside in ["src=", "href=", "<script", "@import", "url("] {
            assert!(!page.contains(outside), "the page holds {outside}");
        }
    }

    #[test]
    fn the_curves_and_the_numbers_are_written_too() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &example()).unwrap();
        assert!(std::fs::metadata(dir.path().join("curves.png")).unwrap().len() > 10_000);
        let json = std::fs::read(dir.path().join("report.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["rows"].as_array().unwrap().len(), 3);
        assert_eq!(json["reached"], true);
    }
}
