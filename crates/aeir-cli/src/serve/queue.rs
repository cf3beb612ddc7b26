//! The one place where queries are embedded: a thread with the encoder, and a bounded queue before it.
//!
//! Queries that wait at the same time are embedded and searched together. Nobody waits for company that is not on its way.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use axum::http::StatusCode;
use tokio::sync::oneshot;

use super::library::Volume;
use super::limits::{self, LimitFlags, whole_seconds};
use super::measures;
use super::refusal::Refusal;
use crate::search_engine::{Answer, Asked, Manner, Query, QueryError, SearchEngine};
use crate::terminal::Terminal;

/// What is wanted of a query.
pub(super) enum Work {
    /// Its vector.
    Embed,
    /// Its results.
    Search(Manner),
}

/// What came of it.
pub(super) enum Done {
    Vector(Vec<f32>),
    Answer(Answer),
}

struct Job {
    query: Query,
    work: Work,
    volume: Arc<Volume>,
    claim: Claim,
    since: Instant,
    reply: oneshot::Sender<anyhow::Result<Done>>,
}

/// Who has a job: whoever asked, until the encoder takes it or the asker gives it up. Only one of the two can.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicU8>);

impl Claim {
    const TAKEN: u8 = 1;
    const GIVEN_UP: u8 = 2;

    fn claim(&self, by: u8) -> bool {
        self.0.compare_exchange(0, by, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The way to the encoder.
pub(super) struct Queue {
    sender: SyncSender<Job>,
    arriving: Arc<AtomicUsize>,
    longest: Duration,
}

/// A request that will bring a query, while its body and image are read.
pub(super) struct Arriving(Arc<AtomicUsize>);

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Queue {
    /// Starts the thread.
    pub(super) fn start(limits: &LimitFlags) -> anyhow::Result<Self> {
        // Beside requests there are checks of health.
        let (sender, receiver) = sync_channel(limits.max_requests + 8);
        let arriving = Arc::new(AtomicUsize::new(0));
        let encoder = Encoder {
            receiver,
            arriving: Arc::clone(&arriving),
            most: limits.max_batch,
            window: limits.batch_window,
        };
        let work = move || encoder.work();
        std::thread::Builder::new()
            .name("aeir-encoder".into())
            .spawn(work)
            .context("could not start a thread")?;
        Ok(Self { sender, arriving, longest: limits.queue_timeout })
    }

    /// Says that a query is on its way.
    pub(super) fn arriving(&self) -> Arriving {
        self.arriving.fetch_add(1, Ordering::AcqRel);
        Arriving(Arc::clone(&self.arriving))
    }

    /// Has a query answered. Refused where the encoder does not come to it in time.
    pub(super) async fn ask(
        &self,
        volume: Arc<Volume>,
        query: Query,
        work: Work,
        arriving: Option<Arriving>,
    ) -> Result<Done, Refusal> {
        let (reply, answer) = oneshot::channel();
        let claim = Claim::default();
        let job = Job { query, work, volume, claim: claim.clone(), since: Instant::now(), reply };
        measures::queued();
        match self.sender.try_send(job) {
            Ok(()) => drop(arriving),
            Err(TrySendError::Full(job)) => {
                measures::taken(job.since.elapsed());
                return Err(self.too_long());
            }
            Err(TrySendError::Disconnected(_)) => return Err(Refusal::failed("the encoder has ended")),
        }
        let mut answer = answer;
        let answered = match tokio::time::timeout(self.longest, &mut answer).await {
            Ok(answered) => answered,
            Err(_) if claim.claim(Claim::GIVEN_UP) => return Err(self.too_long()),
            // It is being worked on: a matter of moments.
            Err(_) => answer.await,
        };
        match answered {
            Ok(done) => done.map_err(|error| refusal_of(&error)),
            Err(_) => Err(Refusal::failed("the encoder failed on this query")),
        }
    }

    fn too_long(&self) -> Refusal {
        let seconds = whole_seconds(self.longest);
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("too busy: the query waited for {seconds} s"))
            .limit(limits::QUEUE, seconds)
            .hint("try again in a while")
            .retry_after(1)
    }
}

/// What an error of the search engine is answered with.
pub(super) fn refusal_of(error: &anyhow::Error) -> Refusal {
    match error.downcast_ref::<QueryError>() {
        Some(QueryError::Empty | QueryError::Cancelled) => Refusal::bad(error.to_string()),
        Some(QueryError::NoItem(_)) => Refusal::new(StatusCode::NOT_FOUND, error.to_string()),
        _ => match error.downcast_ref::<aeir_retrieve::Error>() {
            Some(aeir_retrieve::Error::NoMetadata { .. }) => {
                Refusal::bad("`filter`: the items of this index have no metadata")
            }
            _ => Refusal::failed(format!("{error:#}")),
        },
    }
}

/// The thread's side.
struct Encoder {
    receiver: Receiver<Job>,
    arriving: Arc<AtomicUsize>,
    most: usize,
    window: Duration,
}

impl Encoder {
    /// Until nobody can ask any more.
    fn work(&self) {
        let terminal = Terminal::new(true);
        while let Ok(first) = self.receiver.recv() {
            let batch = self.gather(first);
            // Of one index each: a new one may have come between two queries.
            for jobs in by_volume(batch) {
                let began = Instant::now();
                let size = jobs.len();
                // A panic on one query must not end the server. Those who wait see their reply dropped.
                let _ = catch_unwind(AssertUnwindSafe(|| answer(jobs, &terminal)));
                measures::batch(size, began.elapsed());
            }
        }
    }

    /// The first query, those that wait behind it, and those that come within the window while some are on their way.
    fn gather(&self, first: Job) -> Vec<Job> {
        let until = Instant::now() + self.window;
        let mut batch = Vec::new();
        keep(first, &mut batch);
        while batch.len() < self.most {
            match self.receiver.try_recv() {
                Ok(job) => keep(job, &mut batch),
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) if self.arriving.load(Ordering::Acquire) == 0 => break,
                Err(TryRecvError::Empty) => {
                    match self.receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                        Ok(job) => keep(job, &mut batch),
                        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                    }
                }
            }
        }
        batch
    }
}

