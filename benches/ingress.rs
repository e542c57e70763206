//! The ingress beside nginx: `cargo bench --bench ingress`.
//!
//! Both are proxies to the same upstream, a real nginx with two files, and take turns under the same load: wrk from Debian, one
//! thread, some kept connections. nginx proxies as it is configured by default, with a connection to the upstream for each
//! request, as the ingress opens a stream for each. The upstream alone is the floor of both. Then the same load on an app in a real
//! microVM, where the guest is what answers.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends there")]

#[path = "../tests/support/client.rs"]
#[expect(dead_code, reason = "the ingress's tests use the rest")]
mod client;
#[path = "support/figures.rs"]
mod figures;
#[path = "../tests/support/host.rs"]
mod host;
#[path = "ingress/rivals.rs"]
mod rivals;
#[path = "../tests/support/upstream.rs"]
#[expect(dead_code, reason = "the ingress's tests use the rest")]
mod upstream;

use figures::Table;
use host::Host;
use rivals::{Load, Nginx, OurIngress, wrk};

const SIZES: [(&str, usize); 2] = [("1kB", 1 << 10), ("1MB", 1 << 20)];
const CONNECTIONS: usize = 16;
/// A guest under emulation is busy with fewer.
const GUEST_CONNECTIONS: usize = 4;

fn main() {
    proxies();
    through_a_guest();
}

fn proxies() {
    let nginx = Nginx::start(&SIZES);
    let ours = OurIngress::start(nginx.upstream);
    let title = format!("Proxies to one upstream, {CONNECTIONS} kept connections, 5 s each");
    let columns = ["body", "", "requests a second", "p50", "p99", "of nginx as a proxy"];
    let mut table = Table::new("ingress-proxies", title, &columns);
    for (name, _) in SIZES {
        let direct = wrk(nginx.upstream, name, CONNECTIONS);
        let theirs = wrk(nginx.proxy, name, CONNECTIONS);
        let own = wrk(ours.port, name, CONNECTIONS);
        for (what, load) in [("upstream alone", &direct), ("nginx", &theirs), ("setpoint", &own)] {
            row(&mut table, name, what, load, &theirs);
        }
    }
    table.print();
}

fn row(table: &mut Table, body: &str, what: &str, load: &Load, beside: &Load) {
    let rate = format_args!("{:.0}", load.rate).to_string();
    let share = format_args!("{:.2}", load.rate / beside.rate).to_string();
    table.row(&[&body, &what, &rate, &load.p50, &load.p99, &share]);
}

fn through_a_guest() {
    let mut host = Host::real();
    host.write_app("blog", "", "page");
    for (name, size) in SIZES {
        host.write(&format!("apps/blog/{name}"), &"x".repeat(size));
    }
    host.commit("blog");
    host.start();
    host.wait_served("blog", "page");
    let title = format!("An app in a microVM (software emulation), {GUEST_CONNECTIONS} kept connections, 5 s each");
    let mut table = Table::new("ingress-guest", title, &["body", "requests a second", "p50", "p99"]);
    for (name, _) in SIZES {
        let load = wrk(host.ingress_address().port(), name, GUEST_CONNECTIONS);
        table.row(&[&name, &format_args!("{:.1}", load.rate), &load.p50, &load.p99]);
    }
    table.print();
}
