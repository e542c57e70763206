//! What declarations do to each other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::document;
use crate::name::RepoPath;

/// A file for each `(name, spec)`, where a name is `team/name` or `name`.
fn files(apps: &[(&str, &str)]) -> Vec<Parsed> {
    let file = |(index, (name, spec)): (usize, &(&str, &str))| {
        let key: AppKey = name.parse().unwrap();
        let path = RepoPath::new(format!("apps/{index}.yaml")).unwrap();
        let metadata = format!("name: {}\n  team: {}", key.name, key.team);
        let text = format!("apiVersion: setpoint/v1\nkind: App\nmetadata:\n  {metadata}\nspec: {spec}\n");
        document::parse(&path, &text, &Project::default())
    };
    apps.iter().enumerate().map(file).collect()
}

fn template(name: &str, spec: &str) -> Parsed {
    template_in("t", name, spec)
}

fn template_in(file: &str, name: &str, spec: &str) -> Parsed {
    let text = format!("apiVersion: setpoint/v1\nkind: Template\nmetadata: {{name: {name}}}\nspec: {spec}\n");
    document::parse(&RepoPath::new(format!("templates/{file}.yaml")).unwrap(), &text, &Project::default())
}

/// Everything that is wrong, in the order of the apps.
fn check(project: &Project, files: &[Parsed]) -> Vec<Diagnostic> {
    let mut set = Set::new(project);
    files.iter().for_each(|file| set.insert(file));
    let touched: BTreeSet<AppKey> = set.settle().into_iter().collect();
    set.template_mistakes().into_iter().chain(touched.iter().flat_map(|app| set.mistakes_of(app))).collect()
}

/// Each mistake as `app: message`.
fn found(files: &[Parsed]) -> Vec<String> {
    let show = |diagnostic: Diagnostic| match diagnostic.object {
        Some(app) => format!("{app}: {}", diagnostic.message),
        None => diagnostic.message,
    };
    check(&Project::default(), files).into_iter().map(show).collect()
}

#[test]
fn a_set_without_mistakes_has_none() {
    let mut files = files(&[
        ("a", "{dependsOn: [b], template: web}"),
        ("b", "{expose: {hosts: [b.example.org]}}"),
        ("red/b", "{}"),
    ]);
    files.push(template("web", "{rootfs: {path: x}}"));
    assert_eq!(found(&files), Vec::<String>::new());
}

#[test]
fn an_app_declared_twice_names_both_places() {
    let files = files(&[("a", "{}"), ("b", "{}"), ("a", "{}")]);
    assert_eq!(found(&files), ["a: app `a` is declared twice, first in apps/0.yaml:4:9"]);
    assert_eq!(check(&Project::default(), &files)[0].path.as_str(), "apps/2.yaml");
}

#[test]
fn a_template_that_is_missing_broken_or_doubled_breaks_its_apps() {
    let app = || files(&[("a", "{template: web}"), ("b", "{}")]);
    assert_eq!(found(&app()), ["a: template `web` is not declared"]);
    let mut broken = app();
    broken.push(template("web", "{}"));
    assert_eq!(found(&broken), ["a: template `web` has mistakes"]);
    let mut doubled = app();
    doubled.push(template("web", "{rootfs: {path: x}}"));
    doubled.push(template("web", "{rootfs: {path: y}}"));
    let expected =
        ["template `web` is declared twice, first in templates/t.yaml:3:18", "a: template `web` is declared twice"];
    assert_eq!(found(&doubled), expected);
}

#[test]
fn a_dependency_has_to_be_declared() {
    assert_eq!(found(&files(&[("a", "{dependsOn: [b]}")])), ["a: app `b` is not declared"]);
    assert_eq!(found(&files(&[("red/a", "{dependsOn: [b]}"), ("b", "{}")])), ["red/a: app `red/b` is not declared"]);
}

#[test]
fn a_dependency_with_mistakes_of_its_own_is_declared() {
    assert_eq!(found(&files(&[("a", "{dependsOn: [b]}"), ("b", "{x: 1}")])), Vec::<String>::new());
}

#[test]
fn an_app_cannot_depend_on_itself() {
    assert_eq!(found(&files(&[("a", "{dependsOn: [a]}")])), ["a: app `a` depends on itself"]);
}

