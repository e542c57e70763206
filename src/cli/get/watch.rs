//! `setpoint get KIND -w`: a line for each object that is there, then one for each change.
//!
//! Each page is followed by a long poll of its own. Of a list of very many pages that would take too many connections: it is asked
//! for once a second with its ETags, which costs the daemon next to nothing while nothing changes.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::select_all;
use jiff::Timestamp;
use setpoint_schema::wire::List;

use super::Wanted;
use super::kinds::Resource;
use crate::cli::client::{Client, ClientError};
use crate::cli::follow::{LONGEST_WAIT, PAUSE, Poll, Polled, Query};
use crate::cli::output::{Form, Object, Output, print_document};
use crate::cli::style::Tone;
use crate::cli::table::{Cell, Layout};
use crate::cli::{Failure, print};
use crate::report;

/// Watches until the reader leaves.
pub async fn run<R: Resource>(client: &Client, wanted: &Wanted, output: Output) -> Result<ExitCode, Failure> {
    let mut source = Source::<R>::new(client, wanted);
    let mut screen = Screen::<R>::new(output);
    let first = source.next().await?.unwrap_or_default();
    screen.show(select(wanted, first));
    loop {
        match source.next().await {
            Ok(None) => {}
            Ok(Some(objects)) => screen.show(select(wanted, objects)),
            Err(error) => await_return(client, error).await?,
        }
    }
}

