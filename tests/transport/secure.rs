//! TLS, tokens and the Unix socket: the real daemon, and the real command line against it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use axum::body::Body;
use hyper::Response;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use setpoint::http::{self, Limits, Listener, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::host::{self, Host};

/// A certificate authority of the test's own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes its own certificate.
    fn publish(&self, path: &Path) {
        fs::write(path, self.0.pem()).unwrap();
    }

    /// Signs and writes a pair for these names.
    fn issue(&self, names: &[&str], cert: &Path, key: &Path) {
        let secret = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let signed = CertificateParams::new(names).unwrap().signed_by(&secret, &self.0).unwrap();
        fs::write(cert, signed.pem()).unwrap();
        fs::write(key, secret.serialize_pem()).unwrap();
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A new token's text, and the configuration line that accepts it, as `setpoint token new` prints them.
fn new_token(host: &Host, name: &str) -> (String, String) {
    let output = host.run(&["token", "new", name]);
    let text = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let told = String::from_utf8(output.stderr).unwrap();
    let line = told.lines().find(|line| line.contains("sha256")).unwrap().trim().to_owned();
    assert!(!told.contains(&text), "the token is printed once");
    (text, line)
}

fn path(host: &Host, name: &str) -> PathBuf {
    host.state().join(name)
}

fn daemon_with(config: &str) -> Host {
    let mut host = Host::sim();
    host.commit("begin");
    start_with(&mut host, config);
    host
}

fn start_with(host: &mut Host, config: &str) {
    host.configure(config);
    host.spawn(&[]);
    assert!(host.is_up(), "{}", host.log());
}

/// Waits until a command succeeds: the daemon may not have looked around yet.
fn succeeds(host: &Host, args: &[&str], env: &[(&str, &str)]) -> String {
    host.wait_for(&format!("{args:?} to succeed"), |host| {
        let output = host.command(args).envs(env.iter().copied()).output().unwrap();
        output.status.success().then(|| said(&output))
    })
}

#[test]
fn a_token_opens_the_address_and_the_unix_socket_needs_none() {
    let mut host = Host::sim();
    host.commit("begin");
    let (text, line) = new_token(&host, "ci");
    let (stranger, _) = new_token(&host, "stranger");
    let socket = path(&host, "api.sock");
    start_with(&mut host, &format!("[api]\n{line}\nsocket = {socket:?}\n"));
    let address = host.api_address().to_string();

    assert_eq!(host.api_answer("/healthz").unwrap().status, 200);
    let refused = host.api_answer("/v1/status").unwrap();
    assert_eq!(refused.status, 401);
    assert!(refused.body.contains("asks for a token"), "{}", refused.body);

    let ask = ["get", "apps", "--server", &address];
    let told = said(&host.run(&ask));
    assert!(told.contains("asks for a token\nhint: pass --token-file FILE or set SETPOINT_TOKEN"), "{told}");
    let told = said(&host.command(&ask).env("SETPOINT_TOKEN", &stranger).output().unwrap());
    assert!(told.contains("does not accept this token\nhint: compare with `tokens` under [api]"), "{told}");
    succeeds(&host, &ask, &[("SETPOINT_TOKEN", &text)]);
    let file = path(&host, "token");
    fs::write(&file, format!("{text}\n")).unwrap();
    succeeds(&host, &[&ask[..], &["--token-file", file.to_str().unwrap()]].concat(), &[]);

    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let unix = format!("unix:{}", socket.display());
    succeeds(&host, &["get", "apps", "--server", &unix], &[]);
    succeeds(&host, &["get", "apps"], &[]);
    assert!(!host.log().contains(&text), "no token in the log");
    assert_eq!(host.stop_daemon(), Some(0));
    assert!(!socket.exists(), "the socket goes with its daemon");
}

#[test]
fn a_socket_that_a_killed_daemon_left_behind_is_taken_over() {
    let mut host = Host::sim();
    host.commit("begin");
    let socket = path(&host, "api.sock");
    let config = format!("[api]\nsocket = {socket:?}\n");
    start_with(&mut host, &config);
    host.kill_daemon();
    assert!(socket.exists());
    start_with(&mut host, &config);
    succeeds(&host, &["get", "apps", "--server", &format!("unix:{}", socket.display())], &[]);
}

#[tokio::test]
async fn a_client_that_says_nothing_to_tls_is_sent_away() {
    let dir = tempfile::tempdir().unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
    Authority::new("first").issue(&["localhost"], &cert, &key);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Listener::tls(listener, Tls::load(&cert, &key).unwrap());
    let limits = Limits { head_timeout: Duration::from_millis(300), ..Limits::default() };
    let shutdown = CancellationToken::new();
    let answer = |_, _: &http::Connection| async { Response::new(Body::from("here")) };
    let served = tokio::spawn(http::serve(listener, answer, limits, shutdown.clone()));

    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    // The head of a record whose rest never comes.
    half.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).await.unwrap();
    for quiet in [&mut silent, &mut half] {
        let mut told = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(20), quiet.read_to_end(&mut told)).await;
        assert!(end.is_ok() && told.is_empty(), "{told:?}");
    }
    shutdown.cancel();
    served.await.unwrap();
}