#[test]
fn a_cycle_breaks_its_members_and_nobody_else() {
    let files =
        files(&[("a", "{dependsOn: [b]}"), ("b", "{dependsOn: [c]}"), ("c", "{dependsOn: [b, d]}"), ("d", "{}")]);
    let cycle = "these apps wait for each other: b → c → b";
    assert_eq!(found(&files), [format!("b: {cycle}"), format!("c: {cycle}")]);
    assert_eq!(check(&Project::default(), &files)[0].at.unwrap().line, 6);
}

#[test]
fn uids_and_host_names_have_one_owner() {
    let text = |name: &str| {
        let metadata = format!("{{name: {name}, uid: u}}");
        let text =
            format!("apiVersion: setpoint/v1\nkind: App\nmetadata: {metadata}\nspec: {{expose: {{hosts: [x.org]}}}}\n");
        document::parse(&RepoPath::new(format!("{name}.yaml")).unwrap(), &text, &Project::default())
    };
    let expected = [
        "a: the uid `u` is claimed by app `b` too",
        "a: the host name `x.org` is claimed by app `b` too",
        "b: the uid `u` is claimed by app `a` too",
        "b: the host name `x.org` is claimed by app `a` too",
    ];
    assert_eq!(found(&[text("a"), text("b")]), expected);
}

#[test]
fn a_pattern_that_gives_two_apps_one_name_is_noticed() {
    let toml = RepoPath::new("setpoint.toml").unwrap();
    let project = Project::parse(&toml, "[hosts]\npattern = \"{app}-{team}.{domain}\"\n").unwrap();
    assert_eq!(check(&project, &files(&[("c/a-b", "{}"), ("b-c/a", "{}")])).len(), 2);
}

#[test]
fn an_app_that_moved_is_no_longer_declared() {
    let toml = RepoPath::new("setpoint.toml").unwrap();
    let project = Project::parse(&toml, "[[moved]]\nfrom = \"a\"\nto = \"b\"\n").unwrap();
    assert_eq!(check(&project, &files(&[("b", "{}")])), vec![]);
    assert_eq!(check(&project, &files(&[("a", "{}"), ("b", "{}")])).len(), 2);
}

#[test]
fn the_order_of_files_does_not_matter() {
    let mut files = files(&[("a", "{dependsOn: [b]}"), ("b", "{dependsOn: [a]}"), ("a", "{}"), ("c", "{template: x}")]);
    let before = found(&files);
    files.reverse();
    assert_eq!(found(&files), before);
}

#[test]
fn a_hundred_thousand_apps_in_one_chain_or_circle_fit_the_stack() {
    let last = 100_000;
    let chain: Vec<Vec<usize>> =
        (0..=last).map(|node| (node < last).then_some(node + 1).into_iter().collect()).collect();
    assert_eq!(cycle::find(&chain), vec![]);
    let circle: Vec<Vec<usize>> = (0..last).map(|node| vec![(node + 1) % last]).collect();
    let cycles = cycle::find(&circle);
    assert_eq!((cycles.len(), cycles[0].members.len()), (1, last));
    let shown = cycle::show(&cycles[0].example);
    assert_eq!(shown, "0 → 1 → 2 → 3 → 4 → 5 → 6 → 7 → … 99992 more … → 0");
}

/// A model apart from the code: two nodes are in one cycle where each reaches the other.
fn in_a_cycle(dependencies: &[Vec<usize>], node: usize) -> bool {
    let (mut reached, mut next) = (vec![false; dependencies.len()], vec![node]);
    while let Some(at) = next.pop() {
        for &dependency in &dependencies[at] {
            if dependency != at && !std::mem::replace(&mut reached[dependency], true) {
                next.push(dependency);
            }
        }
    }
    reached[node]
}

/// One of a few files that have to do with each other: which app or template, and what it says.
fn some_file(slot: usize, choice: usize) -> Option<Parsed> {
    let spec = match choice {
        0 => return None,
        1 => "{}".to_owned(),
        2 => format!("{{dependsOn: [app-{}]}}", (slot + 1) % 4),
        3 => format!("{{dependsOn: [app-{}, app-{}], template: web}}", (slot + 2) % 4, (slot + 3) % 4),
        4 => "{expose: {hosts: [x.org]}}".to_owned(),
        5 => "{template: web, expose: {hosts: [x.org, y.org]}}".to_owned(),
        _ => "{broken: yes}".to_owned(),
    };
    if slot >= 6 {
        let text = if choice > 4 { "{}" } else { "{rootfs: {path: x}}" };
        return Some(template_in(&format!("t{slot}"), "web", text));
    }
    let text = format!(
        "apiVersion: setpoint/v1\nkind: App\nmetadata: {{name: app-{}, uid: u{}}}\nspec: {spec}\n",
        // The last two declare what others declare already.
        slot % 4,
        choice % 3,
    );
    let path = RepoPath::new(format!("apps/{slot}.yaml")).unwrap();
    Some(document::parse(&path, &text, &Project::default()))
}

