//! Every route of the server: what goes in, what comes out, and its description.

mod answers;
mod page;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aeir_data::{DataError, decode_bytes};
use aeir_encoders::PreparedImage;
use aeir_retrieve::{Filter, Selection};
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query as UrlQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use utoipa::OpenApi;

use super::api_key::{self, ApiKey};
use super::body::{self, Room};
use super::library::{ItemId, Library, Volume};
use super::limits::{self, LimitFlags, whole_seconds};
use super::measures;
use super::queue::{self, Done, Queue, Work};
use super::refusal::{Refusal, RefusalBody};
use super::thumbnails::{SIDES, Thumbnails, too_large};
use super::wanted::{Wanted, WantedDuplicates};
use crate::flags::Rerank;
use crate::search_engine::{DEFAULT_THRESHOLD, Manner, Query, Weights, stages_of};
use answers::{Card, Health, Item, Items, Results, Vector};

/// Results of a query that does not say how many.
const RESULTS: usize = 10;
/// Items of a sample that does not say how many, and at most.
const SAMPLED: usize = 12;
const MOST_SAMPLED: usize = 100;
/// What a check of health embeds.
const HEALTH_SENTENCE: &str = "a photograph";
/// A check of health answers for so long, whoever asks.
const HEALTH_KEPT: Duration = Duration::from_secs(1);
/// A browser keeps a thumbnail for so long, then asks whether it has changed.
const THUMBNAIL_CACHE: &str = "private, max-age=300";

/// What all routes share.
pub(crate) struct Server {
    library: Arc<Library>,
    queue: Queue,
    thumbnails: Thumbnails,
    limits: LimitFlags,
    /// Requests that are worked on, once their bodies are there.
    requests: Semaphore,
    bodies: Room,
    /// Images that are decoded at once: each takes some bytes a pixel.
    decoding: Arc<Semaphore>,
    /// One filter is worked out at a time, by all threads.
    selecting: Arc<Semaphore>,
    /// When health was checked last, and what came of it.
    checked: Mutex<Option<(Instant, Result<Duration, Refusal>)>>,
    measures: PrometheusHandle,
    rerank: Option<Rerank>,
    /// Whether requests need a key, which the page has to ask for.
    locked: bool,
}

impl Server {
    pub(crate) fn new(
        library: Arc<Library>,
        limits: LimitFlags,
        rerank: Option<Rerank>,
        measures: PrometheusHandle,
        locked: bool,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            library,
            queue: Queue::start(&limits)?,
            thumbnails: Thumbnails::new(limits.thumbnail_bytes),
            requests: Semaphore::new(limits.max_requests),
            bodies: Room::new(&limits),
            decoding: Arc::new(Semaphore::new(rayon::current_num_threads())),
            selecting: Arc::new(Semaphore::new(1)),
            checked: Mutex::default(),
            limits,
            measures,
            rerank,
            locked,
        })
    }
}

/// The interface as it is described at `/openapi.json`.
#[derive(OpenApi)]
#[openapi(
    info(title = "aeir serve", description = "Finds images of an index by sentences and by images."),
    paths(search, embed, sample, item, thumbnail, model, health, measured, described),
    components(schemas(RefusalBody)),
    modifiers(&Key),
    security((), ("key" = []))
)]
struct Interface;

/// How the optional key is shown.
struct Key;

