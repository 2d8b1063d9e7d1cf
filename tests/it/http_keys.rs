//! Keys with a scope, and names under which a service without keys may be asked.

use apa::config::HttpConfig;
use apa::http::{Scope, add_key, revoke_key};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::server::{Server, message};

/// What a holder of a key gets for a request.
async fn with_key(server: &Server, key: &str, path: &str, body: Option<Value>) -> (StatusCode, Value) {
    let url = format!("{}{path}", server.url);
    let request = match body {
        Some(body) => server.client.post(url).body(body.to_string()),
        None => server.client.get(url),
    };
    let response = request.bearer_auth(key).send().await.unwrap();
    let status = response.status();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_s_key_reaches_only_what_was_made_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let [app, other] = ["app", "other"].map(|name| add_key(&file, name, Scope::Client, None).unwrap());
    let ann = add_key(&file, "ann-s", Scope::Client, Some("ann")).unwrap();
    let boss = add_key(&file, "boss", Scope::Operator, None).unwrap();
    let server = Server::with(HttpConfig { keys: Some(file.clone()), ..HttpConfig::default() }).await;
    let ask = async |key: &str, user: Option<&str>| {
        let body = json!({"prompt": "the", "max_tokens": 2, "user": user});
        with_key(&server, key, "/v1/completions", Some(body)).await
    };
    let id = async |key: &str, user: Option<&str>| {
        let (status, answer) = ask(key, user).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["id"].as_str().unwrap().to_owned()
    };
    let (of_app, of_ann, of_boss) = (id(&app, Some("ann")).await, id(&ann, None).await, id(&boss, Some("ann")).await);
    let (status, refused) = ask(&ann, Some("bob")).await;
    assert!(status == StatusCode::BAD_REQUEST && message(&refused).contains("expected \"ann\""), "{refused}");

    let rated = |id: &str, user: &str| Some(json!({"generation_id": id, "rating": 1, "user": user}));
    for (key, id, expected) in [
        (&app, &of_app, 200),
        (&other, &of_app, 404),
        (&ann, &of_app, 404),
        (&app, &of_ann, 404),
        (&ann, &of_ann, 200),
        // The operator named her.
        (&ann, &of_boss, 200),
        (&app, &of_boss, 404),
        (&boss, &of_app, 200),
    ] {
        let (status, answer) = with_key(&server, key, "/v1/feedback", rated(id, "ann")).await;
        assert_eq!(status, expected, "{answer}");
        let (status, answer) = with_key(&server, key, &format!("/v1/generations/{id}"), None).await;
        assert_eq!(status, expected, "{answer}");
    }
    for (method, path) in [
        ("GET", "/v1/feedback/reviews"),
        ("POST", "/v1/feedback/reviews"),
        ("GET", "/v1/policy/versions"),
        ("GET", "/v1/policy/versions/0"),
        ("GET", "/v1/policy/verdicts"),
        ("GET", "/v1/policy/aside"),
        ("POST", "/v1/policy/adopt"),
        ("POST", "/v1/policy/activate"),
        ("POST", "/v1/policy/rollback"),
        ("GET", "/v1/trainer"),
        ("POST", "/v1/trainer/rollout"),
        ("POST", "/v1/trainer/step"),
        ("GET", "/v1/status"),
        ("GET", "/metrics"),
    ] {
        let body = (method == "POST").then(|| json!({}));
        let (status, answer) = with_key(&server, &app, path, body.clone()).await;
        assert_eq!((status, &answer["error"]["code"]), (StatusCode::FORBIDDEN, &json!("operator_only")), "{path}");
        let (status, _) = with_key(&server, &boss, path, body).await;
        assert_ne!(status, StatusCode::FORBIDDEN, "{path}");
    }

    let of_app_too = id(&app, None).await;
    for (key, rejected, expected) in [(&app, &of_app_too, 200), (&other, &of_app_too, 404), (&ann, &of_ann, 404)] {
        let pair = json!({"chosen_id": of_app, "rejected_id": rejected});
        let (status, answer) = with_key(&server, key, "/v1/preferences", Some(pair)).await;
        assert_eq!(status, expected, "{answer}");
    }

    // Each of them has an ann of its own.
    let forget = async |key: &str| with_key(&server, key, "/v1/forget", Some(json!({"user": "ann"}))).await.1;
    assert_eq!(forget(&other).await["generations"], 0);
    assert_eq!(forget(&app).await["generations"], 1);
    assert_eq!(with_key(&server, &boss, &format!("/v1/generations/{of_ann}"), None).await.0, StatusCode::OK);
    assert_eq!(forget(&ann).await["generations"], 2);
    // Taken back while it serves.
    revoke_key(&file, "app").unwrap();
    assert_eq!(ask(&app, None).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&other, None).await.0, StatusCode::OK);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_a_request_under_a_foreign_host_s_name_is_refused() {
    let server = Server::start().await;
    let named = |host: &'static str| {
        let request = server.client.get(format!("{}/v1/feedback/reviews", server.url));
        async move { request.header("host", host).send().await.unwrap().status() }
    };
    assert_eq!(named("localhost:8372").await, StatusCode::OK);
    assert_eq!(named("rebound.example:8372").await, StatusCode::FORBIDDEN);
    let two =
        server.client.get(format!("{}/health", server.url)).header("host", "localhost").header("host", "localhost");
    assert_eq!(two.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_document_calls_for_operators_refuses_clients_and_nothing_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let client = add_key(&file, "app", Scope::Client, None).unwrap();
    let server = Server::with(HttpConfig { keys: Some(file), ..HttpConfig::default() }).await;
    let (_, document) = server.get("/openapi.json").await;
    let mut refused = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let url = format!("{}{}", server.url, path.replace("{version}", "0").replace("{id}", "x"));
            let method = method.to_uppercase().parse().unwrap();
            let response = server.client.request(method, url).bearer_auth(&client).body("{}").send().await.unwrap();
            let forbidden = response.status() == StatusCode::FORBIDDEN;
            assert_eq!(forbidden, operation["tags"][0] == "operators", "{path}: {}", response.status());
            refused += usize::from(forbidden);
        }
    }
    assert!(refused > 10, "{refused}");
    server.close().await;
}
