//! The status API over real connections, with a fake daemon behind it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt as _;
use hyper::header::HOST;
use hyper::{Method, Request};
use serde_json::json;
use setpoint::api::{Content, Rows};
use setpoint::http::Limits;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use client::{connect, get, raw, read_until, send};
use fake::{Daemon, content, status};

#[path = "support/client.rs"]
mod client;
#[path = "api/contract.rs"]
mod contract;
#[path = "api/fake.rs"]
mod fake;
#[path = "support/host.rs"]
mod host;
#[path = "api/live.rs"]
mod live;
#[path = "api/poll.rs"]
mod poll;
#[path = "api/stream.rs"]
mod stream;

/// A wait that only a failing test sits out.
const LONG: Duration = Duration::from_secs(20);

const JSON_ROUTES: [&str; 11] = [
    "/v1/status",
    "/v1/apps",
    "/v1/apps/default/blog",
    "/v1/sandboxes",
    "/v1/snapshots",
    "/v1/snapshots/default/nightly",
    "/v1/templates",
    "/v1/revisions",
    "/v1/events",
    "/v1/plan?rev=main",
    "/v1/observed",
];
const TEXT_ROUTES: [&str; 3] = ["/healthz", "/readyz", "/v1/apps/default/blog/processes/web/logs?tail=7"];

#[tokio::test]
async fn every_route_answers_get_and_head() {
    let daemon = Daemon::start(Limits::default()).await;
    for path in JSON_ROUTES.iter().chain(&TEXT_ROUTES) {
        let reply = daemon.get(path).await;
        assert_eq!(reply.status, 200, "{path}");
        let json = JSON_ROUTES.contains(path);
        let kind = if json { "application/json" } else { "text/plain; charset=utf-8" };
        assert_eq!(reply.header("content-type"), kind, "{path}");
        let request = Request::head(*path).header(HOST, "localhost").body(Body::empty()).unwrap();
        let head = send(daemon.address, request).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        for name in ["etag", "cache-control", "content-type", "content-length", "vary"] {
            // A log has no length before it ends.
            assert_eq!(head.headers.get(name), reply.headers.get(name), "{path}: {name}");
        }
    }
}

#[tokio::test]
async fn objects_say_what_was_published_last() {
    let daemon = Daemon::start(Limits::default()).await;
    assert_eq!(daemon.get("/v1/status").await.json(), status());
    let app = daemon.get("/v1/apps/ops/alpha").await.json();
    assert_eq!((&app["team"], &app["conditions"][0]["type"]), (&json!("ops"), &json!("Ready")));
    daemon.publish(Content { apps: Rows::All(BTreeMap::new()), ..content() });
    assert_eq!(daemon.get("/v1/apps").await.json(), json!({"items": [], "next": null}));
    assert_eq!(daemon.get("/v1/apps/ops/alpha").await.status, 404);
}

#[tokio::test]
async fn of_snapshots_the_newest_of_a_name_comes_first_and_is_what_its_path_answers() {
    let daemon = Daemon::start(Limits::default()).await;
    let list = daemon.get("/v1/snapshots?fields=team,name,generation").await.json();
    let shown = |item: &serde_json::Value| format!("{}/{}@{}", item["team"], item["name"], item["generation"]);
    let items: Vec<_> = list["items"].as_array().unwrap().iter().map(shown).collect();
    assert_eq!(items, [r#""default"/"nightly"@2"#, r#""default"/"nightly"@1"#, r#""ops"/"before"@1"#]);
    let newest = daemon.get("/v1/snapshots/default/nightly").await;
    assert_eq!((&newest.json()["generation"], &newest.json()["size"]), (&json!(2), &json!("8Mi")));
    let of = |query: &str| format!("/v1/snapshots?{query}");
    for (query, number) in [("team=ops", 1), ("app=blog", 3), ("app=shop", 0), ("team=default&app=blog", 2)] {
        let items = daemon.get(&of(query)).await.json();
        assert_eq!(items["items"].as_array().unwrap().len(), number, "{query}");
    }
    let (place, newer) = fake::kept(("nightly", 3));
    daemon.publish(Content { snapshots: Rows::Changed([(place, Some(newer))].into()), ..content() });
    let unchanged = daemon.get_unless("/v1/snapshots/default/nightly", newest.header("etag")).await;
    assert_eq!((unchanged.status, &unchanged.json()["generation"]), (200, &json!(3)));
    assert_eq!(daemon.get("/v1/snapshots/ops/nightly").await.status, 404);
}

#[tokio::test]
async fn any_other_method_is_405_on_every_path() {
    let daemon = Daemon::start(Limits::default()).await;
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"] {
        for path in JSON_ROUTES.iter().chain(&TEXT_ROUTES).chain(&["/nothing"]) {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let request = Request::builder().method(method).uri(*path).header(HOST, "localhost");
            let reply = send(daemon.address, request.body(Body::empty()).unwrap()).await;
            assert_eq!((reply.status, reply.header("allow")), (405, "GET, HEAD"), "{path}");
            assert_eq!(reply.header("content-type"), "application/problem+json");
        }
    }
}

#[tokio::test]
async fn following_next_visits_every_item_once() {
    let daemon = Daemon::start(Limits::default()).await;
    for (path, field, total) in
        [("/v1/apps", "name", 4), ("/v1/sandboxes", "id", 3), ("/v1/snapshots", "id", 3), ("/v1/events", "id", 5)]
    {
        for limit in 1..=6 {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = daemon.get(&format!("{path}?limit={limit}{cursor}")).await.json();
                let items = page["items"].as_array().unwrap();
                assert!(!items.is_empty() && items.len() <= limit, "{path} {limit}");
                seen.extend(items.iter().map(|item| format!("{}{}", item["team"], item[field])));
                let Some(next) = page["next"].as_str() else { break };
                cursor = format!("&cursor={}", next.replace('/', "%2F"));
            }
            let distinct: BTreeSet<_> = seen.iter().collect();
            assert_eq!((seen.len(), distinct.len()), (total, total), "{path} {limit}");
        }
    }
}

