//! `aeir label serve`: one page on this machine, a key an image.

use std::io::Cursor;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use aeir_data::{ImageLimits, ImageSource, TargetSentences};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use image::ImageFormat;
use serde::{Deserialize, Serialize};

use super::desk::{Desk, NotTaken};
use crate::commands::print;
use crate::flags::label::LabelServeFlags;
use crate::serve::door::{Door, DoorFlags, Patience};
use crate::serve::refusal::Refusal;
use crate::terminal::Terminal;

const PAGE: &str = include_str!("page/page.html");
const SCRIPT: &str = include_str!("page/page.js");
const STYLE: &str = include_str!("page/page.css");

/// Longer side of an image on the page.
const SHOWN: u32 = 640;
/// An answer of the page is some hundred bytes, however long a sentence is.
const MOST_BODY_BYTES: usize = 128 << 10;

type Shared = Arc<Mutex<Desk>>;

/// Serves the plan until somebody ends it.
pub(super) fn run(flags: &LabelServeFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let sentences = match &flags.target_sentences {
        Some(path) => {
            let sentences = TargetSentences::read_with(path, &flags.reading.options())?;
            sentences.notes().iter().for_each(|note| terminal.warn(note));
            sentences.sentences().to_vec()
        }
        None => {
            terminal.warn(
                "without --target-sentences only the candidates can be chosen: images whose sentence is not among them look as if they had \
                 none, which makes recall look better than it is",
            );
            Vec::new()
        }
    };
    let root = flags.reading.image_root.as_deref();
    let desk = Arc::new(Mutex::new(Desk::open(&flags.plan, &flags.output, root, &sentences)?));
    let address = DoorFlags { host: Ipv4Addr::LOCALHOST.into(), port: flags.port, allowed: Vec::new() };
    let door = Door::open(&address, Patience::default())?;
    door.serve(router(Arc::clone(&desk)), |address| {
        let (done, all) = locked(&desk).progress();
        print(&format!(
            "open    http://{address}/\npairs   {output}, {done} of {all} images answered; end with Ctrl-C\n",
            output = flags.output.display()
        ))
    })?;
    let (done, all) = locked(&desk).progress();
    let output = flags.output.display();
    print(&format!("pairs   {output}, {done} of {all} images answered\n"))?;
    terminal.note(&format!("next: aeir train .. --labelled {output}, then aeir eval --labelled {output}"));
    Ok(())
}

fn router(desk: Shared) -> Router {
    Router::new()
        .route("/", get(|| async { asset("text/html; charset=utf-8", PAGE) }))
        .route("/page.js", get(|| async { asset("text/javascript; charset=utf-8", SCRIPT) }))
        .route("/page.css", get(|| async { asset("text/css; charset=utf-8", STYLE) }))
        .route("/api/plan", get(plan))
        .route("/api/sentences", get(search))
        .route("/api/answer", post(answer))
        .route("/image/{place}", get(picture))
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
        .with_state(desk)
}

/// What is no data of a user: an older page must not meet a newer program.
fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

fn locked(desk: &Shared) -> std::sync::MutexGuard<'_, Desk> {
    // A desk is whole after every answer.
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work with the disk, away from the threads that talk.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::failed("the work on this request failed"))
}

/// The plan as the page shows it. It does not say which part an image is of, so that both are labelled with the same care.
#[derive(Serialize)]
struct Shown {
    images: Vec<ShownImage>,
    /// How many sentences can be searched; 0 where there is no search.
    searchable: usize,
}

#[derive(Serialize)]
struct ShownImage {
    name: String,
    candidates: Vec<String>,
    answer: Option<Vec<String>>,
}

async fn plan(State(desk): State<Shared>) -> Json<Shown> {
    let desk = locked(&desk);
    let images = desk.images().map(|(planned, answer)| ShownImage {
        name: planned.image.rsplit(['/', '\\']).next().unwrap_or_default().to_owned(),
        candidates: planned.candidates.iter().map(|candidate| candidate.sentence.clone()).collect(),
        answer: answer.map(<[String]>::to_vec),
    });
    Json(Shown { images: images.collect(), searchable: desk.searchable() })
}

#[derive(Deserialize)]
struct Words {
    words: String,
}

#[derive(Serialize)]
struct FoundSentences {
    sentences: Vec<String>,
    /// All that there are.
    count: usize,
}

async fn search(
    State(desk): State<Shared>,
    Query(Words { words }): Query<Words>,
) -> Result<Json<FoundSentences>, Refusal> {
    let found = aside(move || {
        let desk = locked(&desk);
        let (sentences, count) = desk.search(&words);
        FoundSentences { sentences: sentences.into_iter().map(str::to_owned).collect(), count }
    });
    Ok(Json(found.await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    image: usize,
    /// The sentences of the image, none where none fits; null takes an answer back.
    sentences: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Progress {
    answered: usize,
    images: usize,
}

async fn answer(State(desk): State<Shared>, Json(given): Json<Given>) -> Result<Json<Progress>, Refusal> {
    let taken = aside(move || {
        let mut desk = locked(&desk);
        desk.answer(given.image, given.sentences).map(|()| desk.progress())
    });
    let (answered, images) = taken.await?.map_err(|error| match error {
        NotTaken::Unknown(what) => Refusal::bad(what),
        NotTaken::Changed => Refusal::new(
            StatusCode::CONFLICT,
            "another program has written the file of pairs: end `aeir label serve` and start it again",
        ),
        NotTaken::Failed(error) => Refusal::failed(format!("{error:#}")),
    })?;
    Ok(Json(Progress { answered, images }))
}

async fn picture(State(desk): State<Shared>, Path(place): Path<usize>) -> Result<Response, Refusal> {
    let image = locked(&desk).image(place).cloned();
    let image = image.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "the plan has no such image"))?;
    let bytes = aside(move || shown(&image)).await?;
    let bytes = bytes.map_err(|error| Refusal::new(StatusCode::GONE, format!("{error:#}")))?;
    Ok(([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")], bytes).into_response())
}

/// The image as the page shows it: never larger than it is.
fn shown(image: &ImageSource) -> anyhow::Result<Vec<u8>> {
    let decoded = image.decode(&ImageLimits::default())?.image;
    let fits = decoded.width().max(decoded.height()) <= SHOWN;
    let picture = if fits { decoded } else { decoded.thumbnail(SHOWN, SHOWN) };
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}
