//! The API's description, OpenAPI 3.1: made from the table of routes and from the types that are answered with.
//!
//! It is served as `/v1/openapi.json` and checked in as `docs/openapi.json`; a test keeps the two the same, and others hold
//! every answer against it.

use std::sync::LazyLock;

use axum::body::Bytes;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use setpoint_schema::wire;

use super::fields::MAX_FIELDS;
use super::params::{DEFAULT_LIMIT, DEFAULT_TAIL, MAX_LIMIT, MAX_TAIL, MAX_TEXT, Occurs, Parameter};
use super::routes::{Answer, ROUTES, Route};

/// The shape of a document.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// That of a type.
    Type(fn(&mut SchemaGenerator) -> Schema),
    /// An object whose fields are described elsewhere.
    Anything(&'static str),
}

impl Shape {
    /// The shape of a type's JSON form.
    pub(super) const fn of<T: JsonSchema>() -> Self {
        Self::Type(|generator| generator.subschema_for::<T>())
    }

    fn schema(self, generator: &mut SchemaGenerator) -> Value {
        match self {
            Self::Type(schema) => schema(generator).to_value(),
            Self::Anything(what) => json!({ "type": "object", "description": what }),
        }
    }
}

/// The whole description.
#[must_use]
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(make);
    &DOCUMENT
}

/// The description as it is served.
pub(super) fn bytes() -> Bytes {
    static BYTES: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    BYTES.clone()
}

/// The shapes of all types, by name.
pub(super) fn schemas() -> &'static Value {
    &document()["components"]["schemas"]
}

fn make() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut generator =
        settings.with(|settings| settings.definitions_path = "/components/schemas".into()).into_generator();
    let paths: Map<String, Value> =
        ROUTES.iter().map(|route| (route.path.to_owned(), path_item(route, &mut generator))).collect();
    generator.subschema_for::<wire::Problem>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Setpoint status API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": refusals(),
            "headers": {
                "ETag": {
                    "description": "Names this state of the document; give it as `If-None-Match` to be told when it is another.",
                    "schema": { "type": "string" },
                },
            },
        },
    })
}

const DESCRIPTION: &str = "What a Setpoint daemon knows, for reading only: GET and HEAD on every path, 405 for the rest. \
Documents carry strong entity tags; with `If-None-Match` an answer without news is a 304, and with `wait` it is held until \
there is news or the time is over. Every refusal is a problem document after RFC 9457. Readers must tolerate fields that they \
do not know.";

/// Why a request can be refused, on any route.
const REFUSALS: [(&str, &str, &str); 7] = [
    (
        "400",
        "BadRequest",
        "The request cannot be understood: `parameter` names the query parameter at fault, if one is.",
    ),
    ("401", "Unauthorized", "The API asks for a token, and this is none that it accepts."),
    ("404", "NotFound", "There is no such thing."),
    ("405", "MethodNotAllowed", "This API only reads: use GET or HEAD."),
    ("421", "MisdirectedRequest", "The API does not answer under this host name."),
    ("500", "Failed", "The daemon failed; its log says more."),
    ("503", "Unavailable", "It cannot be told now: the first pass has not finished, or the guest does not answer."),
];

fn refusals() -> Value {
    let refusal = |(_, name, what): &(&str, &str, &str)| {
        let schema = json!({ "$ref": "#/components/schemas/Problem" });
        let content = json!({ "application/problem+json": { "schema": schema } });
        ((*name).to_owned(), json!({ "description": what, "content": content }))
    };
    REFUSALS.iter().map(refusal).collect()
}

