//! Server-sent events.

use axum::body::Body;
use futures_util::StreamExt as _;
use http_body_util::BodyStream;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, Response};
use serde_json::{Value, json};
use setpoint::api::{Content, Rows};
use setpoint::http::Limits;
use tokio::time::timeout;

use crate::LONG;
use crate::client::connect;
use crate::fake::{Daemon, app, content};

/// What one event says.
#[derive(Debug, PartialEq)]
struct Event {
    id: Option<String>,
    name: String,
    data: Value,
}

/// A stream that is being read.
struct Reader {
    body: BodyStream<Incoming>,
    read: String,
}

impl Reader {
    async fn open(daemon: &Daemon, path: &str, after: Option<&str>) -> Self {
        let response = open(daemon, path, after).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream", "{path}");
        assert_eq!(response.headers()["cache-control"], "no-store", "{path}");
        Self { body: BodyStream::new(response.into_body()), read: String::new() }
    }

    /// The next event; `None` when the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let event = parse(event);
                self.read = rest.to_owned();
                return Some(event);
            }
            let frame = timeout(LONG, self.body.next()).await.expect("something comes")?.unwrap();
            self.read.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
    }

    async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            ids.push(self.next().await.unwrap().id.unwrap());
        }
        ids
    }
}

async fn open(daemon: &Daemon, path: &str, after: Option<&str>) -> Response<Incoming> {
    let mut request = Request::get(path).header(HOST, "localhost").header(ACCEPT, "text/event-stream");
    if let Some(after) = after {
        request = request.header("Last-Event-ID", after);
    }
    let mut connection = connect(daemon.address).await;
    let response = connection.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
    // A connection ends with its last sender, and a stream with its connection.
    tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop(connection);
    });
    response
}

fn parse(text: &str) -> Event {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = serde_json::from_str(field("data").unwrap()).unwrap();
    Event { id: field("id").map(str::to_owned), name: field("event").unwrap().to_owned(), data }
}

#[tokio::test]
async fn an_object_is_shown_as_it_is_and_then_each_time_that_it_changes() {
    let daemon = Daemon::start(Limits::default()).await;
    let mut app_stream = Reader::open(&daemon, "/v1/apps/default/blog", None).await;
    let mut status = Reader::open(&daemon, "/v1/status?fields=apps.total", None).await;
    let first = app_stream.next().await.unwrap();
    assert_eq!(first.data, daemon.get("/v1/apps/default/blog").await.json());
    assert_eq!(
        (&*first.name, first.id.as_deref()),
        ("app", Some(daemon.get("/v1/apps/default/blog").await.header("etag")))
    );
    assert_eq!(status.next().await.unwrap().data, json!({"apps": {"total": 4}}));

    let blog = "blog".parse().unwrap();
    daemon.publish_app(app(&"zeta".parse().unwrap()));
    let mut changed = app(&blog);
    changed.restarts = 9;
    daemon.publish_app(changed);
    assert_eq!(app_stream.next().await.unwrap().data["restarts"], 9);

    daemon.publish(Content { apps: Rows::Changed([(blog, None)].into()), ..content() });
    let last = app_stream.next().await.unwrap();
    assert_eq!((&*last.name, &last.data["status"]), ("problem", &json!(404)));
    assert_eq!(app_stream.next().await, None);
    assert_eq!(open(&daemon, "/v1/apps/default/blog", None).await.status(), 404);
}

#[tokio::test]
async fn who_comes_again_with_the_present_state_is_not_shown_it_again() {
    let daemon = Daemon::start(Limits::default()).await;
    let id = Reader::open(&daemon, "/v1/apps/default/blog", None).await.next().await.unwrap().id;
    let mut again = Reader::open(&daemon, "/v1/apps/default/blog", id.as_deref()).await;
    let mut changed = app(&"blog".parse().unwrap());
    changed.restarts = 3;
    daemon.publish_app(changed);
    assert_eq!(again.next().await.unwrap().data["restarts"], 3);
}

#[tokio::test]
async fn events_are_streamed_without_loss_or_doubles_across_broken_connections() {
    let daemon = Daemon::start(Limits::default()).await;
    let mut stream = Reader::open(&daemon, "/v1/events", None).await;
    let first = stream.next().await.unwrap();
    assert_eq!((&*first.name, &first.data["reason"]), ("event", &json!("Panic")));
    let mut seen = vec![first.id.unwrap()];
    for round in 0..30 {
        daemon.backend.happen();
        seen.extend(stream.ids(1).await);
        if round % 4 == 0 {
            stream = Reader::open(&daemon, "/v1/events", seen.last().map(String::as_str)).await;
        }
    }
    seen.extend(stream.ids(4).await);
    let all: Vec<_> = (0..35).map(|id| id.to_string()).collect();
    assert_eq!(seen, all);
}

#[tokio::test]
async fn a_stream_of_events_begins_after_its_cursor_and_shows_those_of_one_app() {
    let daemon = Daemon::start(Limits::default()).await;
    assert_eq!(Reader::open(&daemon, "/v1/events?cursor=2", None).await.ids(2).await, ["3", "4"]);
    assert_eq!(Reader::open(&daemon, "/v1/events?cursor=0", Some("3")).await.ids(1).await, ["4"]);
    let mut fields = Reader::open(&daemon, "/v1/events?app=blog&fields=kind", None).await;
    assert_eq!(fields.next().await.unwrap().data, json!({"kind": "healed"}));
    let mut others = Reader::open(&daemon, "/v1/events?app=zeta", None).await;
    daemon.backend.happen();
    daemon.shutdown.cancel();
    assert_eq!(others.next().await, None, "a shutdown ends a stream");
}

#[tokio::test]
async fn what_a_stream_cannot_begin_with_is_refused() {
    let daemon = Daemon::start(Limits::default()).await;
    for (path, after) in [("/v1/events", Some("x")), ("/v1/events?cursor=x", None), ("/v1/events?limit=3", None)] {
        let response = open(&daemon, path, after).await;
        assert_eq!(response.status(), 400, "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
    }
    // What has no stream answers with a document.
    assert_eq!(open(&daemon, "/v1/apps", None).await.headers()["content-type"], "application/json");
    daemon.snapshot.send_replace(None);
    assert_eq!(open(&daemon, "/v1/status", None).await.status(), 503);
}
