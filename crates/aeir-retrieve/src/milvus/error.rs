//! What can go wrong with a collection, and what the client's errors mean.

use std::io;

use milvus::v2::error::Error as ClientError;

use super::MilvusPlace;
use crate::Error;

pub(super) type Result<T> = std::result::Result<T, MilvusError>;

/// Why a collection of a Milvus server can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MilvusError {
    /// A text that names no collection.
    #[error("`{text}` names no Milvus collection: {reason}")]
    Place {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing listens there, or the host is unknown.
    #[error("could not reach `{server}`: {source}")]
    Unreachable {
        /// Host and port.
        server: String,
        /// The system's own error.
        source: io::Error,
    },
    /// What listens there is no Milvus server, or one that is not ready.
    #[error("`{server}` does not answer as a Milvus server: {reason}")]
    NotMilvus {
        /// Host and port.
        server: String,
        /// What came instead.
        reason: String,
    },
    /// The server wants a token, or another one.
    #[error("`{server}` refuses {}: {reason}", if *with_token { "this token" } else { "a connection without a token" })]
    Denied {
        /// Host and port.
        server: String,
        /// Whether a token was given.
        with_token: bool,
        /// The server's words.
        reason: String,
    },
    /// The server has no such collection.
    #[error("`{place}`: there is no such collection")]
    NoCollection {
        /// The collection.
        place: MilvusPlace,
    },
    /// A collection that was not made by this crate, or in another way.
    #[error("`{place}` can't be used as an index: {reason}")]
    Foreign {
        /// The collection.
        place: MilvusPlace,
        /// What is missing or other.
        reason: String,
    },
    /// A collection holds items beside those of an index whose correction or confidence was worked out from all of its items.
    #[error(
        "`{place}` holds {others} items of other indexes: a correction or a confidence is of one index's items alone"
    )]
    OtherItems {
        /// The collection.
        place: MilvusPlace,
        /// How many.
        others: usize,
    },
    /// Something of an item is longer than a collection takes.
    #[error("{what} of item `{item}`: expected {limit} at most, got {got}")]
    TooLong {
        /// The item; shortened.
        item: String,
        /// What of it, in words.
        what: &'static str,
        /// The longest there may be.
        limit: usize,
        /// Its length.
        got: usize,
    },
    /// After an upload the collection does not hold what was sent.
    #[error("`{place}`: expected {expected} items after the upload, got {got}")]
    Count {
        /// The collection.
        place: MilvusPlace,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// No answer in time.
    #[error("`{place}`: {doing} took longer than {seconds} s")]
    Timeout {
        /// The collection.
        place: MilvusPlace,
        /// What was under way.
        doing: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The connection broke and did not come back.
    #[error("`{place}`: the connection broke while {doing}: {reason}")]
    Broken {
        /// The collection.
        place: MilvusPlace,
        /// What was under way.
        doing: &'static str,
        /// The transport's words.
        reason: String,
    },
    /// The server refuses a request.
    #[error("`{place}`: {doing} failed: {reason} (Milvus error {code})")]
    Server {
        /// The collection.
        place: MilvusPlace,
        /// What was under way.
        doing: &'static str,
        /// Milvus's error code.
        code: i32,
        /// The server's words.
        reason: String,
    },
    /// Something that has nothing to do with the server: the index, the query, another model.
    #[error(transparent)]
    Index(#[from] Error),
    /// An answer that is not what was asked for.
    #[error("`{place}`: {doing} brought an answer that can't be read: {reason}")]
    Answer {
        /// The collection.
        place: MilvusPlace,
        /// What was under way.
        doing: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// gRPC's status codes.
mod grpc {
    pub(super) const CANCELLED: i32 = 1;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// Milvus's own: a collection that is not there, in its two numberings, and a user who may not.
const COLLECTION_NOT_FOUND: i32 = 100;
const LEGACY_COLLECTION_NOT_FOUND: i32 = 4;
const PRIVILEGES: std::ops::RangeInclusive<i32> = 1400..=1402;

/// What was under way when a call failed.
pub(super) struct Call<'a> {
    pub(super) place: &'a MilvusPlace,
    pub(super) with_token: bool,
    pub(super) doing: &'static str,
    pub(super) seconds: u64,
}

impl Call<'_> {
    /// The client's error in our words.
    pub(super) fn failed(&self, error: ClientError) -> MilvusError {
        let (place, doing) = (self.place.clone(), self.doing);
        match error {
            ClientError::RetryExhausted { source, .. } => self.failed(*source),
            ClientError::Timeout(_) => MilvusError::Timeout { place, doing, seconds: self.seconds },
            ClientError::Grpc(status) => {
                let (code, reason) = (status.code() as i32, status.message().to_owned());
                match code {
                    grpc::UNAUTHENTICATED | grpc::PERMISSION_DENIED => self.denied(reason),
                    grpc::CANCELLED | grpc::DEADLINE_EXCEEDED => {
                        MilvusError::Timeout { place, doing, seconds: self.seconds }
                    }
                    grpc::INVALID_ARGUMENT | grpc::RESOURCE_EXHAUSTED | grpc::UNIMPLEMENTED => {
                        MilvusError::Server { place, doing, code, reason }
                    }
                    // How the client says that an answer is too long for it.
                    grpc::OUT_OF_RANGE => MilvusError::Answer { place, doing, reason },
                    _ => MilvusError::Broken { place, doing, reason },
                }
            }
            ClientError::Server(error) => {
                let (code, reason) = (error.code(), error.reason().to_owned());
                if code == COLLECTION_NOT_FOUND
                    || (code == 0 && error.legacy_code() == LEGACY_COLLECTION_NOT_FOUND)
                {
                    MilvusError::NoCollection { place }
                } else if PRIVILEGES.contains(&code) {
                    self.denied(reason)
                } else {
                    MilvusError::Server { place, doing, code, reason }
                }
            }
            other => MilvusError::Answer { place, doing, reason: other.to_string() },
        }
    }

    /// An error of the first call, before anything is known of who answers.
    pub(super) fn not_connected(&self, error: ClientError) -> MilvusError {
        match self.failed(error) {
            denied @ MilvusError::Denied { .. } => denied,
            MilvusError::Timeout { seconds, .. } => MilvusError::NotMilvus {
                server: self.place.server(),
                reason: format!("no answer within {seconds} s"),
            },
            MilvusError::Broken { reason, .. }
            | MilvusError::Server { reason, .. }
            | MilvusError::Answer { reason, .. } => {
                MilvusError::NotMilvus { server: self.place.server(), reason }
            }
            other => other,
        }
    }

    fn denied(&self, reason: String) -> MilvusError {
        MilvusError::Denied { server: self.place.server(), with_token: self.with_token, reason }
    }
}
