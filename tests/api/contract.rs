//! Every answer of every route against the API's description, and the description against the one that is checked in.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use axum::body::Body;
use hyper::header::HOST;
use hyper::{Method, Request};
use serde_json::{Value, json};
use setpoint::api::{Content, Place, Rows, description};
use setpoint::http::Limits;
use setpoint_schema::wire::{self, Phase};

use crate::client::{Reply, get, send};
use crate::fake::{Daemon, app, content, kept, sandbox};

/// Requests that are answered well, by route.
const GOOD: &[(&str, &[&str])] = &[
    ("/healthz", &["/healthz"]),
    ("/readyz", &["/readyz"]),
    ("/metrics", &["/metrics"]),
    ("/v1/settings", &["/v1/settings"]),
    ("/v1/openapi.json", &["/v1/openapi.json"]),
    ("/v1/status", &["/v1/status", "/v1/status?wait=1s"]),
    ("/v1/apps", &["/v1/apps", "/v1/apps?limit=1", "/v1/apps?phase=ready&team=default&label=a=b&cursor=blog"]),
    (
        "/v1/apps/{team}/{name}",
        &["/v1/apps/default/alpha", "/v1/apps/default/blog", "/v1/apps/default/zeta", "/v1/apps/ops/alpha"],
    ),
    (
        "/v1/apps/{team}/{name}/processes/{process}/logs",
        &["/v1/apps/default/blog/processes/web/logs?tail=3&follow=false"],
    ),
    ("/v1/sandboxes", &["/v1/sandboxes", "/v1/sandboxes?app=blog&limit=1"]),
    ("/v1/snapshots", &["/v1/snapshots", "/v1/snapshots?team=default&app=blog&limit=1"]),
    ("/v1/snapshots/{team}/{name}", &["/v1/snapshots/default/nightly", "/v1/snapshots/default/nightly?wait=1s"]),
    ("/v1/templates", &["/v1/templates", "/v1/templates?limit=1"]),
    ("/v1/revisions", &["/v1/revisions"]),
    ("/v1/events", &["/v1/events", "/v1/events?app=blog&limit=2&cursor=1"]),
    ("/v1/plan", &["/v1/plan", "/v1/plan?rev=main"]),
    ("/v1/observed", &["/v1/observed"]),
];

/// Requests that are refused, by route and status.
const BAD: &[(&str, u16, &str)] = &[
    ("/v1/apps", 400, "/v1/apps?limit=x"),
    ("/v1/status", 400, "/v1/status?nothing=1"),
    ("/v1/apps/{team}/{name}", 404, "/v1/apps/default/nope"),
    ("/v1/apps/{team}/{name}", 400, "/v1/apps/default/%FF"),
    ("/v1/snapshots", 400, "/v1/snapshots?cursor=nightly"),
    ("/v1/snapshots/{team}/{name}", 404, "/v1/snapshots/default/nope"),
    ("/v1/apps/{team}/{name}/processes/{process}/logs", 503, "/v1/apps/default/blog/processes/sleeper/logs"),
    ("/v1/revisions", 500, "/v1/revisions?cursor=c0ffee"),
];

/// Apps and sandboxes in every state that the types know, so that every part of their shapes is held against an answer.
fn everything() -> Content {
    let mut apps = Vec::new();
    for (name, fields) in [
        ("alpha", json!({"build": {"state": "failed", "reason": "exit code 1"}, "phase": "stalled", "web": null})),
        (
            "blog",
            json!({"build": {"state": "running"}, "phase": "unready", "preview": "down", "web": {
                "process": {"state": "backoff", "restarts": 2, "reason": "exit code 1"},
                "health": {"state": "unhealthy", "reason": "503"}
            }}),
        ),
        (
            "zeta",
            json!({"phase": "blocked", "sandbox": null,
            "blocked": [{
                "reason": "Dependency", "on": "db", "since": "2026-01-01T00:00:00Z", "until": null, "message": "not ready: health 503"
            }],
            "held": {
                "reason": "Suspended", "on": null, "since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z", "message": "frozen"
            },
            "override": {"suspendedSince": "2026-01-01T00:00:00Z", "by": "uid 1000"}, "dependsOn": ["db", "ops/alpha"],
            "urlsMissing": [{"host": "www.example.org", "reason": "blog has it"}], "workers": [
            {"name": "mail", "process": {"state": "gaveUp", "reason": "signal 9"}},
            {"name": "sync", "process": {"state": "stopped"}}
        ], "labels": {"tier": "front"}, "observedGeneration": null, "lastAppliedRevision": null}),
        ),
    ] {
        let mut document = serde_json::to_value(app(&name.parse().unwrap())).unwrap();
        fields.as_object().unwrap().iter().for_each(|(field, value)| document[field] = value.clone());
        let app: wire::App = serde_json::from_value(document).unwrap();
        apps.push((app.key(), app));
    }
    let other = wire::App { phase: Phase::Deleting, ..app(&"ops/alpha".parse().unwrap()) };
    apps.push((other.key(), other));
    let mut sandboxes = Vec::new();
    for (id, fields) in [
        ("a", json!({"vm": {"state": "absent"}, "disk": null})),
        ("b", json!({"vm": {"state": "exited", "reason": "the guest shut down"}})),
        ("c", json!({})),
    ] {
        let id = setpoint_schema::id::SandboxId(id.into());
        let mut document = serde_json::to_value(sandbox(&id)).unwrap();
        fields.as_object().unwrap().iter().for_each(|(field, value)| document[field] = value.clone());
        sandboxes.push((id, serde_json::from_value(document).unwrap()));
    }
    let (apps, sandboxes) = (apps.into_iter().collect(), sandboxes.into_iter().collect());
    let snapshots = Rows::All(snapshots().into_iter().collect());
    Content { apps: Rows::All(apps), sandboxes: Rows::All(sandboxes), snapshots, ..content() }
}

