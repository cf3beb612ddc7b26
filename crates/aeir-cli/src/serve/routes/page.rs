//! The page: three files that are part of the program, and nothing from elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use super::Server;

const HTML: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/page.js");

pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/", get(page))
        .route("/style.css", get(|headers: HeaderMap| async move { asset(&headers, "text/css", STYLE) }))
        .route(
            "/page.js",
            get(|headers: HeaderMap| async move { asset(&headers, "text/javascript", SCRIPT) }),
        )
}

/// The page knows whether it has to ask for a key.
async fn page(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response {
    let html = HTML.replace(
        "data-locked=\"\"",
        if server.locked { "data-locked=\"yes\"" } else { "data-locked=\"no\"" },
    );
    asset(&headers, "text/html", &html)
}

/// A file that a browser keeps, and asks about each time: a new version of the program has a new one.
fn asset(headers: &HeaderMap, kind: &'static str, text: &str) -> Response {
    let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    let tag = hash.iter().take(8).fold(String::from("\""), |tag, byte| format!("{tag}{byte:02x}")) + "\"";
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, format!("{kind}; charset=utf-8"))], text.to_owned()).into_response()
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