impl utoipa::Modify for Key {
    fn modify(&self, interface: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("Where the server was started with an API key"))
            .build();
        let components = interface.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

/// Routes that ask for the key, where there is one.
fn locked() -> [(&'static str, MethodRouter<Arc<Server>>); 7] {
    [
        ("/v1/search", post(search)),
        ("/v1/embed", post(embed)),
        ("/v1/items", get(sample)),
        ("/v1/items/{id}", get(item)),
        ("/v1/items/{id}/thumbnail", get(thumbnail)),
        ("/v1/model", get(model)),
        ("/metrics", get(measured)),
    ]
}

/// Routes that are open in any case.
fn open() -> [(&'static str, MethodRouter<Arc<Server>>); 2] {
    [("/healthz", get(health)), ("/openapi.json", get(described))]
}

/// All routes.
pub(crate) fn router(server: Arc<Server>, key: Option<ApiKey>) -> Router {
    let with = |router: Router<Arc<Server>>, (path, route)| router.route(path, route);
    let locked = locked()
        .into_iter()
        .fold(Router::new(), with)
        .route_layer(from_fn_with_state(Arc::new(key), api_key::check));
    open()
        .into_iter()
        .fold(locked, with)
        .merge(page::routes())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        // We judge and read bodies ourselves.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(measures::request))
        .with_state(server)
}

async fn unknown(request: Request) -> Refusal {
    let path = request.uri().path();
    let shown: String = path.chars().take(100).collect();
    Refusal::new(StatusCode::NOT_FOUND, format!("no route `{shown}`")).hint("/openapi.json lists all of them")
}

async fn wrong_method(request: Request) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("`{}` does not take {}", request.uri().path(), request.method()),
    )
    .hint("/openapi.json lists all routes with their methods")
}

/// Find images
///
/// By a sentence, an image, an item of the index, or several of them at once, less what the images should not show. A form takes the same fields, `image`
/// as an upload and `minus` as often as wanted.
#[utoipa::path(
    post, path = "/v1/search", tag = "search",
    request_body(content((Wanted = "application/json"), (Wanted = "multipart/form-data"))),
    responses(
        (status = 200, body = Results),
        (status = 400, description = "The query makes no sense", body = RefusalBody),
        (status = 401, description = "The API key is missing or wrong", body = RefusalBody),
        (status = 404, description = "No such item", body = RefusalBody),
        (status = 408, description = "The body came too slowly", body = RefusalBody),
        (status = 413, description = "Body, sentence or image are too large", body = RefusalBody),
        (status = 415, description = "Neither JSON nor a form", body = RefusalBody),
        (status = 429, description = "Too many requests at once", body = RefusalBody),
        (status = 503, description = "The encoder is too busy", body = RefusalBody),
    )
)]
async fn search(State(server): State<Arc<Server>>, request: Request) -> Result<Json<Results>, Refusal> {
    let began = Instant::now();
    let asked = server.asked(request).await?;
    let manner = server.manner(&asked.wanted, &asked.volume).await?;
    match server.ask(asked, Work::Search(manner)).await? {
        (volume, Done::Answer(answer)) => Ok(Json(Results::of(&volume, answer, began.elapsed()))),
        (_, Done::Vector(_)) => Err(Refusal::failed("the encoder gave a vector")),
    }
}

/// Embed a query
///
/// Takes what `/v1/search` takes and gives the unit vector that it searches with.
#[utoipa::path(
    post, path = "/v1/embed", tag = "search",
    request_body(content((Wanted = "application/json"), (Wanted = "multipart/form-data"))),
    responses(
        (status = 200, body = Vector),
        (status = 400, description = "The query makes no sense", body = RefusalBody),
        (status = 401, description = "The API key is missing or wrong", body = RefusalBody),
        (status = 404, description = "No such item", body = RefusalBody),
        (status = 408, description = "The body came too slowly", body = RefusalBody),
        (status = 413, description = "Body, sentence or image are too large", body = RefusalBody),
        (status = 415, description = "Neither JSON nor a form", body = RefusalBody),
        (status = 429, description = "Too many requests at once", body = RefusalBody),
        (status = 503, description = "The encoder is too busy", body = RefusalBody),
    )
)]
async fn embed(State(server): State<Arc<Server>>, request: Request) -> Result<Json<Vector>, Refusal> {
    let asked = server.asked(request).await?;
    match server.ask(asked, Work::Embed).await? {
        (volume, Done::Vector(embedding)) => Ok(Json(Vector::of(&volume, embedding))),
        (_, Done::Answer(_)) => Err(Refusal::failed("the encoder gave an answer")),
    }
}

/// Some items to look around from
///
/// Spread evenly over the index, in its order.
#[utoipa::path(
    get, path = "/v1/items", tag = "items",
    params(("sample" = Option<usize>, Query, description = "How many, from 1 to 100 [default: 12]", minimum = 1, maximum = 100)),
    responses(
        (status = 200, body = Items),
        (status = 400, description = "No such number", body = RefusalBody),
        (status = 401, description = "The API key is missing or wrong", body = RefusalBody),
    )
)]
async fn sample(
    State(server): State<Arc<Server>>,
    query: Result<UrlQuery<HashMap<String, String>>, QueryRejection>,
) -> Result<Json<Items>, Refusal> {
    let wrong = || Refusal::bad(format!("`sample`: expected a number from 1 to {MOST_SAMPLED}"));
    let UrlQuery(query) = query.map_err(|_| wrong())?;
    let wanted = match query.get("sample") {
        None => SAMPLED,
        Some(text) => {
            text.parse().ok().filter(|count| (1..=MOST_SAMPLED).contains(count)).ok_or_else(wrong)?
        }
    };
    Ok(Json(Items::spread(&server.library.current(), wanted)))
}

