//! What the published checkpoints call the parameters.

use super::HeadKind;

/// A tensor of a published checkpoint and the parameter of [`super::SimilarityHead`] that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedName {
    /// Name in the checkpoint, such as `sim_enc.sim_tranloc_w.weight`.
    pub released: String,
    /// Name under the head's builder, such as `local.weight`; none for a counter that is not used.
    pub ours: Option<String>,
}

/// Modules that both heads have: linear layers.
const LINEAR: [(&str, &str); 9] = [
    ("v_global_w.embedding_local.0", "image_attention.local"),
    ("v_global_w.embedding_global.0", "image_attention.global"),
    ("v_global_w.embedding_common.0", "image_attention.score"),
    ("t_global_w.embedding_local.0", "text_attention.local"),
    ("t_global_w.embedding_global.0", "text_attention.global"),
    ("t_global_w.embedding_common.0", "text_attention.score"),
    ("sim_tranloc_w", "local"),
    ("sim_tranglo_w", "global"),
    ("sim_eval_w", "score"),
];

/// Modules that both heads have: batch normalisations.
const BATCH_NORM: [(&str, &str); 2] = [
    ("v_global_w.embedding_local.1", "image_attention.local_norm"),
    ("v_global_w.embedding_global.1", "image_attention.global_norm"),
];

/// Every tensor of a published head, with the parameter that it is. Shapes agree: linear weights are `[out, in]`.
///
/// `graph_steps` counts for SGR alone. The list of a head without parameters is empty.
///
/// # Example
/// ```
/// use aeir_encoders::{HeadKind, released_names};
///
/// let names = released_names(HeadKind::Saf, 3);
/// assert!(names.iter().any(|name| name.released == "sim_enc.sim_tranloc_w.weight"
///     && name.ours.as_deref() == Some("local.weight")));
/// ```
#[must_use]
pub fn released_names(kind: HeadKind, graph_steps: usize) -> Vec<ReleasedName> {
    if !kind.has_parameters() {
        return Vec::new();
    }
    let owned = |(released, ours): &(&str, &str)| ((*released).to_owned(), (*ours).to_owned());
    let mut linear: Vec<(String, String)> = LINEAR.iter().map(owned).collect();
    let mut batch_norm: Vec<(String, String)> = BATCH_NORM.iter().map(owned).collect();
    if kind == HeadKind::Saf {
        linear.push(owned(&("SAF_module.attn_sim_w", "filter")));
        batch_norm.push(owned(&("SAF_module.bn", "filter.norm")));
    } else {
        let layers = [("graph_query_w", "query"), ("graph_key_w", "key"), ("sim_graph_w", "output")];
        linear.extend((0..graph_steps).flat_map(|step| {
            layers.map(|(released, ours)| {
                (format!("SGR_module.{step}.{released}"), format!("graph.{step}.{ours}"))
            })
        }));
    }
    let named = |(released, ours): &(String, String), part: &str, known: bool| ReleasedName {
        released: format!("sim_enc.{released}.{part}"),
        ours: known.then(|| format!("{ours}.{part}")),
    };
    let mut names = Vec::new();
    for module in &linear {
        names.extend(["weight", "bias"].map(|part| named(module, part, true)));
    }
    for module in &batch_norm {
        let parts = ["weight", "bias", "running_mean", "running_var"];
        names.extend(parts.map(|part| named(module, part, true)));
        names.push(named(module, "num_batches_tracked", false));
    }
    names
}
