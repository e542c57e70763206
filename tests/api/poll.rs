//! Polling: tags, answers without news, waits, parts and filters.

use std::time::{Duration, Instant};

use axum::body::Body;
use hyper::Request;
use hyper::header::{HOST, IF_NONE_MATCH};
use serde_json::json;
use setpoint::api::{Content, Rows};
use setpoint::http::Limits;
use setpoint_schema::wire::Phase;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::{Reply, connect, send};
use crate::fake::{Daemon, app, content};
use crate::{JSON_ROUTES, LONG};

impl Daemon {
    async fn tag(&self, path: &str) -> String {
        let reply = self.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.header("etag").to_owned()
    }

    /// Somebody who has the present state waits for the next.
    async fn waiter(&self, path: &str) -> JoinHandle<Reply> {
        let tag = self.tag(path).await;
        let mut connection = connect(self.address).await;
        let request = Request::get(path).header(HOST, "localhost").header(IF_NONE_MATCH, tag);
        // The request is under way, if not there, when this returns: what is published from now on is an answer to it either way.
        let answer = connection.send_request(request.body(Body::empty()).unwrap());
        tokio::spawn(async move {
            let reply = Reply::of(answer.await.unwrap()).await;
            drop(connection);
            reply
        })
    }
}

async fn answer(waiter: JoinHandle<Reply>) -> Reply {
    timeout(LONG, waiter).await.expect("it is answered").unwrap()
}

fn blog(phase: Phase) -> setpoint_schema::wire::App {
    setpoint_schema::wire::App { phase, ..app(&"blog".parse().unwrap()) }
}

#[tokio::test]
async fn who_has_the_present_state_is_answered_without_a_body() {
    let daemon = Daemon::start(Limits::default()).await;
    for path in JSON_ROUTES.iter().chain(&["/v1/openapi.json", "/v1/apps?limit=2&phase=ready", "/v1/apps?fields=name"])
    {
        let tag = daemon.tag(path).await;
        assert!(tag.starts_with('"') && tag.ends_with('"'), "{path}: {tag} is no strong tag");
        for known in [tag.clone(), "*".to_owned(), format!("\"other\", W/{tag}")] {
            let reply = daemon.get_unless(path, &known).await;
            assert_eq!((reply.status, reply.body.len()), (304, 0), "{path} {known}");
            assert_eq!((reply.header("etag"), reply.header("cache-control")), (&*tag, "no-cache"), "{path}");
            assert!(!reply.headers.contains_key("content-type"), "{path}");
        }
        for other in ["\"other\"", "", "nonsense"] {
            let reply = daemon.get_unless(path, other).await;
            assert_eq!((reply.status, reply.header("etag")), (200, &*tag), "{path} {other:?}");
        }
        let head = Request::head(*path).header(HOST, "localhost").header(IF_NONE_MATCH, &tag);
        assert_eq!(send(daemon.address, head.body(Body::empty()).unwrap()).await.status, 304, "{path}");
    }
}

#[tokio::test]
async fn who_polls_on_is_answered_alike_until_something_changes() {
    let daemon = Daemon::start(Limits::default()).await;
    for path in ["/v1/apps?limit=2", "/v1/apps/default/blog", "/v1/events", "/v1/status"] {
        let tag = daemon.tag(path).await;
        let first = daemon.get_unless(path, &tag).await;
        let again = daemon.get_unless(path, &tag).await;
        let told = |reply: &Reply| {
            let named = reply.headers.iter().filter(|(name, _)| *name != hyper::header::DATE);
            (reply.status, named.map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>())
        };
        assert_eq!(told(&first), told(&again), "{path}");
        assert_eq!((again.status, again.header("vary"), again.header("cache-control")), (304, "accept", "no-cache"));
    }
    let (apps, events) = (daemon.tag("/v1/apps?limit=2").await, daemon.tag("/v1/events").await);
    daemon.publish_app(blog(Phase::Unready));
    daemon.backend.happen();
    assert_eq!(daemon.get_unless("/v1/apps?limit=2", &apps).await.status, 200);
    assert_eq!(daemon.get_unless("/v1/events", &events).await.status, 200);
}