/// Look an item up
#[utoipa::path(
    get, path = "/v1/items/{id}", tag = "items",
    params(("id" = String, Path, description = "As a search gives it: 16 hexadecimal digits")),
    responses(
        (status = 200, body = Item),
        (status = 401, description = "The API key is missing or wrong", body = RefusalBody),
        (status = 404, description = "No such item", body = RefusalBody),
    )
)]
async fn item(
    State(server): State<Arc<Server>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Item>, Refusal> {
    let (volume, position) = server.find(id)?;
    Item::of(&volume, position).map(Json).ok_or_else(no_item)
}

/// A small picture of an item
///
/// A JPEG of at most 320 pixels a side, or 1024 with `?size=1024`; what is transparent is white. Carries an `ETag`.
#[utoipa::path(
    get, path = "/v1/items/{id}/thumbnail", tag = "items",
    params(
        ("id" = String, Path, description = "As a search gives it: 16 hexadecimal digits"),
        ("size" = Option<u32>, Query, description = "The longer side in pixels: 320 or 1024"),
    ),
    responses(
        (status = 200, description = "The picture", body = Vec<u8>, content_type = "image/jpeg"),
        (status = 304, description = "The picture is as it was"),
        (status = 400, description = "No such size", body = RefusalBody),
        (status = 401, description = "The API key is missing or wrong", body = RefusalBody),
        (status = 404, description = "No such item, or it has no image", body = RefusalBody),
        (status = 410, description = "The image file is gone", body = RefusalBody),
        (status = 413, description = "The image is too large", body = RefusalBody),
        (status = 422, description = "The image can't be decoded any more", body = RefusalBody),
        (status = 503, description = "Too many pictures are being made", body = RefusalBody),
    )
)]
async fn thumbnail(
    State(server): State<Arc<Server>>,
    id: Result<Path<String>, PathRejection>,
    query: Result<UrlQuery<HashMap<String, String>>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let side = side_of(query)?;
    let (volume, position) = server.find(id)?;
    let place = server.place(&server.decoding, "the image", "decoded").await?;
    let shared = Arc::clone(&server);
    let made = tokio::task::spawn_blocking(move || {
        let _place = place;
        let item = volume.engine.shelf.index.item(position).ok_or_else(no_item)?;
        shared.thumbnails.get(ItemId::of(item), item, side, &shared.limits.images())
    });
    let thumbnail = made.await.map_err(|_| Refusal::failed("the thumbnail could not be made"))??;
    let tag =
        HeaderValue::from_str(&thumbnail.etag).map_err(|_| Refusal::failed("the thumbnail has no tag"))?;
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let unchanged = known.is_some_and(|known| {
        known.split(',').any(|one| {
            matches!(one.trim().trim_start_matches("W/"), "*")
                || one.trim().trim_start_matches("W/") == thumbnail.etag
        })
    });
    let mut response = if unchanged {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "image/jpeg")], thumbnail.jpeg).into_response()
    };
    response.headers_mut().insert(header::ETAG, tag);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(THUMBNAIL_CACHE));
    Ok(response)
}

fn side_of(query: Result<UrlQuery<HashMap<String, String>>, QueryRejection>) -> Result<u32, Refusal> {
    let wrong = || Refusal::bad(format!("`size`: expected {} or {}", SIDES[0], SIDES[1]));
    let UrlQuery(query) = query.map_err(|_| wrong())?;
    match query.get("size") {
        None => Ok(SIDES[0]),
        Some(text) => text.parse().ok().filter(|side| SIDES.contains(side)).ok_or_else(wrong),
    }
}