#[tokio::test]
async fn a_page_goes_on_behind_an_item_that_has_gone() {
    let daemon = Daemon::start(Limits::default()).await;
    let page = daemon.get("/v1/apps?cursor=bravo&limit=1").await.json();
    assert_eq!((&page["items"][0]["name"], &page["next"]), (&json!("zeta"), &json!("zeta")));
}

#[tokio::test]
async fn a_bad_parameter_is_refused_by_name() {
    let daemon = Daemon::start(Limits::default()).await;
    let cases = [
        ("/v1/apps?limit=0", "limit"),
        ("/v1/apps?limit=1001", "limit"),
        ("/v1/apps?limit=ten", "limit"),
        ("/v1/apps?limit=1&limit=2", "limit"),
        ("/v1/apps?cursor=Not%20A%20Key", "cursor"),
        ("/v1/events?cursor=x", "cursor"),
        ("/v1/apps?lmit=1", "lmit"),
        ("/v1/status?verbose", "verbose"),
        ("/v1/plan?rev=", "rev"),
        ("/v1/plan?rev=a%0Ab", "rev"),
        ("/v1/apps/default/blog/processes/web/logs?tail=-1", "tail"),
        ("/v1/apps/default/blog/processes/web/logs?follow=maybe", "follow"),
    ];
    for (path, parameter) in cases {
        let reply = daemon.get(path).await;
        assert_eq!(reply.header("content-type"), "application/problem+json", "{path}");
        let problem = reply.json();
        assert_eq!(
            (reply.status, &problem["status"], &problem["parameter"]),
            (400, &json!(400), &json!(parameter)),
            "{path}"
        );
    }
}

#[tokio::test]
async fn what_is_not_there_is_a_404_that_says_so() {
    let daemon = Daemon::start(Limits::default()).await;
    let cases = [
        ("/", "there is nothing under this path"),
        ("/v1/apps/", "there is nothing under this path"),
        ("/v1/apps/default/nope", "there is no app nope"),
        ("/v1/apps/ops/blog", "there is no app ops/blog"),
        ("/v1/apps/ops/nope/processes/web/logs", "there is no app ops/nope"),
        ("/v1/apps/default/blog/processes/nope/logs", "blog has no process nope"),
    ];
    for (path, detail) in cases {
        let reply = daemon.get(path).await;
        assert_eq!((reply.status, &reply.json()["detail"]), (404, &json!(detail)), "{path}");
    }
    for path in ["/v1/apps/DEFAULT/blog", "/v1/apps/default/..%2F..", "/v1/apps/default/blog/processes/a%2Fb/logs"] {
        assert_eq!(daemon.get(path).await.status, 404, "{path}");
    }
    assert_eq!(daemon.get("/v1/apps/default/%FF").await.status, 400);
}

#[tokio::test]
async fn a_failure_shows_its_causes() {
    let daemon = Daemon::start(Limits::default()).await;
    let reply = daemon.get("/v1/revisions?cursor=c0ffee").await;
    assert_eq!((reply.status, &reply.json()["detail"]), (500, &json!("could not read revisions: checksum mismatch")));
    let reply = daemon.get("/v1/apps/default/blog/processes/sleeper/logs").await;
    assert_eq!((reply.status, &reply.json()["detail"]), (503, &json!("the app is stopped")));
}

