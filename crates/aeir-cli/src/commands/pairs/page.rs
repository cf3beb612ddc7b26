//! The page to look through mined pairs: no scripts, no network, pictures inside.

use std::path::Path;

use aeir_data::ImageLimits;
use base64::Engine;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Pair, thumbnail};
use crate::report::GENERATOR;

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;color:#1f2933;background:#f5f6f8;margin:0}\
main{max-width:1120px;margin:0 auto;padding:24px 16px}\
h1{font-size:24px;margin:0 0 4px}p{max-width:75ch;margin:4px 0 16px}\
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:12px}\
.pair{background:#fff;border:1px solid #dde1e6;border-radius:8px;padding:10px;display:flex;gap:10px}\
.pair img,.pair .none{width:84px;height:84px;object-fit:contain;flex:none}\
.pair .none{background:#e8ebee;font-size:11px;color:#66717d;display:flex;align-items:center;justify-content:center;text-align:center}\
.pair div.text{min-width:0;overflow-wrap:anywhere}\
.sure{height:5px;background:#e4e7eb;border-radius:3px;margin:5px 0 3px}\
.sure i{display:block;height:5px;border-radius:3px;background:#2a7f9e}\
small{color:#52606d;display:block}.mutual{color:#2a7f9e}";

/// Pairs on a page: more would take a browser minutes.
const MOST: usize = 1_000;

/// The page of pairs that a model found, the surest first.
pub(super) fn html(pairs: &[Pair<'_>], model: &Path, limits: &ImageLimits) -> String {
    let shown = spread(pairs.len());
    let mutual = pairs.iter().filter(|pair| pair.mutual).count();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content=(GENERATOR);
                title { "Mined pairs" }
                style { (PreEscaped(STYLE)) }
            }
            body { main {
                h1 { (pairs.len()) " mined pairs" }
                p {
                    "Model " code { (model.display()) } ". The surest first"
                    @if shown.len() < pairs.len() { "; " (shown.len()) " of them, evenly spread" }
                    ". " (mutual) " are each other's nearest (◆). The bar is the confidence: the share of the image's mass "
                    "that the sentence gets, or of a softmax over all sentences. Below it the next best sentences."
                }
                div.pairs {
                    @for pair in shown.iter().filter_map(|place| pairs.get(*place)) { (card(pair, limits)) }
                }
            } }
        }
    }
    .into_string()
}

/// Places of pairs to show: all, or evenly spread ones.
fn spread(count: usize) -> Vec<usize> {
    let shown = count.min(MOST);
    (0..shown).map(|place| place * count / shown.max(1)).collect()
}

fn card(pair: &Pair<'_>, limits: &ImageLimits) -> Markup {
    html! {
        div.pair title=(pair.image) {
            @match thumbnail(pair.source, limits) {
                Some(bytes) => {
                    img alt=(pair.sentence) loading="lazy"
                        src=(format!("data:image/jpeg;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes)));
                }
                None => { div.none { "no picture" } }
            }
            div.text {
                (pair.sentence)
                div.sure { i style=(format!("width:{:.0}%", 100.0 * pair.confidence)) {} }
                small {
                    (format!("{:.2}", pair.confidence)) " · cosine " (format!("{:.2}", pair.score))
                    @if pair.mutual { span.mutual { " ◆" } }
                }
                @for other in &pair.alternatives {
                    small { "or: " (other.sentence) " (" (format!("{:.2}", other.confidence)) ")" }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_spread_over_the_page() {
        assert_eq!(spread(3), [0, 1, 2]);
        assert!(spread(0).is_empty());
        let places = spread(2 * MOST);
        assert_eq!((places.len(), places[1], places[MOST - 1]), (MOST, 2, 2 * MOST - 2));
    }
}