/// Snapshots in every state and for every reason.
fn snapshots() -> Vec<(Place, wire::Snapshot)> {
    let mut snapshots = vec![kept(("nightly", 2))];
    for (generation, fields) in [
        (1, json!({"state": "wanted", "cause": {"kind": "asked", "by": "uid 1000"}, "message": "it waits"})),
        (
            3,
            json!({"state": "failed", "cause": {"kind": "fork", "to": "ops/alpha"}, "resources": null, "sandbox": null}),
        ),
        (4, json!({"state": "retained", "cause": {"kind": "restore", "token": "t"}, "until": "2026-01-02T00:00:00Z"})),
        (5, json!({"state": "leaving", "since": null, "takenAt": null, "size": null, "stoppedMs": null})),
    ] {
        let (place, snapshot) = kept(("nightly", generation));
        let mut document = serde_json::to_value(snapshot).unwrap();
        fields.as_object().unwrap().iter().for_each(|(field, value)| document[field] = value.clone());
        snapshots.push((place, serde_json::from_value(document).unwrap()));
    }
    snapshots
}

#[tokio::test]
async fn every_answer_of_every_route_is_as_described() {
    let daemon = Daemon::start(Limits::default()).await;
    daemon.publish(everything());
    let described: BTreeSet<_> = description()["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let tried: BTreeSet<_> = GOOD.iter().map(|(path, _)| *path).collect();
    assert_eq!(tried, described, "every route is tried, and there is no other");
    for (route, requests) in GOOD {
        for request in *requests {
            let reply = daemon.get(request).await;
            assert_eq!(reply.status, 200, "{request}: {}", reply.text());
            assert_described(route, &Method::GET, &reply);
            assert_described(route, &Method::HEAD, &ask(&daemon, Method::HEAD, request).await);
            if reply.headers.contains_key("etag") {
                assert_described(route, &Method::GET, &daemon.get_unless(request, reply.header("etag")).await);
            }
            let elsewhere = get(daemon.address, "evil.example", request).await;
            assert_eq!(elsewhere.status, 421);
            assert_described(route, &Method::GET, &elsewhere);
            let changing = ask(&daemon, Method::POST, request).await;
            assert_eq!(changing.status, 405);
            assert_described(route, &Method::GET, &changing);
        }
    }
    for (route, status, request) in BAD {
        let reply = daemon.get(request).await;
        assert_eq!(reply.status, *status, "{request}");
        assert_described(route, &Method::GET, &reply);
        assert_described(route, &Method::HEAD, &ask(&daemon, Method::HEAD, request).await);
    }
    daemon.snapshot.send_replace(None);
    for (route, requests) in GOOD {
        assert_described(route, &Method::GET, &daemon.get(requests[0]).await);
    }
}

#[tokio::test]
async fn every_parameter_that_is_described_is_looked_at_and_no_other_is_taken() {
    let daemon = Daemon::start(Limits::default()).await;
    let all = ["app", "cursor", "fields", "follow", "label", "limit", "phase", "rev", "tail", "team", "wait", "page"];
    for (route, requests) in GOOD {
        let path = requests[0].split('?').next().unwrap();
        let described = description()["paths"][route]["parameters"].as_array().unwrap().iter();
        let described: Vec<_> = described.filter(|parameter| parameter["in"] == "query").collect();
        for name in all {
            // Wrong for every parameter but a cursor, which may be any text in some lists.
            let reply = daemon.get(&format!("{path}?{name}=%00")).await;
            match described.iter().find(|parameter| parameter["name"] == name) {
                Some(_) if name == "cursor" => {}
                Some(_) => {
                    assert_eq!((reply.status, &reply.json()["parameter"]), (400, &json!(name)), "{route} {name}");
                    assert!(!reply.text().contains("is not a parameter here"), "{route} {name}");
                }
                None => assert!(reply.text().contains("is not a parameter here"), "{route} {name}"),
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_described_is_not_served() {
    let daemon = Daemon::start(Limits::default()).await;
    for path in ["/", "/v1", "/v1/", "/v2/status", "/v1/apps/default", "/v1/nodes", "/v1/status/", "/metricsz"] {
        assert!(route_of(path).is_none());
        let reply = daemon.get(path).await;
        assert_eq!(
            (reply.status, &reply.json()["detail"]),
            (404, &json!("there is nothing under this path")),
            "{path}"
        );
    }
    // And the router has no other source than the table that the description is made from.
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/routes.rs")).unwrap();
    assert_eq!(source.matches(".route(").count(), 1);
}

#[test]
fn the_description_that_is_checked_in_is_this_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let now = format!("{}\n", serde_json::to_string_pretty(description()).unwrap());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == now, "docs/openapi.json is stale: UPDATE=1 cargo test --test api writes it anew");
}

#[test]
fn what_is_not_as_described_is_noticed() {
    let refused = |value: Value| check(&json!({"$ref": "#/components/schemas/Event"}), &value).is_err();
    let event = json!({
        "id": "1", "at": "2026-01-01T00:00:00Z", "kind": "healed", "app": null, "sandbox": null, "reason": "r", "message": "m"
    });
    assert!(!refused(event.clone()));
    for (field, value) in [("id", json!(1)), ("app", json!(true)), ("new", json!("x"))] {
        let mut other = event.clone();
        other[field] = value;
        assert!(refused(other), "{field}");
    }
    let mut without = event;
    without.as_object_mut().unwrap().remove("kind");
    assert!(refused(without));
}

async fn ask(daemon: &Daemon, method: Method, path: &str) -> Reply {
    let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
    send(daemon.address, request.body(Body::empty()).unwrap()).await
}

fn route_of(path: &str) -> Option<&'static Value> {
    description()["paths"].get(path)
}

/// Status, headers, media type and shape of an answer are among those that its route is described with.
fn assert_described(route: &str, method: &Method, reply: &Reply) {
    let operation = route_of(route).unwrap_or_else(|| panic!("{route} is not described"));
    let verb = method.as_str().to_lowercase();
    let mut response = &operation[&verb]["responses"][reply.status.to_string()];
    if let Some(target) = response["$ref"].as_str() {
        response = pointed(target);
    }
    assert!(response.is_object(), "{method} {route}: {} is not described", reply.status);
    let described_tag = response["headers"].get("ETag").is_some();
    assert_eq!(reply.headers.contains_key("etag"), described_tag, "{method} {route} {}", reply.status);
    let Some(content) = response["content"].as_object() else {
        assert!(reply.body.is_empty(), "{method} {route}: {} has no body", reply.status);
        return;
    };
    let media = reply.header("content-type").split(';').next().unwrap();
    let schema = content.get(media).unwrap_or_else(|| panic!("{method} {route} {}: {media}", reply.status));
    if media.ends_with("json") {
        check(&schema["schema"], &reply.json())
            .unwrap_or_else(|problem| panic!("{method} {route} {}: {problem}", reply.status));
    }
}

fn pointed(target: &str) -> &'static Value {
    description().pointer(target.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{target} leads nowhere"))
}

/// Holds a value against a schema. It is stricter than the standard: an object has no field that is not described.
fn check(schema: &Value, value: &Value) -> Result<(), String> {
    for (keyword, expected) in schema.as_object().ok_or_else(|| format!("{schema} is no schema"))? {
        match keyword.as_str() {
            "$ref" => check(pointed(expected.as_str().unwrap()), value)?,
            "type" => is_one_of(expected, value)?,
            "enum" if expected.as_array().unwrap().contains(value) => {}
            "const" if expected == value => {}
            "minimum" if value.as_f64().is_none_or(|number| number >= expected.as_f64().unwrap()) => {}
            "maximum" if value.as_f64().is_none_or(|number| number <= expected.as_f64().unwrap()) => {}
            "anyOf" | "oneOf" => {
                let all = expected.as_array().unwrap();
                let failures: Vec<_> = all.iter().filter_map(|one| check(one, value).err()).collect();
                if failures.len() == all.len() {
                    return Err(format!("{value} is none of: {}", failures.join("; ")));
                }
            }
            "items" => value.as_array().into_iter().flatten().try_for_each(|item| check(expected, item))?,
            "required" => {
                let missing =
                    expected.as_array().unwrap().iter().find(|name| value.get(name.as_str().unwrap()).is_none());
                missing.map_or(Ok(()), |name| Err(format!("{name} is missing in {value}")))?;
            }
            "properties" => {
                for (name, field) in value.as_object().into_iter().flatten() {
                    match expected.get(name) {
                        Some(schema) => check(schema, field).map_err(|problem| format!("{name}: {problem}"))?,
                        None => return Err(format!("{name} is not described")),
                    }
                }
            }
            "additionalProperties" => {
                let fields = value.as_object().into_iter().flatten();
                fields.map(|(_, field)| field).try_for_each(|field| check(expected, field))?;
            }
            // These say nothing that a document of ours could break alone: the types see to it.
            "description" | "title" | "format" | "pattern" | "default" | "examples" => {}
            other => return Err(format!("{value} breaks `{other}: {expected}`, or that is not understood here")),
        }
    }
    Ok(())
}

fn is_one_of(types: &Value, value: &Value) -> Result<(), String> {
    let is = |name: &Value| match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    };
    let matches = match types {
        Value::Array(types) => types.iter().any(is),
        one => is(one),
    };
    if matches { Ok(()) } else { Err(format!("{value} is not {types}")) }
}
