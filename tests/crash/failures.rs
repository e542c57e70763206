//! The loop when things go wrong: steps that fail, microVMs that die, guests that hang, and too little room.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use setpoint_schema::id::SandboxId;
use setpoint_schema::observed::ExitReason;
use setpoint_vmm::sim::world::Vm;

use crate::declare::{App, ROOMY};
use crate::host::Host;

#[test]
fn a_step_that_fails_backs_off_while_other_apps_go_on() {
    let mut host = scripted(
        "[[fault]]\napp = \"bad\"\noperation = \"launch\"\nnth = 1\n[[fault]]\napp = \"bad\"\noperation = \"launch\"\nnth = 2\n",
    );
    declare(&host, &[App::new("bad"), App::new("good")]);
    host.start();
    wait_ready(&host, "good");
    wait_ready(&host, "bad");
    let failures = times_of(&host, "bad", "failed");
    let [first, second] = failures[..] else { panic!("{:?}", host.events_of("bad")) };
    let [created] = times_of(&host, "bad", "created")[..] else { panic!("{:?}", host.events_of("bad")) };
    let [good] = times_of(&host, "good", "created")[..] else { panic!("{:?}", host.events_of("good")) };
    assert!(good < created, "the other app does not wait for the failing one");
    assert!(second.duration_since(first) >= SignedDuration::from_millis(750), "the first wait is about a second");
    assert!(created.duration_since(second) >= SignedDuration::from_millis(1500), "the second wait is about two");
    host.wait_converged();
}

#[test]
fn a_step_whose_answer_is_lost_is_not_done_twice() {
    let mut host = scripted("[[fault]]\noperation = \"launch\"\nnth = 1\neffect = \"lost\"\n");
    declare(&host, &[App::new("app")]);
    host.start();
    wait_ready(&host, "app");
    assert_eq!(vm_of(&host, "app").launches, 1);
    assert_eq!(host.world().violations().unwrap(), Vec::<String>::new());
}

#[test]
fn a_microvm_that_died_is_brought_back_and_an_event_says_why() {
    let mut host = scripted("");
    declare(&host, &[App::new("app")]);
    host.start();
    wait_ready(&host, "app");
    let boot = host.boot_of("app");
    let panic = ExitReason::Panic("Kernel panic - not syncing: a test".to_owned());
    host.world().kill(&sandbox_of(&host, "app"), panic).unwrap();
    host.wait_healed("app", &boot);
    host.wait_event("app", "brought back: the guest kernel panicked: Kernel panic - not syncing: a test");
}

#[test]
fn a_guest_that_fell_silent_is_booted_again() {
    let mut host = scripted("");
    declare(&host, &[App { extra: "  timeouts: {unresponsive: 1s}\n", ..App::new("app") }]);
    host.start();
    wait_ready(&host, "app");
    let boot = host.boot_of("app");
    host.world().silence(&sandbox_of(&host, "app")).unwrap();
    host.wait_healed("app", &boot);
    host.wait_event("app", "brought back: agent silent since");
}

#[test]
fn a_microvm_that_dies_again_and_again_is_given_up_until_its_declaration_changes() {
    let mut host = scripted("[[fate]]\napp = \"flappy\"\ndies_after = \"800ms\"\n");
    declare(&host, &[App::new("flappy"), App::new("steady")]);
    host.start();
    wait_blocked(&host, "flappy", "given up: healed 6 times within 5m");
    let boots = vm_of(&host, "flappy").launches;
    assert_eq!(boots, 7, "the first boot and six heals");
    assert_eq!(host.app("steady")["ready"], true);
    host.world().set_script("").unwrap();
    declare(&host, &[App { setting: "fixed".into(), ..App::new("flappy") }]);
    wait_ready(&host, "flappy");
}

