//! Flags of everything that speaks to a Milvus server. They are there in every build, so that one without the feature can say so.

#[cfg(feature = "milvus")]
use std::time::Duration;

#[cfg(feature = "milvus")]
use aeir_retrieve::{MilvusAccess, MilvusIndexKind, UploadOptions};
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

/// How a server is spoken to. A build without Milvus takes the flags to say that it is one, and reads none.
#[cfg_attr(not(feature = "milvus"), allow(dead_code, reason = "taken to be refused, never read"))]
#[derive(Args)]
pub(crate) struct MilvusFlags {
    /// With a Milvus collection: `user:password` or an API key
    #[arg(long, value_name = "TOKEN", hide_env_values = true, env = "AEIR_MILVUS_TOKEN")]
    pub(crate) milvus_token: Option<String>,
    /// With a Milvus collection: longest time for one request
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400), env = "AEIR_MILVUS_TIMEOUT")]
    pub(crate) milvus_timeout: u64,
}

/// What an upload does beside adding and replacing.
#[cfg_attr(not(feature = "milvus"), allow(dead_code, reason = "taken to be refused, never read"))]
#[derive(Args)]
pub(crate) struct UploadFlags {
    /// With --to: which index the server has of the vectors [default: the one that is there, or flat]
    #[arg(long, value_enum, value_name = "KIND", env = "AEIR_MILVUS_INDEX")]
    pub(crate) milvus_index: Option<MilvusIndexFlag>,
    /// With --to: drop a collection that is of another model or another kind, with all in it, and make it anew
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_OVERWRITE")]
    pub(crate) overwrite: bool,
    /// With --to: delete images of the collection that are not in this index
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_DELETE_OTHERS")]
    pub(crate) delete_others: bool,
    #[command(flatten)]
    pub(crate) milvus: MilvusFlags,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MilvusIndexFlag {
    /// Look at every vector
    Flat,
    /// Walk a graph of near neighbours
    Hnsw,
    /// What the server thinks best
    Auto,
}

#[cfg(feature = "milvus")]
impl MilvusFlags {
    pub(crate) fn access(&self) -> MilvusAccess {
        let token = self.milvus_token.clone().filter(|token| !token.is_empty());
        MilvusAccess { token, timeout: Duration::from_secs(self.milvus_timeout) }
    }
}

#[cfg(feature = "milvus")]
impl UploadFlags {
    pub(crate) fn options(&self) -> UploadOptions {
        let kind = self.milvus_index.map(|kind| match kind {
            MilvusIndexFlag::Flat => MilvusIndexKind::Flat,
            MilvusIndexFlag::Hnsw => MilvusIndexKind::Hnsw,
            MilvusIndexFlag::Auto => MilvusIndexKind::Auto,
        });
        UploadOptions { overwrite: self.overwrite, delete_others: self.delete_others, kind }
    }
}
