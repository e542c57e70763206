//! Which host name leads where: built from the desired apps on every pass, pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use setpoint_schema::app::DesiredApp;
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::{AppKey, HostName};
use setpoint_schema::power::WakeSpec;
use setpoint_schema::project::HostPattern;
use setpoint_schema::shared::SharedMap;

/// Host names and where each leads. The names change with declarations, the guests behind them all the time, so a copy with other
/// guests shares the names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    names: Arc<Names>,
    upstreams: SharedMap<AppKey, Arc<Upstream>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Names {
    /// Whose each host name is, and the port on the guest's localhost.
    hosts: BTreeMap<String, (AppKey, u16)>,
    /// Who wakes each app, where that is said.
    wakes: BTreeMap<AppKey, WakeSpec>,
    unrouted: Vec<Unrouted>,
}

/// Where one host name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Whose it is.
    pub app: AppKey,
    /// The port on the guest's localhost.
    pub port: u16,
    /// The guest.
    pub upstream: Upstream,
    /// Who wakes the app when it rests.
    pub wake: WakeSpec,
}

/// The guest of an app, or why there is none to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// It serves.
    Ready(SandboxId),
    /// It does not: the reason, for whoever opens the address.
    NotReady(String),
    /// The app rests, and may be woken.
    Asleep,
}

/// A host name that an app asked for and did not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unrouted {
    /// Which app.
    pub app: AppKey,
    /// The name.
    pub host: String,
    /// Why not, in a sentence.
    pub reason: String,
}

impl Routes {
    /// The route of a host name in lower case, without port.
    #[must_use]
    pub fn get(&self, host: &str) -> Option<Route> {
        let (app, port) = self.names.hosts.get(host)?;
        let upstream = Upstream::clone(self.upstreams.get(app)?);
        let wake = self.names.wakes.get(app).cloned().unwrap_or_default();
        Some(Route { app: app.clone(), port: *port, upstream, wake })
    }

    /// Host names that apps asked for and did not get.
    #[must_use]
    pub fn unrouted(&self) -> &[Unrouted] {
        &self.names.unrouted
    }

    /// The same names, and other guests behind those of some apps.
    #[must_use]
    pub fn with(&self, upstreams: impl IntoIterator<Item = (AppKey, Upstream)>) -> Self {
        let mut routes = self.clone();
        for (app, upstream) in upstreams {
            if routes.upstreams.get(&app).is_some_and(|known| **known != upstream) {
                routes.upstreams.insert(app, Arc::new(upstream));
            }
        }
        routes
    }
}

impl Names {
    fn add(&mut self, host: String, app: &AppKey, port: u16) {
        let reason = match (HostName::new(host.as_str()), self.hosts.get(&host)) {
            (Ok(_), None) => {
                self.hosts.insert(host, (app.clone(), port));
                return;
            }
            (Ok(_), Some((other, _))) => format!("the host name {host} belongs to {other} already"),
            (Err(error), _) => format!("the host name {host} {error}"),
        };
        self.unrouted.push(Unrouted { app: app.clone(), host, reason });
    }
}

/// The routes of `apps`: the names that follow from the naming before those that apps declare, so that no declaration takes
/// another app's own name; among equals the first app wins.
pub fn routes<'a>(apps: impl IntoIterator<Item = (&'a DesiredApp, Upstream)>, naming: &Naming) -> Routes {
    let mut apps: Vec<_> = apps.into_iter().collect();
    apps.sort_by(|(a, _), (b, _)| a.metadata.key.cmp(&b.metadata.key));
    let said = |app: &DesiredApp| (app.metadata.key.clone(), app.spec.app.wake.0.clone());
    let wakes = apps.iter().map(|(app, _)| said(app)).filter(|(_, wake)| *wake != WakeSpec::default()).collect();
    let mut names = Names { wakes, ..Names::default() };
    for hosts_of in [Naming::own_hosts, declared_hosts] {
        for (app, _) in &apps {
            for (host, port) in hosts_of(naming, app) {
                names.add(host, &app.metadata.key, port);
            }
        }
    }
    let upstreams = apps.into_iter().map(|(app, upstream)| (app.metadata.key.clone(), Arc::new(upstream)));
    Routes { names: Arc::new(names), upstreams: upstreams.collect() }
}