#[test]
fn what_is_carried_out_again_and_again_waits_and_says_what_is_lacking() {
    let mut host = scripted("[[fate]]\napp = \"odd\"\nforgetful = true\n");
    declare(&host, &[App::new("odd"), App::new("steady")]);
    host.start();
    wait_blocked(&host, "odd", "still not as declared: the workspace is not the declared content; tried again at");
    let blocked = host.app("odd")["blocked"][0].clone();
    assert!(blocked["message"].as_str().unwrap().starts_with("applied 5 times in "), "{blocked}");
    assert_eq!(blocked["reason"], "Repeating");
    assert!(blocked["until"].is_string(), "{blocked}");
    assert_eq!(host.app("steady")["ready"], true);
    assert_eq!(vm_of(&host, "odd").launches, 1);
    host.world().set_script("").unwrap();
    declare(&host, &[App { setting: "fixed".into(), ..App::new("odd") }]);
    wait_ready(&host, "odd");
}

#[test]
fn a_newer_commit_rescues_a_boot_that_is_stuck() {
    let mut host = scripted("[[fate]]\napp = \"stuck\"\nboot = 1\nsilent_after = \"0ms\"\n");
    declare(&host, &[App::new("stuck")]);
    host.start();
    host.wait_for("the first boot", |host| host.world().running().unwrap().pop());
    let began = Instant::now();
    declare(&host, &[App { memory: "192Mi".into(), ..App::new("stuck") }]);
    wait_ready(&host, "stuck");
    assert!(began.elapsed() < Duration::from_secs(60), "the boot's timeout of 180s was waited out");
    assert_eq!(vm_of(&host, "stuck").launches, 2);
    assert_eq!(times_of(&host, "stuck", "failed"), [], "being overtaken is no failure");
}

#[test]
fn a_dependent_starts_as_soon_as_what_it_depends_on_is_ready() {
    let mut host = scripted("[[fate]]\napp = \"base\"\nunhealthy = \"503\"\nunhealthy_for = \"1500ms\"\n");
    declare(&host, &[App::new("base"), App { depends_on: vec!["base".into()], ..App::new("top") }]);
    host.start();
    wait_blocked(&host, "top", "waits for base: ");
    wait_ready(&host, "top");
    let healthy = vm_of(&host, "base").processes.unwrap().healthy_from.unwrap();
    let waited = vm_of(&host, "top").booted_at.duration_since(healthy);
    // A timer would come up to two seconds later.
    assert!(waited > SignedDuration::ZERO && waited < SignedDuration::from_millis(1000), "{waited}");
}

#[test]
fn a_removal_waits_until_everything_else_is_healthy() {
    let mut host = scripted("[[fate]]\napp = \"sick\"\nboot = 2\nunhealthy = \"503\"\n");
    declare(&host, &[App::new("sick"), App::new("old")]);
    host.start();
    host.wait_converged();
    App { memory: "192Mi".into(), ..App::new("sick") }.write(&host);
    host.remove("apps/old");
    host.commit("break one, remove the other");
    wait_blocked(&host, "old", "removals wait for sick: not ready: web unhealthy: 503");
    assert_eq!(host.world().running().unwrap().len(), 2);
    declare(&host, &[App { memory: "256Mi".into(), ..App::new("sick") }]);
    host.wait_for("the removal", |host| host.app("old").is_null().then_some(()));
    host.wait_converged();
    assert_eq!(host.world().vms().unwrap().len(), 1);
}

#[test]
fn what_does_not_fit_waits_with_the_sum_shown_and_takes_the_room_that_is_freed() {
    let mut host = scripted("");
    host.configure("[limits]\nmemory = \"4Gi\"\nvcpus = 16\ndisk = \"64Gi\"\n");
    declare(&host, &[App { memory: "3796Mi".into(), ..App::new("big") }]);
    host.start();
    wait_ready(&host, "big");
    let boot = host.boot_of("big");
    declare(&host, &[App { memory: "512Mi".into(), ..App::new("late") }]);
    wait_blocked(&host, "late", "needs 512Mi, 300Mi of 4Gi free");
    assert_eq!(host.boot_of("big"), boot, "what runs is never evicted");
    assert_eq!(host.world().disks().unwrap().len(), 1, "nothing is half started");
    host.remove("apps/big");
    host.commit("remove big");
    wait_ready(&host, "late");
    host.wait_converged();
    assert_eq!(host.world().vms().unwrap().len(), 1);
}

