//! What the alerts and the dashboard in `packaging` ask for is what the service tells. Runs no Prometheus.

use std::collections::BTreeSet;

use crate::support::engine::{open_with, published, rate_some};

/// The names and the labels' values that a text of Prometheus's queries names: `apa_alert`, `kind="no_room"`.
fn asked(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let word = |text: &str| -> String { text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect() };
    let names = text.match_indices("apa_").map(|(at, _)| word(&text[at..])).collect();
    let mut labels = BTreeSet::new();
    for label in ["kind", "ruling"] {
        for (at, _) in text.match_indices(label) {
            let rest = text[at + label.len()..].trim_start_matches(['=', '!', '~']).trim_start_matches('\\');
            let Some((values, _)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) else { continue };
            labels.extend(values.split('|').map(|value| format!("{label}=\"{value}\"")));
        }
    }
    (names, labels)
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |_| ()).unwrap();
    // Some are there once there is something to tell.
    rate_some(&engine, 4);
    published(engine.train_step().unwrap());
    let page = engine.metrics(); // The body of GET /metrics.
    let samples: BTreeSet<_> =
        page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next()).collect();
    for file in ["alerts.yml", "grafana.json"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file);
        let (names, labels) = asked(&std::fs::read_to_string(path).unwrap());
        assert!(names.len() > 5, "{file} names only {names:?}");
        let missing: Vec<_> = names.iter().filter(|name| !samples.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "{file} asks for {missing:?}; there are {samples:?}");
        let missing: Vec<_> = labels.iter().filter(|label| !page.contains(&format!("{{{label}}}"))).collect();
        assert!(missing.is_empty(), "{file} asks for {missing:?}");
        assert_eq!(file == "alerts.yml", labels.contains("ruling=\"rolled_back\""), "{labels:?}");
    }
    engine.shutdown();
}