#[tokio::test]
async fn readiness_waits_for_the_first_pass() {
    let daemon = Daemon::start(Limits::default()).await;
    daemon.snapshot.send_replace(None);
    for path in ["/readyz", "/v1/status", "/v1/apps", "/v1/apps/default/blog", "/v1/sandboxes"] {
        assert_eq!(daemon.get(path).await.status, 503, "{path}");
    }
    assert_eq!(daemon.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_rebound_name_gets_nothing() {
    let daemon = Daemon::start(Limits::default()).await;
    let ours = ["localhost", "LOCALHOST:7878", "127.0.0.1", "10.0.0.1:7878", "[::1]:7878", "setpoint.example.org"];
    for host in ours {
        assert_eq!(get(daemon.address, host, "/v1/status").await.status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "1.evil.example:7878"] {
        let reply = get(daemon.address, host, "/v1/status").await;
        assert_eq!(reply.status, 421, "{host}");
        assert!(!reply.text().contains("git.example.org"));
    }
    let twice =
        raw(daemon.address, "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nConnection: close\r\n\r\n").await;
    assert!(twice.starts_with("HTTP/1.1 400 "), "{twice}");
    let none = raw(daemon.address, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert!(none.starts_with("HTTP/1.1 400 "), "{none}");
}

#[tokio::test]
async fn answers_are_safe_to_open_in_a_browser_and_grant_nothing_to_other_origins() {
    let daemon = Daemon::start(Limits::default()).await;
    for path in ["/v1/status", "/nothing", "/v1/apps?limit=x"] {
        let reply = daemon.get(path).await;
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
        let kept = if reply.status == 200 { "no-cache" } else { "no-store" };
        assert_eq!(reply.header("cache-control"), kept, "{path}");
        assert_eq!(reply.header("content-security-policy"), "default-src 'none'; frame-ancestors 'none'", "{path}");
        assert!(!reply.headers.keys().any(|name| name.as_str().starts_with("access-control-")), "{path}");
    }
}

#[tokio::test]
async fn a_log_ends_after_its_tail_unless_it_is_followed() {
    let daemon = Daemon::start(Limits::default()).await;
    let reply = daemon.get("/v1/apps/default/blog/processes/web/logs?tail=7").await;
    assert_eq!(reply.text(), "last 7 of blog\n");

    let request = Request::get("/v1/apps/default/blog/processes/web/logs?follow=true").header(HOST, "localhost");
    let mut sender = connect(daemon.address).await;
    let response = sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
    let mut lines = http_body_util::BodyStream::new(response.into_body());
    let first = timeout(LONG, lines.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "last 100 of blog\n");
    daemon.shutdown.cancel();
    assert!(timeout(LONG, lines.next()).await.unwrap().is_none(), "a shutdown ends a followed log cleanly");
    timeout(LONG, daemon.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_that_has_begun_outlives_the_shutdown() {
    let daemon = Daemon::start(Limits::default()).await;
    let address = daemon.address;
    let asked = tokio::spawn(async move { get(address, "localhost", "/v1/plan?rev=slow").await });
    daemon.backend.planning.notified().await;
    daemon.shutdown.cancel();
    daemon.backend.planned.notify_one();
    assert_eq!(asked.await.unwrap().status, 200);
    timeout(LONG, daemon.served).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_off_by_the_shutdown() {
    let daemon = Daemon::start(Limits { drain: Duration::from_millis(50), ..Limits::default() }).await;
    let address = daemon.address;
    let request = "GET /v1/plan?rev=slow HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let asked = tokio::spawn(async move { raw(address, request).await });
    daemon.backend.planning.notified().await;
    daemon.shutdown.cancel();
    timeout(LONG, daemon.served).await.unwrap().unwrap();
    assert_eq!(asked.await.unwrap(), "");
}

#[tokio::test]
async fn a_head_that_does_not_come_to_its_end_is_closed() {
    let daemon = Daemon::start(Limits { head_timeout: Duration::from_millis(100), ..Limits::default() }).await;
    for partial in ["", "G", "GET /healthz HTTP/1.1\r\nHost: localh"] {
        let closed = timeout(LONG, raw(daemon.address, partial)).await.unwrap();
        assert!(closed.is_empty() || closed.starts_with("HTTP/1.1 408 "), "{closed}");
    }
    let idle = raw(daemon.address, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answered = timeout(LONG, idle).await.expect("an idle connection is closed as well");
    assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
}

#[tokio::test]
async fn a_head_beyond_its_bound_is_refused() {
    let daemon = Daemon::start(Limits::default()).await;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Filler: {}\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    // The server may close before it has read all of it.
    let _ = stream.write_all(request.as_bytes()).await;
    let status = timeout(LONG, read_until(&mut stream, "\r\n")).await.unwrap();
    assert!(status.starts_with("HTTP/1.1 431 "), "{status}");
}