/// Waits for a daemon that has gone, as while it is upgraded.
///
/// # Errors
/// When it is there and refuses.
pub async fn await_return(client: &Client, error: ClientError) -> Result<(), ClientError> {
    if !matches!(error, ClientError::Unreachable { .. } | ClientError::Broken { .. }) {
        return Err(error);
    }
    eprintln!("{}", report::page(&error, Some("waiting for it to come back; Ctrl-C ends this")));
    while client.exchange("/readyz", &[]).await.map_or(true, |answer| !answer.status().is_success()) {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn select<R: Resource>(wanted: &Wanted, objects: Vec<Object<R>>) -> Vec<Object<R>> {
    objects.into_iter().filter(|object| wanted.admits(&object.typed)).collect()
}

/// What is asked: one object, or a list page by page.
enum Source<R> {
    One(Poll),
    Pages { client: Client, query: Query, pages: Vec<Page<R>> },
}

struct Page<R> {
    poll: Poll,
    items: Vec<Object<R>>,
    next: Option<String>,
}

impl<R: Resource> Source<R> {
    fn new(client: &Client, wanted: &Wanted) -> Self {
        let path = match &wanted.names[..] {
            [name] => R::path_of(name),
            _ => None,
        };
        match path {
            Some(path) => Self::One(Poll::new(client, path)),
            None => {
                let query = R::query(wanted);
                Self::Pages { client: client.clone(), pages: vec![Page::new(client, &query, None)], query }
            }
        }
    }

    /// All objects, when something has changed.
    async fn next(&mut self) -> Result<Option<Vec<Object<R>>>, ClientError> {
        match self {
            Self::One(poll) => Ok(match poll.next::<Object<R>>(LONGEST_WAIT).await? {
                Polled::Changed(object) => Some(vec![object]),
                Polled::Missing(_) => Some(Vec::new()),
                Polled::Same | Polled::NotYet(_) => None,
            }),
            Self::Pages { client, query, pages } => next_pages(client, query, pages).await,
        }
    }
}

impl<R: Resource> Page<R> {
    fn new(client: &Client, query: &Query, cursor: Option<&str>) -> Self {
        let poll = Poll::new(client, query.page(R::PATH, cursor));
        Self { poll, items: Vec::new(), next: None }
    }
}

/// So many pages are waited for at once. A daemon serves 256 connections of one address, and others want some of them.
const MOST_WAITS: usize = 64;

async fn next_pages<R: Resource>(
    client: &Client,
    query: &Query,
    pages: &mut Vec<Page<R>>,
) -> Result<Option<Vec<Object<R>>>, ClientError> {
    let (first, polled) = first_news(pages).await?;
    let mut changed = take(client, query, pages, first, polled);
    // One change seldom comes alone: whatever else is new by now is shown with it.
    let (look_on, mut index) = (changed || pages.len() > MOST_WAITS, 0);
    while look_on && index < pages.len() {
        if index != first {
            let polled = pages[index].poll.next(Duration::ZERO).await?;
            changed |= take(client, query, pages, index, polled);
        }
        index += 1;
    }
    Ok(changed.then(|| pages.iter().flat_map(|page| page.items.iter().cloned()).collect()))
}

/// The page that has something new first, or whose wait is over, and what it says.
async fn first_news<R: Resource>(pages: &mut [Page<R>]) -> Result<(usize, Polled<List<Object<R>>>), ClientError> {
    if pages.len() > MOST_WAITS {
        tokio::time::sleep(PAUSE).await;
        return Ok((0, pages[0].poll.next(Duration::ZERO).await?));
    }
    // Whoever comes second is asked again: a question that is given up leaves its page as it was known.
    let waits = pages.iter_mut().map(|page| Box::pin(page.poll.next(LONGEST_WAIT)));
    let (polled, index, _) = select_all(waits).await;
    Ok((index, polled?))
}

/// Takes up what was said of a page; whether that is news.
fn take<R: Resource>(
    client: &Client,
    query: &Query,
    pages: &mut Vec<Page<R>>,
    index: usize,
    polled: Polled<List<Object<R>>>,
) -> bool {
    let Polled::Changed(List { items, next }) = polled else { return false };
    if pages[index].next != next {
        // What came after begins elsewhere now.
        pages.truncate(index + 1);
        pages.extend(next.as_deref().map(|cursor| Page::new(client, query, Some(cursor))));
    }
    (pages[index].items, pages[index].next) = (items, next);
    true
}

/// What has been printed: only what looks different is printed again.
struct Screen<R> {
    output: Output,
    layout: Layout,
    known: BTreeMap<String, Object<R>>,
    begun: bool,
}

impl<R: Resource> Screen<R> {
    fn new(output: Output) -> Self {
        let layout = Layout::new(&output.columns(R::COLUMNS), output.page());
        Self { output, layout, known: BTreeMap::new(), begun: false }
    }

    fn show(&mut self, objects: Vec<Object<R>>) {
        let changed: Vec<_> = objects.iter().filter(|object| self.is_news(object)).cloned().collect();
        let mut known: BTreeMap<_, _> = objects.into_iter().map(|object| (object.typed.name(), object)).collect();
        std::mem::swap(&mut known, &mut self.known);
        let gone: Vec<_> = known.into_values().filter(|old| !self.known.contains_key(&old.typed.name())).collect();
        match self.output.form {
            Form::Json => changed.iter().for_each(|object| print(&format!("{}\n", object.document))),
            Form::Yaml => changed.iter().for_each(|object| {
                print("---\n");
                print_document(Form::Yaml, &object.document);
            }),
            Form::Name => changed.iter().for_each(|object| print(&format!("{}\n", object.typed.name()))),
            Form::Table | Form::Wide => self.show_rows(&changed, &gone),
        }
        self.begun = true;
    }

    fn is_news(&self, object: &Object<R>) -> bool {
        let Some(known) = self.known.get(&object.typed.name()) else { return true };
        match self.output.form {
            Form::Table | Form::Wide => self.looks(known) != self.looks(object),
            Form::Json | Form::Yaml => known.document != object.document,
            Form::Name => false,
        }
    }

    /// What is seen of it, but for the time that passes.
    fn looks(&self, object: &Object<R>) -> Vec<Cell> {
        self.output.cells(R::COLUMNS, object.typed.cells(Timestamp::UNIX_EPOCH))
    }

    fn show_rows(&mut self, changed: &[Object<R>], gone: &[Object<R>]) {
        let now = Timestamp::now();
        let deleted = |object: &Object<R>| {
            let mut cells = object.typed.cells(now);
            cells[R::STATE] = Cell::new("deleted").tone(Tone::Quiet);
            cells
        };
        let rows = changed.iter().map(|object| object.typed.cells(now)).chain(gone.iter().map(deleted));
        let rows: Vec<_> = rows.map(|row| self.output.cells(R::COLUMNS, row)).collect();
        self.layout.widen(&rows);
        if !self.begun && !self.output.no_header {
            print(&self.layout.heading());
        }
        rows.iter().for_each(|row| print(&self.layout.line(row)));
    }
}