fn path_item(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = segments(route.path).map(segment).collect();
    parameters.extend(route.parameters.iter().map(|parameter| query(*parameter, generator)));
    if route.tagged() {
        let what = "The tags of the states that the client has; `*` for any.";
        parameters.push(header("If-None-Match", what));
    }
    if route.streams() {
        parameters.push(header("Last-Event-ID", "In a request for a stream: the id of the last event that was seen."));
    }
    json!({
        "parameters": parameters,
        "get": operation(route, generator, Method::Get),
        "head": operation(route, generator, Method::Head),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

fn operation(route: &Route, generator: &mut SchemaGenerator, method: Method) -> Value {
    let mut responses = Map::new();
    let mut good = json!({ "description": route.summary });
    if method == Method::Get {
        good["content"] = content(route, generator);
    }
    if route.tagged() {
        let headers = json!({ "ETag": { "$ref": "#/components/headers/ETag" } });
        good["headers"] = headers.clone();
        let what = "The client has this state already, and none came while it waited.";
        responses.insert("304".to_owned(), json!({ "description": what, "headers": headers }));
    }
    responses.insert("200".to_owned(), good);
    let verb = if method == Method::Get { "get" } else { "head" };
    for (status, name, what) in REFUSALS {
        let refusal = match method {
            Method::Get => json!({ "$ref": format!("#/components/responses/{name}") }),
            // The answer to a HEAD has no body.
            Method::Head => json!({ "description": what }),
        };
        responses.insert(status.to_owned(), refusal);
    }
    json!({ "operationId": operation_id(verb, route.path), "summary": route.summary, "responses": responses })
}

fn content(route: &Route, generator: &mut SchemaGenerator) -> Value {
    match &route.answer {
        Answer::Metrics => json!({ "application/openmetrics-text": { "schema": { "type": "string" } } }),
        Answer::Text | Answer::Log => json!({ "text/plain": { "schema": { "type": "string" } } }),
        Answer::Document(shape) => json!({ "application/json": { "schema": shape.schema(generator) } }),
        Answer::DocumentOrStream { document, event: (name, data) } => {
            let what = format!(
                "Server-sent events named `{name}`, their ids for `Last-Event-ID`; each one's data is described by \
                 `x-event-data`. An event `problem` ends the stream of what is not there any more."
            );
            json!({
                "application/json": { "schema": document.schema(generator) },
                "text/event-stream": {
                    "schema": { "type": "string", "description": what },
                    "x-event-data": data.schema(generator),
                },
            })
        }
    }
}

/// The names in a path.
pub(super) fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

fn segment(name: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
}

fn header(name: &str, what: &str) -> Value {
    json!({ "name": name, "in": "header", "description": what, "schema": { "type": "string" } })
}

fn query(parameter: Parameter, generator: &mut SchemaGenerator) -> Value {
    let (what, schema) = match parameter {
        Parameter::App => ("Only what concerns this app.", json!({ "type": "string", "pattern": APP_KEY })),
        Parameter::Cursor => ("Where the page begins: `next` of the page before.", json!({ "type": "string" })),
        Parameter::Fields => (
            "Which fields of each object to show, with commas between them; `web.health` is a part of a field.",
            json!({ "type": "string", "minLength": 1, "maxLength": MAX_FIELDS }),
        ),
        Parameter::Follow => ("Whether the log goes on.", json!({ "type": "boolean", "default": false })),
        Parameter::Label => (
            "Only apps with this label, as `key=value`; given several times, with all of them.",
            json!({ "type": "array", "items": { "type": "string", "pattern": "^[^=]+=" } }),
        ),
        Parameter::Limit => (
            "The most items on a page.",
            json!({ "type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT }),
        ),
        Parameter::Phase => ("Only apps in this phase.", generator.subschema_for::<wire::Phase>().to_value()),
        Parameter::Rev => (
            "A commit, a branch or a tag; the branch's tip without it.",
            json!({ "type": "string", "minLength": 1, "maxLength": MAX_TEXT }),
        ),
        Parameter::Tail => (
            "How many of the last lines to begin with.",
            json!({ "type": "integer", "minimum": 0, "maximum": MAX_TAIL, "default": DEFAULT_TAIL }),
        ),
        Parameter::Team => ("Only what this team owns.", json!({ "type": "string", "pattern": TEAM })),
        Parameter::Wait => (
            "With `If-None-Match`: how long to hold an answer that would say nothing new, in whole seconds or minutes.",
            json!({ "type": "string", "pattern": "^0*([1-9]|[1-9][0-9]|[12][0-9][0-9]|300)s$|^0*[1-5]m$", "examples": ["30s", "5m"] }),
        ),
    };
    let mut described = json!({ "name": parameter.name(), "in": "query", "description": what, "schema": schema });
    match parameter.occurs() {
        Occurs::Once => {}
        Occurs::Often => {
            described["style"] = json!("form");
            described["explode"] = json!(true);
        }
    }
    described
}

/// The spelling of a team, `setpoint_schema::name::Team`.
const TEAM: &str = "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$";
/// The spelling of an app's key: its name, with its team in front where that is not the default one.
const APP_KEY: &str = "^([a-z]([a-z0-9-]{0,38}[a-z0-9])?/)?[a-z]([a-z0-9-]{0,38}[a-z0-9])?$";

fn operation_id(verb: &str, path: &str) -> String {
    let words = path.split(['/', '{', '}', '.']).filter(|word| !word.is_empty());
    words.fold(verb.to_owned(), |id, word| format!("{id}_{word}"))
}

impl Route {
    /// Whether its answers have tags.
    fn tagged(&self) -> bool {
        match self.answer {
            Answer::Text | Answer::Metrics | Answer::Log => false,
            Answer::Document(_) | Answer::DocumentOrStream { .. } => true,
        }
    }
}