/// Takes a job that somebody still waits for.
fn keep(job: Job, batch: &mut Vec<Job>) {
    measures::taken(job.since.elapsed());
    if !job.reply.is_closed() && job.claim.claim(Claim::TAKEN) {
        batch.push(job);
    }
}

fn by_volume(batch: Vec<Job>) -> Vec<Vec<Job>> {
    let mut groups: Vec<Vec<Job>> = Vec::new();
    for job in batch {
        let same = groups
            .iter_mut()
            .find(|group| group.first().is_some_and(|first| Arc::ptr_eq(&first.volume, &job.volume)));
        match same {
            Some(group) => group.push(job),
            None => groups.push(vec![job]),
        }
    }
    groups
}

/// Embeds and searches a batch, and tells each who asked.
fn answer(jobs: Vec<Job>, terminal: &Terminal) {
    let Some(volume) = jobs.first().map(|job| Arc::clone(&job.volume)) else { return };
    let engine = &volume.engine;
    let queries: Vec<&Query> = jobs.iter().map(|job| &job.query).collect();
    let vectors: Vec<anyhow::Result<Vec<f32>>> = match engine.vectors(&queries) {
        Ok(vectors) => vectors.into_iter().map(|vector| vector.map_err(Into::into)).collect(),
        Err(error) if jobs.len() == 1 => vec![Err(error)],
        // Somebody's query is too much for the model: the others have their answer nevertheless.
        Err(_) => queries.iter().map(|query| alone(engine, query)).collect(),
    };
    let asked: Vec<Asked<'_>> = (jobs.iter().zip(&vectors))
        .filter_map(|(job, vector)| match (&job.work, vector) {
            (Work::Search(manner), Ok(vector)) => Some(Asked { query: &job.query, vector, manner }),
            _ => None,
        })
        .collect();
    let mut answers = engine.answers(&asked, terminal).into_iter();
    for (job, vector) in jobs.into_iter().zip(vectors) {
        let done = match (job.work, vector) {
            (_, Err(error)) => Err(error),
            (Work::Embed, Ok(vector)) => Ok(Done::Vector(vector)),
            (Work::Search(_), Ok(_)) => {
                answers.next().unwrap_or_else(|| Err(anyhow!("no answer"))).map(Done::Answer)
            }
        };
        // Whoever has gone meanwhile does not read it.
        let _ = job.reply.send(done);
    }
}

fn alone(engine: &SearchEngine, query: &Query) -> anyhow::Result<Vec<f32>> {
    Ok(engine.vectors(&[query])?.pop().unwrap_or(Err(QueryError::Empty))?)
}