#[tokio::test]
async fn what_somebody_polls_opens_nothing_to_others() {
    let daemon = Daemon::start(Limits::default()).await;
    let path = "/v1/status";
    let tag = daemon.tag(path).await;
    let ask = |host: &str, method: &str, accept: &str| {
        let request = Request::builder().method(method).uri(path).header(HOST, host);
        let request = request.header(IF_NONE_MATCH, &tag).header("accept", accept);
        request.body(Body::empty()).unwrap()
    };
    for _ in 0..2 {
        assert_eq!(send(daemon.address, ask("localhost", "GET", "*/*")).await.status, 304);
    }
    for host in ["evil.example", "localhost.evil.example", "1.evil.example:80"] {
        assert_ne!(send(daemon.address, ask(host, "GET", "*/*")).await.status, 304, "{host}");
    }
    assert_eq!(send(daemon.address, ask("localhost", "POST", "*/*")).await.status, 405);
    let mut connection = connect(daemon.address).await;
    let stream = connection.send_request(ask("localhost", "GET", "text/event-stream")).await.unwrap();
    assert_eq!(
        (stream.status().as_u16(), &stream.headers()["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
}

#[tokio::test]
async fn a_pass_that_says_the_same_leaves_every_tag() {
    let daemon = Daemon::start(Limits::default()).await;
    let mut tags = Vec::new();
    for path in JSON_ROUTES {
        tags.push((path, daemon.tag(path).await));
    }
    daemon.publish(Content { at: "2026-01-01T00:00:35Z".parse().unwrap(), ..content() });
    assert!(daemon.get("/readyz").await.text().contains("00:00:35"), "a pass has ended");
    for (path, tag) in tags {
        assert_eq!(daemon.tag(path).await, tag, "{path}");
    }
}

#[tokio::test]
async fn a_change_changes_the_tags_of_what_shows_it_alone() {
    let daemon = Daemon::start(Limits::default()).await;
    let touched =
        ["/v1/apps", "/v1/apps?limit=2", "/v1/apps/default/blog", "/v1/apps?fields=phase", "/v1/apps?phase=ready"];
    let others = [
        "/v1/status",
        "/v1/apps?limit=2&cursor=blog",
        "/v1/apps?team=ops",
        "/v1/apps?fields=name,urls",
        "/v1/apps/default/blog?fields=restarts",
        "/v1/apps/default/alpha",
        "/v1/sandboxes",
        "/v1/templates",
        "/v1/events",
    ];
    let mut before = Vec::new();
    for path in touched.iter().chain(&others) {
        before.push((*path, daemon.tag(path).await));
    }
    daemon.publish_app(blog(Phase::Unready));
    for (path, tag) in before {
        assert_eq!(daemon.tag(path).await != tag, touched.contains(&path), "{path}");
    }
    assert_eq!(daemon.get("/v1/apps/default/blog").await.json()["phase"], "unready");
    assert_eq!(daemon.get("/v1/apps?limit=2").await.json()["items"][1]["phase"], "unready");
}

#[tokio::test]
async fn an_item_that_goes_changes_the_page_that_it_was_on() {
    let daemon = Daemon::start(Limits::default()).await;
    let (first, second) = (daemon.tag("/v1/apps?limit=1").await, daemon.tag("/v1/apps?limit=1&cursor=alpha").await);
    daemon.publish(Content { apps: Rows::Changed([("alpha".parse().unwrap(), None)].into()), ..content() });
    assert_ne!(daemon.tag("/v1/apps?limit=1").await, first);
    assert_eq!(daemon.tag("/v1/apps?limit=1&cursor=alpha").await, second);
    assert_eq!(daemon.get("/v1/apps?limit=1").await.json()["items"][0]["name"], "blog");
}

#[tokio::test]
async fn a_wait_is_answered_with_the_change_and_with_no_other() {
    let daemon = Daemon::start(Limits::default()).await;
    let of_blog = daemon.waiter("/v1/apps/default/blog?wait=5m").await;
    let of_phase = daemon.waiter("/v1/apps/default/blog?fields=phase&wait=5m").await;
    let of_list = daemon.waiter("/v1/apps?wait=5m").await;
    let of_unready = daemon.waiter("/v1/apps?phase=unready&wait=5m").await;
    let of_status = daemon.waiter("/v1/status?wait=5m").await;

    let mut restarted = blog(Phase::Ready);
    restarted.restarts = 7;
    daemon.publish_app(restarted);
    let reply = answer(of_blog).await;
    assert_eq!((reply.status, &reply.json()["restarts"]), (200, &json!(7)));
    assert_eq!(answer(of_list).await.json()["items"][1]["restarts"], 7);
    assert!(!of_phase.is_finished() && !of_unready.is_finished());

    daemon.publish_app(blog(Phase::Unready));
    assert_eq!(answer(of_phase).await.json(), json!({"phase": "unready"}));
    assert_eq!(answer(of_unready).await.json()["items"][0]["name"], "blog");
    assert!(!of_status.is_finished(), "nothing of it has changed");
    daemon.shutdown.cancel();
    assert_eq!(answer(of_status).await.status, 304, "a shutdown ends every wait");
    timeout(LONG, daemon.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_wait_without_news_ends_after_its_time() {
    let daemon = Daemon::start(Limits::default()).await;
    let began = Instant::now();
    let reply = answer(daemon.waiter("/v1/apps?wait=1s").await).await;
    assert_eq!((reply.status, reply.body.len()), (304, 0));
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn who_has_another_state_or_none_does_not_wait() {
    let daemon = Daemon::start(Limits::default()).await;
    for path in ["/v1/apps?wait=5m", "/v1/status?wait=5m", "/v1/events?wait=5m", "/v1/revisions?wait=5m"] {
        let none = timeout(LONG, daemon.get(path)).await.expect("it is answered at once");
        let other = timeout(LONG, daemon.get_unless(path, "\"other\"")).await.expect("it is answered at once");
        assert_eq!((none.status, other.status), (200, 200), "{path}");
    }
}

#[tokio::test]
async fn a_wait_for_what_goes_away_ends_with_404() {
    let daemon = Daemon::start(Limits::default()).await;
    let waiter = daemon.waiter("/v1/apps/default/blog?wait=5m").await;
    daemon.publish(Content { apps: Rows::Changed([("blog".parse().unwrap(), None)].into()), ..content() });
    assert_eq!(answer(waiter).await.status, 404);
}

#[tokio::test]
async fn events_and_revisions_can_be_waited_for() {
    let daemon = Daemon::start(Limits::default()).await;
    let newest = daemon.waiter("/v1/events?cursor=4&wait=5m").await;
    let full_page = daemon.waiter("/v1/events?limit=2&wait=5m").await;
    daemon.backend.happen();
    assert_eq!(answer(newest).await.json()["items"][0]["id"], "5");
    assert!(!full_page.is_finished(), "a page that is full and goes on says the same for ever");
}

/// As many as fit into the open files that one process may have here, both ends of a connection being in it.
#[tokio::test]
async fn many_who_wait_for_one_app_are_all_answered() {
    const WAITERS: usize = 400;
    let limits = Limits { connections: 2 * WAITERS, per_peer: 2 * WAITERS, ..Limits::default() };
    let daemon = Daemon::start(limits).await;
    let mut waiters = Vec::new();
    for _ in 0..WAITERS {
        waiters.push(daemon.waiter("/v1/apps/default/blog?wait=5m").await);
    }
    for restarts in 0..50 {
        let mut other = app(&"zeta".parse().unwrap());
        other.restarts = restarts + 10;
        daemon.publish_app(other);
        tokio::task::yield_now().await;
    }
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    daemon.publish_app(blog(Phase::Unready));
    for waiter in waiters {
        assert_eq!(answer(waiter).await.json()["phase"], "unready");
    }
}

#[tokio::test]
async fn lists_show_what_was_asked_for() {
    let daemon = Daemon::start(Limits::default()).await;
    let mut labelled = blog(Phase::Unready);
    labelled.labels = [("tier", "front"), ("k", "a=b")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    daemon.publish_app(labelled);
    let cases = [
        ("/v1/apps?team=ops", vec!["ops/alpha"]),
        ("/v1/apps?phase=unready", vec!["blog"]),
        ("/v1/apps?phase=unready&team=ops", vec![]),
        ("/v1/apps?label=tier=front", vec!["blog"]),
        ("/v1/apps?label=tier%3Dfront&label=k%3Da%3Db", vec!["blog"]),
        ("/v1/apps?label=tier=front&label=k=x", vec![]),
        ("/v1/apps?label=tier=", vec![]),
        ("/v1/apps?phase=ready&limit=2", vec!["alpha", "zeta"]),
    ];
    for (path, names) in cases {
        let list = daemon.get(path).await.json();
        let items = list["items"].as_array().unwrap().iter();
        let shown: Vec<_> = items
            .map(|item| match item["team"].as_str().unwrap() {
                "default" => item["name"].as_str().unwrap().to_owned(),
                team => format!("{team}/{}", item["name"].as_str().unwrap()),
            })
            .collect();
        assert_eq!(shown, names, "{path}");
    }
    // A page goes on while there is more that was asked for.
    assert_eq!(daemon.get("/v1/apps?phase=ready&limit=1").await.json()["next"], "alpha");
    for (path, count) in [
        ("/v1/sandboxes?app=blog", 3),
        ("/v1/sandboxes?app=zeta", 0),
        ("/v1/events?app=blog", 5),
        ("/v1/events?app=ops/x", 0),
    ] {
        assert_eq!(daemon.get(path).await.json()["items"].as_array().unwrap().len(), count, "{path}");
    }
}

#[tokio::test]
async fn fields_cut_objects_down_in_every_list_and_object() {
    let daemon = Daemon::start(Limits::default()).await;
    let app = json!({"name": "blog", "conditions": [{"reason": "Healthy"}]});
    assert_eq!(daemon.get("/v1/apps/default/blog?fields=name,conditions.reason").await.json(), app);
    let list = daemon.get("/v1/apps?fields=name&limit=1").await.json();
    assert_eq!(list, json!({"items": [{"name": "alpha"}], "next": "alpha"}));
    assert_eq!(daemon.get("/v1/status?fields=source.branch").await.json(), json!({"source": {"branch": "main"}}));
    let events = daemon.get("/v1/events?fields=id&limit=1").await.json();
    assert_eq!(events, json!({"items": [{"id": "0"}], "next": "0"}));
    for (path, type_name) in
        [("/v1/apps", "naem"), ("/v1/revisions", "id"), ("/v1/sandboxes", "vm.x"), ("/v1/templates", "")]
    {
        let reply = daemon.get(&format!("{path}?fields={type_name}")).await;
        let problem = reply.json();
        assert_eq!((reply.status, &problem["parameter"]), (400, &json!("fields")), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains(&format!("`{type_name}`")), "{problem}");
    }
}