#[test]
fn tls_is_checked_by_the_client_and_a_renewed_certificate_is_taken_up() {
    let mut host = Host::sim();
    host.commit("begin");
    let [cert, key, ca, next_ca] = ["cert.pem", "key.pem", "ca.pem", "next-ca.pem"].map(|name| path(&host, name));
    let (authority, next) = (Authority::new("first"), Authority::new("next"));
    authority.publish(&ca);
    next.publish(&next_ca);
    authority.issue(&["127.0.0.1", "localhost"], &cert, &key);
    start_with(&mut host, &format!("[api]\ntls = {{ cert = {cert:?}, key = {key:?} }}\n"));
    let port = host.api_address().port();
    let https = format!("https://127.0.0.1:{port}");
    let with = |ca: &Path| ["get", "apps", "--server", &https, "--ca", ca.to_str().unwrap()].map(str::to_owned);
    let trusting = |ca: &Path| host.run(&with(ca).each_ref().map(String::as_str));

    succeeds(&host, &with(&ca).each_ref().map(String::as_str), &[]);
    let told = said(&trusting(&next_ca));
    assert!(told.contains("could not make a TLS connection") && told.contains("with --ca FILE"), "{told}");
    let told = said(&host.run(&["get", "apps", "--server", &format!("127.0.0.1:{port}")]));
    assert!(told.contains("is not a Setpoint status API") && told.contains("with TLS it is https://"), "{told}");
    // The daemon's own beacon says that it speaks TLS.
    succeeds(&host, &["get", "apps", "--ca", ca.to_str().unwrap()], &[]);

    fs::write(&key, "half of a pair that is being replaced").unwrap();
    // Connections are what makes the daemon look at the files.
    host.wait_for("half a pair to be refused", |host| {
        assert!(trusting(&ca).status.success(), "the certificate before serves on");
        host.log().contains("renewed TLS certificate cannot be used: the one before serves on").then_some(())
    });
    next.issue(&["localhost"], &cert, &key);
    let renewed = ["get", "apps", "--server", &format!("https://localhost:{port}"), "--ca", next_ca.to_str().unwrap()];
    succeeds(&host, &renewed, &[]);
    let told = said(&trusting(&next_ca));
    assert!(told.contains("name the daemon with --server https://NAME"), "{told}");
}

/// What `openssl req -x509` makes unless told otherwise.
#[test]
fn an_authority_in_the_place_of_a_server_is_explained() {
    let mut host = Host::sim();
    host.commit("begin");
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| path(&host, name));
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let secret = KeyPair::generate().unwrap();
    fs::write(&cert, params.self_signed(&secret).unwrap().pem()).unwrap();
    fs::write(&key, secret.serialize_pem()).unwrap();
    start_with(&mut host, &format!("[api]\ntls = {{ cert = {cert:?}, key = {key:?} }}\n"));
    let told = said(&host.run(&["get", "apps", "--ca", cert.to_str().unwrap()]));
    assert!(told.contains("hint: a daemon needs a certificate of its own"), "{told}");
}

#[test]
fn plain_http_is_told_apart_from_tls() {
    let host = daemon_with("");
    let https = format!("https://{}", host.api_address());
    let told = said(&host.run(&["get", "apps", "--server", &https]));
    assert!(told.contains("hint: it does not speak TLS there: try http://"), "{told}");
    let told = said(&host.run(&["get", "apps", "--server", &host.ingress_address().to_string()]));
    assert!(told.contains("no app answers under this host name"), "{told}");
}

#[test]
fn an_address_that_others_reach_is_refused_without_tls_and_a_token() {
    let host = Host::sim();
    host.commit("begin");
    let open = ["--repo", host.repo().to_str().unwrap(), "--api-listen", "0.0.0.0:0", "run"].map(str::to_owned);
    let output = host.run(&open.each_ref().map(String::as_str));
    let told = said(&output);
    assert!(!output.status.success());
    assert!(
        told.contains("error: the status API would listen on 0.0.0.0:0 without TLS and a token\nhint: set"),
        "{told}"
    );
}

#[test]
fn names_of_the_api_are_answered_and_others_are_not() {
    let host = daemon_with("[api]\nhosts = [\"setpoint.example.org\"]\n");
    let status = |name: &str| host::get(host.api_address(), name, "/healthz").unwrap().status;
    assert_eq!(["setpoint.example.org", "localhost", "evil.example.org"].map(status), [200, 200, 421]);
}
