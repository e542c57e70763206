//! Fills in the templates within declarations: minijinja, with `vars` from `setpoint.toml` and undefined values as errors.
//!
//! The loader calls it with all files that changed. Declarations are not trusted, and fuel alone does not bound a template (a
//! string doubled in a loop takes gigabytes within it), so that they are rendered in a child process under limits on memory
//! and time. A file that kills the child gets the error; the others go on in a fresh one. Most files hold no template at all:
//! those are returned as they are, and without any template no child is started.
//!
//! The child is this same binary, started with [`CHILD_COMMAND`]; it serves [`serve_child`].

mod child;
mod engine;
mod frame;

use std::ffi::OsString;
use std::sync::Arc;

use setpoint_schema::diagnostic::{Diagnostic, Location, SourceText};
use setpoint_schema::name::RepoPath;

use child::Child;
use engine::Failure;
use frame::Reply;

pub use child::serve as serve_child;

/// The hidden subcommand that renders for its parent.
pub const CHILD_COMMAND: &str = "render-child";

/// How many children one batch may kill. More than this many hostile files at once wait for the next load, so that a commit
/// cannot hold up the reconciler for longer than this times [`child::PATIENCE`].
const MAX_KILLS: u32 = 6;

/// Renders batches of declarations.
#[derive(Debug, Clone)]
pub struct Renderer {
    engine: Engine,
}

#[derive(Debug, Clone)]
enum Engine {
    /// A child with this command line.
    Child(Vec<OsString>),
    /// This process: unit tests have no binary to start.
    #[cfg(test)]
    InProcess,
}

/// Why a file was not rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RenderError {
    /// The file is at fault, and will be the next time.
    Mistake(Box<Diagnostic>),
    /// Rendering did not take place: why. It may the next time.
    Unavailable(String),
}

impl Renderer {
    /// Renders in children that are started as `argv`, normally this binary with [`CHILD_COMMAND`].
    #[must_use]
    pub fn new(argv: Vec<OsString>) -> Self {
        Self { engine: Engine::Child(argv) }
    }

    /// Renders in this process, without limits on memory or time.
    #[cfg(test)]
    pub(crate) fn in_process() -> Self {
        Self { engine: Engine::InProcess }
    }

    /// Renders each text, in order. Blocks for as long as that takes, which is bounded.
    #[must_use]
    pub fn render(
        &self,
        texts: Vec<(RepoPath, Arc<str>)>,
        vars: &serde_json::Value,
    ) -> Vec<Result<Arc<str>, RenderError>> {
        let mut batch = Batch { engine: &self.engine, vars, child: None, kills: 0 };
        texts
            .into_iter()
            .map(|(path, text)| if is_template(&text) { batch.render(&path, &text) } else { Ok(text) })
            .collect()
    }
}

/// Whether there is anything to render in `text`.
#[must_use]
pub fn is_template(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|mark| text.contains(mark))
}

/// The rendering of one batch, which one child serves for as long as it lives.
struct Batch<'a> {
    engine: &'a Engine,
    vars: &'a serde_json::Value,
    child: Option<Child>,
    kills: u32,
}

impl Batch<'_> {
    fn render(&mut self, path: &RepoPath, text: &str) -> Result<Arc<str>, RenderError> {
        let mistake = |failure: Failure| RenderError::Mistake(Box::new(located(path, text, failure)));
        match self.ask(text)? {
            Ok(Reply::Rendered(text)) => Ok(text.into()),
            Ok(Reply::Failed(failure)) => Err(mistake(failure)),
            Ok(Reply::Ready) => Err(RenderError::Unavailable("the renderer answered out of turn".to_owned())),
            Err(end) => Err(mistake(Failure::of_file(end))),
        }
    }

    /// The answer for one text, or how it killed the child.
    #[cfg_attr(not(test), expect(clippy::infallible_destructuring_match, reason = "unit tests have a second engine"))]
    fn ask(&mut self, text: &str) -> Result<Result<Reply, String>, RenderError> {
        let argv = match self.engine {
            Engine::Child(argv) => argv,
            #[cfg(test)]
            Engine::InProcess => return Ok(Ok(Reply::from(engine::render(text, &engine::context(self.vars))))),
        };
        loop {
            if self.kills >= MAX_KILLS {
                let reason = "too many templates of this revision had to be stopped; the rest is tried again";
                return Err(RenderError::Unavailable(reason.to_owned()));
            }
            let mut child = match self.child.take() {
                Some(child) => child,
                None => Child::start(argv, self.vars).map_err(RenderError::Unavailable)?,
            };
            match child.ask(text) {
                Ok(reply) => {
                    self.child = Some(child).filter(Child::has_life_left);
                    return Ok(Ok(reply));
                }
                // Memory and time that earlier texts took count against this one, so that it gets a child of its own.
                Err(_) if child.has_served() => {}
                Err(end) => {
                    self.kills += 1;
                    return Ok(Err(end));
                }
            }
        }
    }
}

fn located(path: &RepoPath, text: &str, failure: Failure) -> Diagnostic {
    let diagnostic = match failure.at {
        Some((line, column, length)) => {
            SourceText { path, text }.diagnostic(Location { line, column, length }, failure.message)
        }
        None => Diagnostic::new(path.clone(), failure.message),
    };
    match failure.hint {
        Some(hint) => diagnostic.hint(hint),
        None => diagnostic,
    }
}

#[cfg(test)]
mod tests;
