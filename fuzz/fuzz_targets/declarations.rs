//! Declarations from an untrusted repository: `setpoint.toml`, then `app.yaml` and `templates/*.yaml` read with it.
//!
//! The input is the settings, a byte of zero, and the declarations.

#![no_main]

mod text;

use libfuzzer_sys::fuzz_target;
use setpoint_schema::document;
use setpoint_schema::name::RepoPath;
use setpoint_schema::project::Project;
use setpoint_schema::set::Set;

fuzz_target!(|input: &str| {
    let (settings, declarations) = input.split_once('\0').unwrap_or(("", input));
    let project = match Project::parse(&path("setpoint.toml"), settings) {
        Ok(project) => project,
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "settings that cannot be used have a reason");
            text::assert_sound(&mistakes, settings);
            Project::default()
        }
    };
    let file = document::parse(&path("apps/a/app.yaml"), declarations, &project);
    text::assert_sound(&file.diagnostics, declarations);
    let nothing = file.apps.is_empty() && file.templates.is_empty() && file.broken_templates.is_empty();
    assert!(!nothing || !file.diagnostics.is_empty(), "a file that declares nothing says so");
    let mut set = Set::new(&project);
    set.insert(&file);
    set.settle();
    let of_apps = set.declared().flat_map(|app| set.mistakes_of(app));
    text::assert_sound(&of_apps.chain(set.template_mistakes()).collect::<Vec<_>>(), declarations);
    set.remove(&file);
    set.settle();
    assert!(set.is_empty() && set.template_mistakes().is_empty(), "what is taken out leaves nothing");
    assert!(file == document::parse(&path("apps/a/app.yaml"), declarations, &project), "reading is a function");
});

fn path(text: &str) -> RepoPath {
    RepoPath::new(text).expect("a plain path")
}