proptest::proptest! {
    #[test]
    fn a_set_that_was_changed_finds_what_a_fresh_one_finds(
        history in proptest::collection::vec(proptest::collection::vec((0..8usize, 0..7usize), 1..4), 1..12),
    ) {
        let toml = RepoPath::new("setpoint.toml").unwrap();
        let text = "[hosts]\npattern = \"{app}-{team}.{domain}\"\n[[moved]]\nfrom = \"app-0\"\nto = \"app-1\"\n";
        let project = Project::parse(&toml, text).unwrap();
        let mut set = Set::new(&project);
        let mut files: BTreeMap<usize, Parsed> = BTreeMap::new();
        let mut known: BTreeMap<AppKey, Vec<Diagnostic>> = BTreeMap::new();
        for commit in history {
            for (slot, choice) in commit {
                if let Some(old) = files.remove(&slot) {
                    set.remove(&old);
                }
                if let Some(new) = some_file(slot, choice) {
                    set.insert(&new);
                    files.insert(slot, new);
                }
            }
            for app in set.settle() {
                let mistakes = set.mistakes_of(&app);
                known.insert(app, mistakes);
            }
            let incremental: Vec<Diagnostic> =
                set.template_mistakes().into_iter().chain(known.values().flatten().cloned()).collect();
            let all: Vec<Parsed> = files.values().cloned().collect();
            proptest::prop_assert_eq!(incremental, check(&project, &all));
        }
    }

    #[test]
    fn exactly_the_members_of_cycles_are_found(edges in proptest::collection::vec((0..8usize, 0..8usize), 0..20)) {
        let mut dependencies = vec![Vec::new(); 8];
        for (from, to) in edges {
            dependencies[from].push(to);
        }
        let mut members: Vec<usize> = cycle::find(&dependencies).into_iter().flat_map(|cycle| cycle.members).collect();
        members.sort_unstable();
        let expected: Vec<usize> = (0..8).filter(|node| in_a_cycle(&dependencies, *node)).collect();
        proptest::prop_assert_eq!(members, expected);
    }
}

#[test]
fn a_name_that_leads_nowhere_comes_with_the_one_that_may_be_meant() {
    let mut all = files(&[
        ("web", "{dependsOn: [databse, other/cahe, cache, zebra], template: minmal}"),
        ("api", "{template: tols}"),
        ("database", "{}"),
        ("other/cache", "{}"),
        ("shop/front", "{dependsOn: [database, webb]}"),
    ]);
    all.push(template("tools", "{rootfs: {path: rootfs}}"));
    let mut set = Set::new(&Project::default());
    all.iter().for_each(|file| set.insert(file));
    let touched: BTreeSet<AppKey> = set.settle().into_iter().collect();
    let mut mistakes: Vec<Diagnostic> = touched.iter().flat_map(|app| set.mistakes_of(app)).collect();
    set.advise(&mut mistakes);
    let advice: Vec<_> = mistakes.iter().map(|mistake| mistake.hint.as_deref().unwrap_or("none")).collect();
    let expected = [
        ("api", "did you mean `tools`?"),
        ("web", "did you mean `database`?"),
        ("web", "did you mean `other/cache`?"),
        ("web", "did you mean `other/cache`?"),
        ("web", "none"),
        ("web", "did you mean `minimal`?"),
        ("shop/front", "did you mean `default/database`?"),
        ("shop/front", "none"),
    ];
    let told: Vec<_> = mistakes.iter().map(|mistake| mistake.object.as_ref().unwrap().to_string()).collect();
    let told: Vec<_> = told.iter().map(String::as_str).zip(advice).collect();
    assert_eq!(told, expected);
}

fn snapshot(name: &str, spec: &str) -> Parsed {
    let text = format!("apiVersion: setpoint/v1\nkind: Snapshot\nmetadata: {{name: {name}}}\nspec: {spec}\n");
    document::parse(&RepoPath::new(format!("snapshots/{name}.yaml")).unwrap(), &text, &Project::default())
}

