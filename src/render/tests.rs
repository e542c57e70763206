//! What templates may do, and what they are kept from.

use serde_json::json;

use super::*;

fn render(text: &str) -> Result<Arc<str>, Box<Diagnostic>> {
    let path = RepoPath::new("apps/a/app.yaml").expect("a path");
    let vars = json!({ "domain": "example.org", "ports": [1, 2] });
    let rendered = Renderer::in_process().render(vec![(path, text.into())], &vars).remove(0);
    rendered.map_err(|error| match error {
        RenderError::Mistake(diagnostic) => diagnostic,
        RenderError::Unavailable(reason) => panic!("not rendered: {reason}"),
    })
}

fn mistake(text: &str) -> Box<Diagnostic> {
    render(text).expect_err("a mistake")
}

#[test]
fn text_without_templates_is_returned_untouched() {
    assert_eq!(&*render("a: {b: c}\n# %} }}\n").expect("text"), "a: {b: c}\n# %} }}\n");
}

#[test]
fn variables_and_loops_render_and_the_last_newline_stays() {
    let text = "h: {{ vars.domain }}\np: [{% for p in vars.ports %}{{ p }},{% endfor %}]\n";
    assert_eq!(&*render(text).expect("text"), "h: example.org\np: [1,2,]\n");
}

#[test]
fn values_are_not_escaped_as_html() {
    assert_eq!(&*render("a: {{ '<&\"' }}").expect("text"), "a: <&\"");
}

#[test]
fn an_undefined_variable_is_located_where_it_stands() {
    let found = mistake("kind: App\nhost: é{{ vars.domian }}\n");
    let at = found.at.expect("a place");
    assert_eq!((at.line, at.column, at.length), (2, 11, 11));
    assert_eq!(found.message, "`vars.domian` is not defined");
    assert!(found.hint.expect("a hint").contains("setpoint.toml"));
}

#[test]
fn a_syntax_error_is_located() {
    let found = mistake("a: 1\nb: {% if %}\n");
    assert_eq!(found.at.expect("a place").line, 2);
}

#[test]
fn an_endless_loop_runs_out_of_fuel() {
    let found = mistake("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
    assert_eq!(found.message, "takes too many steps to render");
}

#[test]
fn output_beyond_the_cap_is_refused() {
    let found = mistake("{% for a in range(9000) %}{{ 'x' * 1000 }}{% endfor %}");
    assert_eq!(found.message, "renders to more than 1048576 bytes");
}

#[test]
fn filters_that_allocate_by_width_do_not_exist() {
    assert!(mistake("{{ '%1000000000d' | format(1) }}").message.contains("unknown filter"));
    assert!(mistake("{{ 'a' | indent(1000000000) }}").message.contains("unknown filter"));
}

#[test]
fn other_files_cannot_be_included() {
    mistake("{% include '/etc/passwd' %}");
}

#[test]
fn a_child_that_cannot_be_started_is_not_the_files_mistake() {
    let path = RepoPath::new("apps/a/app.yaml").expect("a path");
    let renderer = Renderer::new(vec!["/nonexistent/setpoint".into()]);
    let rendered = renderer.render(vec![(path, "{{ 1 }}".into())], &json!({})).remove(0);
    assert!(matches!(rendered, Err(RenderError::Unavailable(_))), "{rendered:?}");
}