#[cfg(feature = "failpoints")]
#[test]
fn room_that_an_action_has_been_given_is_not_given_again_before_its_row_is_written() {
    let mut host = scripted("");
    host.configure("[limits]\nmemory = \"300Mi\"\nvcpus = 16\ndisk = \"64Gi\"\n");
    declare(&host, &[App { memory: "192Mi".into(), ..App::new("second") }]);
    host.start_with(&[("FAILPOINTS", "record/before=sleep(2000)")]);
    host.wait_for("the action to begin", |host| (host.app("second")["phase"] == "reconciling").then_some(()));
    // By its name this one comes first, and would get the room.
    declare(&host, &[App { memory: "192Mi".into(), ..App::new("first") }]);
    wait_blocked(&host, "first", "needs 192Mi, 108Mi of 300Mi free");
    wait_ready(&host, "second");
    assert_eq!(host.world().vms().unwrap().len(), 1);
}

#[test]
fn a_sandbox_that_the_driver_cannot_tell_about_keeps_its_place_and_its_disk() {
    let mut host = scripted("");
    host.configure("[limits]\nmemory = \"300Mi\"\nvcpus = 16\ndisk = \"64Gi\"\n");
    declare(&host, &[App::new("mute")]);
    host.start();
    host.wait_converged();
    let boot = host.boot_of("mute");
    host.kill_daemon();
    host.world().set_script("[[fault]]\napp = \"mute\"\noperation = \"observe\"\n").unwrap();
    declare(&host, &[App { memory: "192Mi".into(), ..App::new("next") }]);
    host.start();
    wait_blocked(&host, "next", "needs 192Mi, 172Mi of 300Mi free");
    assert_eq!(host.world().disks().unwrap().len(), 1);
    assert_eq!(host.app("mute")["ready"], false, "what nobody has seen is not ready");
    host.world().set_script("").unwrap();
    wait_ready(&host, "mute");
    assert_eq!(host.boot_of("mute"), boot);
}

fn scripted(script: &str) -> Host {
    let host = Host::sim();
    host.configure(ROOMY);
    host.world().set_script(script).unwrap();
    host
}

fn declare(host: &Host, apps: &[App]) {
    apps.iter().for_each(|app| app.write(host));
    host.commit("declare");
}

fn wait_ready(host: &Host, app: &str) {
    let ready = |host: &Host| {
        let state = host.app(app);
        let current = state["generation"].is_u64() && state["generation"] == state["observedGeneration"];
        (current && state["ready"] == true && state["phase"] == "ready" && is_newest(host, &state)).then_some(())
    };
    host.wait_for(&format!("{app} to be ready"), ready);
}

/// Whether what is said of an app is said of the newest commit.
fn is_newest(host: &Host, app: &Value) -> bool {
    let head = host.git(&["rev-parse", "HEAD"]);
    let status = host.api("/v1/status");
    status["source"]["lastAttempted"] == head.as_str() && !app.is_null()
}

fn wait_blocked(host: &Host, app: &str, words: &str) {
    host.wait_for(&format!("{app} to be blocked by {words:?}"), |host| {
        let blocked = host.app(app)["blocked"].clone();
        let blocks = blocked.as_array()?.iter().filter_map(|block| block["message"].as_str());
        blocks.into_iter().any(|block| block.contains(words)).then_some(())
    });
}

/// When events of this kind of an app were recorded, oldest first.
fn times_of(host: &Host, app: &str, kind: &str) -> Vec<Timestamp> {
    let events = host.api("/v1/events?limit=1000");
    let of_app =
        events["items"].as_array().unwrap().iter().filter(|event| event["app"] == app && event["kind"] == kind);
    of_app.map(|event| event["at"].as_str().unwrap().parse().unwrap()).collect()
}

fn sandbox_of(host: &Host, app: &str) -> SandboxId {
    SandboxId(host.sandbox_of(app)["id"].as_str().unwrap().into())
}

fn vm_of(host: &Host, app: &str) -> Vm {
    host.world().vm(&sandbox_of(host, app)).unwrap().unwrap()
}