/// Whether two declarations of one app ask for the same host names, and are woken alike.
#[must_use]
pub fn same_hosts(a: &DesiredApp, b: &DesiredApp) -> bool {
    let (one, other) = (&a.spec.app, &b.spec.app);
    web_port(a) == web_port(b) && one.expose == other.expose && one.wake == other.wake
}

/// How host names are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    /// What all of them end in, as `localhost`.
    pub domain: HostName,
    /// The form of an app's name within it.
    pub pattern: HostPattern,
}

impl Naming {
    /// Every address of an app as a browser takes it, its web port's first, for an ingress that listens on `port`.
    #[must_use]
    pub fn urls(&self, app: &DesiredApp, port: u16) -> Vec<String> {
        let hosts = self.own_hosts(app).into_iter().chain(declared_hosts(self, app));
        let suffix = if port == 80 { String::new() } else { format!(":{port}") };
        hosts.map(|(host, _)| format!("http://{host}{suffix}/")).collect()
    }

    /// The names that an app has without asking: of its web port, and of each further port that it exposes.
    fn own_hosts(&self, app: &DesiredApp) -> Vec<(String, u16)> {
        let (key, domain) = (&app.metadata.key, self.domain.as_str());
        let web = web_port(app).map(|port| (self.pattern.host(key, domain), port));
        let ports = app.spec.app.expose.ports.iter().map(|port| (self.pattern.port_host(key, *port, domain), *port));
        web.into_iter().chain(ports).collect()
    }
}

fn declared_hosts(_: &Naming, app: &DesiredApp) -> Vec<(String, u16)> {
    let port = web_port(app);
    let hosts = app.spec.app.expose.hosts.iter();
    hosts.filter_map(|host| Some((host.to_string(), port?))).collect()
}

