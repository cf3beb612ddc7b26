//! One connection to a server: blocking calls, each with a limit and an error that says what was under way.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use milvus::v2::ClientV2;
use milvus::v2::error::Result as ClientResult;
use milvus::v2::request::collection::{
    AlterCollectionPropertiesRequest, CreateCollectionRequest, DescribeCollectionRequest,
    DropCollectionPropertiesRequest, DropCollectionRequest, HasCollectionRequest, LoadCollectionRequest,
    ReleaseCollectionRequest,
};
use milvus::v2::request::dml::{DeleteRequest, InsertRequest, UpsertRequest};
use milvus::v2::request::dql::{QueryRequest, SearchRequest};
use milvus::v2::request::index::{CreateIndexRequest, DescribeIndexRequest, DropIndexRequest};
use milvus::v2::types::{
    CollectionDesc, ConnectConfig, ConsistencyLevel, FieldData, Ids, MetricType, QueryResults, RetryConfig,
    SearchVectors, TelemetryConfig,
};
use tokio::runtime::{Builder, Runtime};

use super::error::{Call, Result};
use super::layout::{ITEM, Layout, VECTOR};
use super::{MilvusError, MilvusIndexKind, MilvusPlace};

/// Until it is known who answers.
const CONNECTING: Duration = Duration::from_secs(10);
/// A server reads what it holds of a collection when it loads it.
const LOADING: Duration = Duration::from_secs(30 * 60);
/// Attempts of a call that can be repeated.
const ATTEMPTS: u32 = 6;

/// How a server is spoken to.
#[derive(Clone)]
pub struct MilvusAccess {
    /// `user:password` or an API key.
    pub token: Option<String>,
    /// Longest time for one request, with its repetitions.
    pub timeout: Duration,
}

impl Default for MilvusAccess {
    fn default() -> Self {
        Self { token: None, timeout: Duration::from_secs(60) }
    }
}

impl std::fmt::Debug for MilvusAccess {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "..");
        formatter.debug_struct("MilvusAccess").field("token", &token).field("timeout", &self.timeout).finish()
    }
}