/// What is served
///
/// The model in the index, and the index.
#[utoipa::path(
    get, path = "/v1/model", tag = "server",
    responses(
        (status = 200, body = Card),
        (status = 401, description = "The API key is missing or wrong", body = RefusalBody),
    )
)]
async fn model(State(server): State<Arc<Server>>) -> Json<Card> {
    Json(Card::of(&server.library.current()))
}

/// Whether queries are answered
///
/// Embeds a sentence as a query does, in the same queue; at most once a second, whoever asks.
#[utoipa::path(
    get, path = "/healthz", tag = "server",
    responses(
        (status = 200, body = Health),
        (status = 500, description = "The model can't embed", body = RefusalBody),
        (status = 503, description = "The encoder is too busy", body = RefusalBody),
    )
)]
async fn health(State(server): State<Arc<Server>>) -> Result<Json<Health>, Refusal> {
    let took = server.health().await?;
    Ok(Json(Health::of(&server.library.current(), took, server.library.trouble())))
}

/// Measures for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "server",
    responses(
        (status = 200, description = "Counters and histograms", body = String, content_type = "text/plain"),
        (status = 401, description = "The API key is missing or wrong", body = RefusalBody),
    )
)]
async fn measured(State(server): State<Arc<Server>>) -> impl IntoResponse {
    server.measures.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], server.measures.render())
}

/// This description
#[utoipa::path(
    get, path = "/openapi.json", tag = "server",
    responses((status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json"))
)]
async fn described() -> Json<utoipa::openapi::OpenApi> {
    Json(Interface::openapi())
}