#[test]
fn snapshots_and_whoever_names_them_have_to_be_declared() {
    let mut files = files(&[
        ("a", "{from: {snapshot: nightly}}"),
        ("b", "{restore: {snapshot: nightly, token: x}, from: {app: z}}"),
        ("c", "{from: {app: c}}"),
    ]);
    let missing = "snapshot `nightly` is not declared";
    let others =
        [format!("b: {missing}"), "b: app `z` is not declared".to_owned(), "c: app `c` begins as itself".into()];
    assert_eq!(found(&files), [[format!("a: {missing}")].to_vec(), others.to_vec()].concat());
    files.push(snapshot("nightly", "{of: b}"));
    assert_eq!(found(&files), ["b: app `z` is not declared", "c: app `c` begins as itself"]);
    files.push(snapshot("orphan", "{of: z}"));
    let mut set = Set::new(&Project::default());
    files.iter().for_each(|file| set.insert(file));
    set.settle();
    assert_eq!(set.snapshot_mistakes()[0].message, "app `z` is not declared");
    assert_eq!(set.snapshots().map(|one| one.key().to_string()).collect::<Vec<_>>(), ["nightly"]);
    assert_eq!(set.broken_snapshots().map(|(key, _)| key.to_string()).collect::<Vec<_>>(), ["orphan"]);
}

#[test]
fn what_an_app_begins_as_is_waited_for_so_it_may_not_be_a_circle() {
    let mut files = files(&[("a", "{from: {snapshot: s}}"), ("b", "{dependsOn: [a]}")]);
    files.push(snapshot("s", "{of: b}"));
    assert_eq!(found(&files).len(), 2, "{:?}", found(&files));
    assert!(found(&files)[0].ends_with("these apps wait for each other: a → b → a"), "{:?}", found(&files));
}

#[test]
fn a_snapshot_that_becomes_of_another_app_opens_and_closes_circles() {
    let apps = files(&[("a", "{from: {snapshot: s}}"), ("b", "{dependsOn: [a]}"), ("c", "{}")]);
    let (of_b, of_c) = (snapshot("s", "{of: b}"), snapshot("s", "{of: c}"));
    let mut set = Set::new(&Project::default());
    apps.iter().chain([&of_c]).for_each(|file| set.insert(file));
    set.settle();
    let mistakes = |set: &Set| set.mistakes_of(&"b".parse().unwrap()).len();
    assert_eq!(mistakes(&set), 0);
    set.remove(&of_c);
    set.insert(&of_b);
    assert!(set.settle().contains(&"b".parse().unwrap()));
    assert_eq!(mistakes(&set), 1);
    set.remove(&of_b);
    set.insert(&of_c);
    set.settle();
    assert_eq!(mistakes(&set), 0);
}

#[test]
fn an_app_may_go_back_to_a_snapshot_of_its_own_and_not_begin_as_one() {
    let mut own = files(&[("a", "{restore: {snapshot: s, token: x}}")]);
    own.push(snapshot("s", "{of: a}"));
    assert_eq!(found(&own), Vec::<String>::new());
    let mut begun = files(&[("a", "{from: {snapshot: s}}")]);
    begun.push(snapshot("s", "{of: a}"));
    assert_eq!(found(&begun), ["a: app begins as `s`, a snapshot of itself"]);
}

#[test]
fn a_snapshot_that_is_meant_is_named() {
    let mut files = files(&[("blog", "{}"), ("copy", "{from: {snapshot: nighly}}"), ("fork", "{from: {app: blogg}}")]);
    files.push(snapshot("nightly", "{of: bolg}"));
    let mut set = Set::new(&Project::default());
    files.iter().for_each(|file| set.insert(file));
    set.settle();
    let mut mistakes: Vec<_> =
        ["copy", "fork"].into_iter().flat_map(|app| set.mistakes_of(&app.parse().unwrap())).collect();
    mistakes.extend(set.snapshot_mistakes());
    set.advise(&mut mistakes);
    let hints: Vec<_> = mistakes.iter().filter_map(|mistake| mistake.hint.as_deref()).collect();
    assert_eq!(hints, ["did you mean `nightly`?", "did you mean `blog`?", "did you mean `blog`?"]);
}