pub(super) struct Connection {
    place: MilvusPlace,
    access: MilvusAccess,
    // Before the runtime that it runs on.
    client: ClientV2,
    runtime: Runtime,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connection").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn open(place: &MilvusPlace, access: &MilvusAccess) -> Result<Self> {
        let limit = access.timeout.min(CONNECTING);
        let unreachable = |source| MilvusError::Unreachable { server: place.server(), source };
        // The client would try until the limit and say no more than that it passed.
        reach(place, limit).map_err(unreachable)?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(unreachable)?;
        let retry = RetryConfig::new().max_attempts(ATTEMPTS).max_retry_timeout(access.timeout);
        let mut config = ConnectConfig::new()
            .uri(place.uri())
            .secure(place.is_secure())
            .connect_timeout(limit)
            .rpc_timeout(access.timeout)
            .retry(retry)
            // It would report on its user every few seconds.
            .telemetry(TelemetryConfig::new().enabled(false));
        if let Some(token) = &access.token {
            config = config.token(token);
        }
        if let Some(database) = place.database() {
            config = config.database(database);
        }
        let client = runtime.block_on(ClientV2::new(&config)).map_err(|error| {
            let call = Call {
                place,
                with_token: access.token.is_some(),
                doing: "connecting",
                seconds: limit.as_secs(),
            };
            call.not_connected(error)
        })?;
        Ok(Self { place: place.clone(), access: access.clone(), client, runtime })
    }

    pub(super) fn place(&self) -> &MilvusPlace {
        &self.place
    }

    fn call<T>(
        &self,
        doing: &'static str,
        limit: Duration,
        work: impl Future<Output = ClientResult<T>>,
    ) -> Result<T> {
        self.runtime.block_on(work).map_err(|error| {
            let with_token = self.access.token.is_some();
            Call { place: &self.place, with_token, doing, seconds: limit.as_secs() }.failed(error)
        })
    }

    /// A call within the limit that the user set.
    fn within<T>(&self, doing: &'static str, work: impl Future<Output = ClientResult<T>>) -> Result<T> {
        self.call(doing, self.access.timeout, work)
    }

    /// What an answer lacks.
    pub(super) fn unreadable(&self, doing: &'static str, reason: impl Into<String>) -> MilvusError {
        MilvusError::Answer { place: self.place.clone(), doing, reason: reason.into() }
    }

    fn name(&self) -> &str {
        self.place.collection()
    }

    /// The collection, if there is one.
    pub(super) fn describe(&self) -> Result<Option<CollectionDesc>> {
        self.within("looking for the collection", async {
            let request = HasCollectionRequest::builder().collection_name(self.name()).build()?;
            if !self.client.has_collection(request).await?.exists() {
                return Ok(None);
            }
            let request = DescribeCollectionRequest::builder().collection_name(self.name()).build()?;
            Ok(Some(self.client.describe_collection(request).await?.description().clone()))
        })
    }

    pub(super) fn create(&self, layout: &Layout) -> Result<()> {
        self.within("making the collection", async {
            let request = CreateCollectionRequest::builder()
                .collection_name(self.name())
                .description(format!("aeir index of model {}", layout.model))
                .schema(layout.schema())
                .properties(layout.properties())
                .build()?;
            self.client.create_collection(request).await
        })
    }

    pub(super) fn drop_collection(&self) -> Result<()> {
        self.within("dropping the collection", async {
            let request = DropCollectionRequest::builder().collection_name(self.name()).build()?;
            self.client.drop_collection(request).await
        })
    }

    pub(super) fn set_properties(&self, properties: HashMap<String, String>) -> Result<()> {
        self.within("setting the collection's properties", async {
            let request = AlterCollectionPropertiesRequest::builder()
                .collection_name(self.name())
                .properties(properties)
                .build()?;
            self.client.alter_collection_properties(request).await
        })
    }

    pub(super) fn drop_properties(&self, keys: Vec<String>) -> Result<()> {
        self.within("setting the collection's properties", async {
            let request = DropCollectionPropertiesRequest::builder()
                .collection_name(self.name())
                .property_keys(keys)
                .build()?;
            self.client.drop_collection_properties(request).await
        })
    }

    /// Has the server build its index of the vectors, where there is none yet or one of another kind than is asked for. It does so in the
    /// background.
    pub(super) fn ensure_index(&self, kind: Option<MilvusIndexKind>) -> Result<()> {
        let wanted = kind.unwrap_or_default().parameters();
        self.within("making the server's index", async {
            let name = self.name();
            let request = DescribeIndexRequest::builder().collection_name(name).field_name(VECTOR).build()?;
            // An error is how a server says that there is none.
            let found = self.client.describe_index(request).await;
            if let Some(old) = found.as_ref().ok().and_then(|found| found.indexes().first()) {
                if kind.is_none() || old.get_index_type() == wanted.get_index_type() {
                    return Ok(());
                }
                let request = ReleaseCollectionRequest::builder().collection_name(name).build()?;
                self.client.release_collection(request).await?;
                let request = DropIndexRequest::builder()
                    .collection_name(name)
                    .field_name(VECTOR)
                    .index_name(old.get_index_name())
                    .build()?;
                self.client.drop_index(request).await?;
            }
            let request = CreateIndexRequest::builder()
                .collection_name(name)
                .index_params(vec![wanted])
                .sync(false)
                .build()?;
            self.client.create_index(request).await
        })
    }

    /// Has the server hold the collection ready for searches, if it does not yet.
    pub(super) fn load(&self) -> Result<()> {
        self.call("loading the collection", LOADING, async {
            let request = LoadCollectionRequest::builder()
                .collection_name(self.name())
                .timeout_ms(i64::try_from(LOADING.as_millis()).unwrap_or(i64::MAX))
                .build()?;
            self.client.load_collection(request).await
        })
    }

    /// How many entities there are.
    pub(super) fn count(&self) -> Result<usize> {
        const DOING: &str = "counting the items";
        const COUNT: &str = "count(*)";
        let results = self.within(DOING, async {
            let request = QueryRequest::builder()
                .collection_name(self.name())
                .output_fields([COUNT])
                .consistency_level(ConsistencyLevel::Strong)
                .build()?;
            self.client.query(request).await.map(|response| response.results().clone())
        })?;
        let count =
            results.get_output_field(COUNT).and_then(FieldData::as_int64).and_then(|counts| counts.first());
        let count = count.and_then(|count| usize::try_from(*count).ok());
        count.ok_or_else(|| self.unreadable(DOING, "there is no number in it"))
    }

    /// Fields of the entities that an expression lets through, `limit` at most where there is one: then in the order of their names.
    pub(super) fn query(
        &self,
        doing: &'static str,
        expression: &str,
        fields: &[&str],
        limit: Option<usize>,
    ) -> Result<QueryResults> {
        self.within(doing, async {
            let mut request = QueryRequest::builder()
                .collection_name(self.name())
                .filter(expression)
                .output_fields(fields.iter().copied())
                .consistency_level(ConsistencyLevel::Strong);
            if let Some(limit) = limit {
                let ordered = HashMap::from([("iterator".to_owned(), "True".to_owned())]);
                request = request.limit(i64::try_from(limit).unwrap_or(i64::MAX)).extra_params(ordered);
            }
            self.client.query(request.build()?).await.map(|response| response.results().clone())
        })
    }

    /// Names of the candidates of each query.
    pub(super) fn search(
        &self,
        queries: &[Vec<f32>],
        limit: usize,
        filter: &str,
    ) -> Result<Vec<Vec<String>>> {
        const DOING: &str = "searching";
        let results = self.within(DOING, async {
            let request = SearchRequest::builder()
                .collection_name(self.name())
                .vector_field(VECTOR)
                .metric_type(MetricType::Ip)
                .vectors(SearchVectors::Float(queries.to_vec()))
                .filter(filter)
                .output_fields([ITEM])
                .limit(i64::try_from(limit).unwrap_or(i64::MAX))
                .consistency_level(ConsistencyLevel::Strong)
                .build()?;
            self.client.search(request).await.map(|response| response.results().clone())
        })?;
        let mut names: Vec<Vec<String>> = Vec::with_capacity(queries.len());
        for result in results.iter() {
            match result.get_ids() {
                Ids::VarChar(ids) => names.push(ids.clone()),
                // Of no results the kind is not told.
                ids if ids.is_empty() => names.push(Vec::new()),
                _ => return Err(self.unreadable(DOING, "items without names")),
            }
        }
        if names.is_empty() {
            names.resize_with(queries.len(), Vec::new);
        }
        if names.len() == queries.len() {
            return Ok(names);
        }
        Err(self.unreadable(DOING, format!("expected {} lists, got {}", queries.len(), names.len())))
    }

    /// Adds entities, in the place of those of the same names; how many the server took.
    pub(super) fn upsert(&self, columns: Vec<FieldData>) -> Result<usize> {
        let count = self.within("sending items", async {
            let insert = InsertRequest::builder().collection_name(self.name()).columns(columns).build()?;
            let request = UpsertRequest::builder().insert(insert).build()?;
            self.client.upsert(request).await.map(|response| response.upsert_count())
        })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(super) fn delete(&self, expression: &str) -> Result<()> {
        self.within("deleting items", async {
            let request = DeleteRequest::builder().collection_name(self.name()).filter(expression).build()?;
            self.client.delete(request).await.map(|_| ())
        })
    }
}

/// Whether anything listens there.
fn reach(place: &MilvusPlace, limit: Duration) -> io::Result<()> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (place.host(), place.port()).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