fn web_port(app: &DesiredApp) -> Option<u16> {
    app.spec.runtime().web.as_ref().map(|web| web.port)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use setpoint_schema::app::{AppMetadata, AppSpec, Expose, SandboxSpec};
    use setpoint_schema::id::{TemplateDigest, TreeDigest};
    use setpoint_schema::name::RepoPath;
    use setpoint_schema::runtime::{Runtime, Web};

    use super::*;

    fn app(key: &str, web: Option<u16>, ports: &[u16], hosts: &[&str]) -> DesiredApp {
        let web = web.map(|port| Web { port, ..Web::default() });
        let expose = Expose {
            ports: ports.iter().copied().collect(),
            hosts: hosts.iter().map(|host| HostName::new(*host).unwrap()).collect(),
        };
        let runtime = Some(Runtime { web, ..Runtime::default() }.into());
        DesiredApp {
            metadata: AppMetadata { key: key.parse().unwrap(), uid: None, labels: [].into(), annotations: [].into() },
            spec: SandboxSpec {
                app: AppSpec { runtime, expose, ..AppSpec::default() },
                template: TemplateDigest("".into()),
                files: TreeDigest("".into()),
            }
            .into(),
            path: RepoPath::new("app.yaml").unwrap(),
        }
    }

    fn naming(pattern: &str) -> Naming {
        Naming { domain: HostName::new("localhost").unwrap(), pattern: pattern.parse().unwrap() }
    }

    fn table(apps: &[DesiredApp], naming: &Naming) -> (Vec<String>, Vec<String>) {
        let down = || Upstream::NotReady(String::new());
        let routes = routes(apps.iter().map(|app| (app, down())), naming);
        let hosts = routes.names.hosts.iter().map(|(host, (app, port))| format!("{host} {app} {port}")).collect();
        (hosts, routes.unrouted().iter().map(|unrouted| format!("{} {}", unrouted.app, unrouted.reason)).collect())
    }

    #[test]
    fn an_app_has_a_name_for_its_web_port_each_exposed_port_and_each_declared_host() {
        let blog = app("blog", Some(3000), &[9000, 9001], &["blog.example.org"]);
        let (hosts, unrouted) = table(&[blog], &naming("{app}.{domain}"));
        let expected = [
            "9000-blog.localhost blog 9000",
            "9001-blog.localhost blog 9001",
            "blog.example.org blog 3000",
            "blog.localhost blog 3000",
        ];
        assert_eq!((hosts, unrouted), (expected.map(str::to_owned).to_vec(), vec![]));
    }

    #[test]
    fn a_worker_only_app_has_no_web_name_yet_its_ports_do() {
        let (hosts, _) = table(&[app("ticker", None, &[9000], &["ticker.example.org"])], &naming("{app}.{domain}"));
        assert_eq!(hosts, ["9000-ticker.localhost ticker 9000"]);
    }

    #[test]
    fn other_teams_stand_behind_the_app_unless_the_pattern_places_them() {
        let apps = [app("blog", Some(1), &[], &[]), app("ops/blog", Some(2), &[7], &[])];
        let (hosts, _) = table(&apps, &naming("{app}.{domain}"));
        assert_eq!(
            hosts,
            ["7-blog.ops.localhost ops/blog 7", "blog.localhost blog 1", "blog.ops.localhost ops/blog 2"]
        );
        let (hosts, _) = table(&apps, &naming("{team}-{app}.x.{domain}"));
        assert_eq!(
            hosts,
            ["default-blog.x.localhost blog 1", "ops-7-blog.x.localhost ops/blog 7", "ops-blog.x.localhost ops/blog 2"]
        );
    }

    #[test]
    fn a_declared_host_never_takes_another_apps_own_name() {
        let thief = app("a-thief", Some(1), &[], &["blog.localhost"]);
        let (hosts, unrouted) = table(&[thief, app("blog", Some(2), &[], &[])], &naming("{app}.{domain}"));
        assert_eq!(hosts, ["a-thief.localhost a-thief 1", "blog.localhost blog 2"]);
        assert_eq!(unrouted, ["a-thief the host name blog.localhost belongs to blog already"]);
    }

    #[test]
    fn a_name_that_is_too_long_is_reported() {
        let long = "a".repeat(40);
        let (hosts, unrouted) =
            table(&[app(&long, Some(1), &[], &[])], &naming(&format!("{}-{{app}}.{{domain}}", "b".repeat(30))));
        assert!(hosts.is_empty());
        assert_eq!(unrouted.len(), 1);
    }

    #[test]
    fn other_guests_stand_behind_the_same_names() {
        let apps = [app("blog", Some(1), &[], &[]), app("shop", Some(2), &[], &[])];
        let down = || Upstream::NotReady("down".to_owned());
        let before = routes(apps.iter().map(|app| (app, down())), &naming("{app}.{domain}"));
        let up = Upstream::Ready(SandboxId("blog-1".into()));
        let unknown: AppKey = "gone".parse().unwrap();
        let after = before.with([(apps[0].metadata.key.clone(), up.clone()), (unknown, up.clone())]);
        assert_eq!(after.get("blog.localhost").unwrap().upstream, up);
        assert_eq!(after.get("shop.localhost").unwrap().upstream, down());
        assert_eq!(before.get("blog.localhost").unwrap().upstream, down(), "whoever has the old routes keeps them");
        assert!(after.get("gone.localhost").is_none());
    }

    #[test]
    fn addresses_are_as_a_browser_takes_them() {
        let blog = app("blog", Some(3000), &[9000], &["blog.example.org"]);
        let naming = naming("{app}.{domain}");
        let expected =
            ["http://blog.localhost:8080/", "http://9000-blog.localhost:8080/", "http://blog.example.org:8080/"];
        assert_eq!(naming.urls(&blog, 8080), expected);
        assert_eq!(naming.urls(&blog, 80)[0], "http://blog.localhost/");
    }
}