/// A request that was read, before it is embedded.
struct Asked<'a> {
    wanted: Wanted,
    query: Query,
    volume: Arc<Volume>,
    arriving: super::queue::Arriving,
    /// Held until the answer is there.
    _place: SemaphorePermit<'a>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Server {
    /// Reads a query, within the limits.
    async fn asked(&self, request: Request) -> Result<Asked<'_>, Refusal> {
        let (head, body) = request.into_parts();
        let arriving = self.queue.arriving();
        let body::Read { bytes, room } = body::read(&head.headers, body, &self.limits, &self.bodies).await?;
        // A body that comes slowly takes nobody's place.
        let place = self.requests.try_acquire().map_err(|_| body::too_many(&self.limits))?;
        let mut wanted = Wanted::read(&head.headers, bytes).await?;
        wanted.check(&self.limits)?;
        let volume = self.library.current();
        let query = self.query(&mut wanted, &volume).await?;
        Ok(Asked { wanted, query, volume, arriving, _place: place, _room: room })
    }

    /// How long it takes to embed a sentence. One check at a time: those who ask meanwhile, or soon after, are told the same.
    async fn health(&self) -> Result<Duration, Refusal> {
        let mut checked = self.checked.lock().await;
        if let Some((when, outcome)) = &*checked
            && when.elapsed() < HEALTH_KEPT
        {
            return outcome.clone();
        }
        let began = Instant::now();
        let query = Query::of_text(HEALTH_SENTENCE);
        let done = self.queue.ask(self.library.current(), query, Work::Embed, None).await;
        let outcome = done.map(|_| began.elapsed());
        *checked = Some((Instant::now(), outcome.clone()));
        outcome
    }

    async fn ask(&self, asked: Asked<'_>, work: Work) -> Result<(Arc<Volume>, Done), Refusal> {
        let Asked { query, volume, arriving, _place, _room, .. } = asked;
        let done = self.queue.ask(Arc::clone(&volume), query, work, Some(arriving)).await?;
        Ok((volume, done))
    }

    /// The query without what only says how it is answered.
    async fn query(&self, wanted: &mut Wanted, volume: &Arc<Volume>) -> Result<Query, Refusal> {
        let item = match &wanted.item {
            Some(id) => Some(ItemId::parse(id).and_then(|id| volume.position(id)).ok_or_else(no_item)?),
            None => None,
        };
        let image = match wanted.image.take() {
            Some(bytes) => Some(self.prepared(volume, bytes).await?),
            None => None,
        };
        let Weights { image: of_image, minus: of_minus } = Weights::default();
        Ok(Query {
            text: wanted.text.take(),
            image,
            item,
            minus: std::mem::take(&mut wanted.minus),
            weights: Weights {
                image: wanted.image_weight.unwrap_or(of_image),
                minus: wanted.minus_weight.unwrap_or(of_minus),
            },
        })
    }

    async fn manner(&self, wanted: &Wanted, volume: &Arc<Volume>) -> Result<Manner, Refusal> {
        let collapse = wanted.duplicates == Some(WantedDuplicates::Collapse);
        if wanted.min_confidence.is_some() && volume.engine.shelf.confidence.is_none() {
            return Err(Refusal::bad("`min_confidence`: this index has no query bank")
                .hint("index again with --query-bank SENTENCES"));
        }
        let rerank = match self.rerank {
            Some(rerank) => rerank,
            None if volume.engine.bundle.encoder().config().head_only => Rerank::All,
            None => Rerank::First(100),
        };
        Ok(Manner {
            k: wanted.k.unwrap_or(RESULTS),
            plain: wanted.plain,
            rerank: stages_of(&volume.engine.bundle, rerank),
            same_above: collapse.then(|| wanted.duplicate_threshold.unwrap_or(DEFAULT_THRESHOLD)),
            min_confidence: wanted.min_confidence,
            exact: wanted.exact,
            selection: self.selection(wanted.filter.filter(volume), volume).await?,
        })
    }

    /// What a filter lets through: worked out before the query waits for the encoder, which then has nothing to do with it.
    async fn selection(
        &self,
        filter: Filter,
        volume: &Arc<Volume>,
    ) -> Result<Option<Arc<Selection>>, Refusal> {
        if filter.is_empty() {
            return Ok(None);
        }
        if let Some(known) = volume.engine.known_selection(&filter) {
            return Ok(Some(known));
        }
        let place = self.place(&self.selecting, "the filter", "worked out").await?;
        let volume = Arc::clone(volume);
        let work = move || {
            let _place = place;
            volume.engine.selection_of(&filter).map_err(|error| queue::refusal_of(&error))
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Refusal::failed("the filter could not be worked out"))?
    }

    /// Decodes an image and resizes it to what the model takes.
    async fn prepared(&self, volume: &Arc<Volume>, bytes: Bytes) -> Result<PreparedImage, Refusal> {
        let place = self.place(&self.decoding, "the image", "decoded").await?;
        let (volume, limits) = (Arc::clone(volume), self.limits.images());
        let work = move || {
            let _place = place;
            let encoder = volume.engine.bundle.encoder_of_images();
            let encoder = encoder.map_err(|error| Refusal::bad(error.to_string()))?;
            let image = decode_bytes(&bytes, &limits).map_err(|error| refusal_of_image(&error))?;
            encoder.preprocessor().prepare(&image).map_err(|error| Refusal::bad(error.to_string()))
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Refusal::failed("the image could not be decoded"))?
    }

    /// Waits for the turn of `what` to be `done`, as long as for the encoder.
    async fn place(
        &self,
        places: &Arc<Semaphore>,
        what: &str,
        done: &str,
    ) -> Result<OwnedSemaphorePermit, Refusal> {
        let place = Arc::clone(places).acquire_owned();
        match tokio::time::timeout(self.limits.queue_timeout, place).await {
            Ok(Ok(place)) => Ok(place),
            _ => {
                let seconds = whole_seconds(self.limits.queue_timeout);
                Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("too busy: {what} waited for {seconds} s to be {done}"),
                )
                .limit(limits::QUEUE, seconds)
                .retry_after(1))
            }
        }
    }

    fn find(&self, id: Result<Path<String>, PathRejection>) -> Result<(Arc<Volume>, usize), Refusal> {
        let volume = self.library.current();
        let Path(id) = id.map_err(|_| no_item())?;
        let position = ItemId::parse(&id).and_then(|id| volume.position(id)).ok_or_else(no_item)?;
        Ok((volume, position))
    }
}

fn no_item() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "no such item in this index")
        .hint("an id is 16 hexadecimal digits, as a search gives it")
}

fn refusal_of_image(error: &DataError) -> Refusal {
    match error {
        DataError::ImageTooLarge { width, height, .. } => too_large(*width, *height, error),
        _ => Refusal::bad(format!("the image can't be used: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let routes: BTreeSet<&str> = locked().iter().chain(open().iter()).map(|(path, _)| *path).collect();
        let interface = Interface::openapi();
        let described: BTreeSet<&str> = interface.paths.paths.keys().map(String::as_str).collect();
        assert_eq!(routes, described);
    }
}
