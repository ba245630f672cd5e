//! A proxy between an operator and the API server that makes faults: it counts writes and leaves one unanswered, holds one
//! back, delays or swallows what watches say, and is away for a while. It decides nothing about them; tests do.

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{Method, StatusCode};
use kube::{Client, Config};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;

/// The longest request that is passed on, in bytes.
const LONGEST: usize = 16 << 20;

/// Where Events are written.
const EVENTS: &str = "/apis/events.k8s.io/";

/// What goes wrong.
#[derive(Clone, Debug, Default)]
struct Faults {
    /// Writes that are still passed on, besides Events: nothing follows from those. The last one is performed and never answered;
    /// those after it are not performed, Events neither.
    writes_left: Option<u32>,
    /// Whether that last one has been performed.
    cut: bool,
    /// Writes with this in their path are held back.
    held_back: Option<String>,
    /// Whether one has come.
    holds: bool,
    /// What watches say comes this much later.
    delay: Duration,
    /// What watches say is lost.
    deaf: bool,
    /// Watches that want to go on from where they were are told that it is too old, each once: by path.
    forgetful: Option<HashSet<String>>,
    /// Nothing is answered.
    away: bool,
}

/// A running proxy.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    faults: Mutex<Faults>,
    /// When each write was passed on, and what it was.
    writes: Mutex<Vec<(Instant, String)>>,
    /// Raised to end the watches that run.
    round: watch::Sender<u64>,
}

impl Proxy {
    /// Starts one that makes no faults yet.
    ///
    /// # Errors
    /// When the cluster's configuration can't be read or no port is free.
    pub async fn start() -> Result<Self> {
        let mut config = Config::infer().await.context("reading the cluster's configuration")?;
        // Requests keep the identity that they come with.
        config.auth_info = kube::config::AuthInfo::default();
        let shared = Arc::new(Shared {
            client: Client::try_from(config)?,
            faults: Mutex::default(),
            writes: Mutex::default(),
            round: watch::Sender::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(pass).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, shared })
    }

    /// Leaves the n-th write from now on unanswered, and performs none after it. Events are not counted.
    pub fn cut_after(&self, writes: u32) {
        self.change(|faults| (faults.writes_left, faults.cut) = (Some(writes), false));
    }

    /// Whether that write has been performed.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.shared.faults().cut
    }

    /// From now on a write with this in its path is neither performed nor answered before the proxy recovers, and refused then.
    pub fn hold_back(&self, path: &str) {
        self.change(|faults| (faults.held_back, faults.holds) = (Some(path.to_owned()), false));
    }

    /// Whether such a write has come.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.shared.faults().holds
    }

    /// From now on watches learn everything this much later.
    pub fn delay(&self, delay: Duration) {
        self.change(|faults| faults.delay = delay);
    }

    /// From now on what watches say is lost.
    pub fn lose_events(&self) {
        self.change(|faults| faults.deaf = true);
    }

    /// Nothing is answered from now on, and watches end.
    pub fn go_away(&self) {
        self.change(|faults| faults.away = true);
        self.end_watches();
    }

    /// No more faults: what was held back is refused. Watches begin anew; with `forgetful` they can't go on from where they were.
    pub fn recover(&self, forgetful: bool) {
        let forgetful = forgetful.then(HashSet::new);
        self.change(|faults| *faults = Faults { forgetful, ..Faults::default() });
        self.end_watches();
    }

    /// What was written since then, except Leases.
    #[must_use]
    pub fn writes_since(&self, since: Instant) -> Vec<String> {
        let writes = self.shared.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.iter().filter(|(at, _)| *at >= since).map(|(_, what)| what.clone()).collect()
    }

    fn end_watches(&self) {
        self.shared.round.send_modify(|round| *round += 1);
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shared {
    fn faults(&self) -> Faults {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a watch is told that where it was is too old.
    fn forgets(&self, path: &str) -> bool {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.forgetful.as_mut().is_some_and(|told| told.insert(path.to_owned()))
    }

    /// Whether a write is held back.
    fn holds_back(&self, path: &str) -> bool {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let held = faults.held_back.as_ref().is_some_and(|part| path.contains(part.as_str()));
        faults.holds |= held;
        held
    }

    /// Takes one of the writes that are left. `None`: there is none; `Some(true)`: it was the last.
    fn take_write(&self, what: String) -> Option<bool> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let last = match &mut faults.writes_left {
            None => false,
            Some(0) => return None,
            Some(_) if what.contains(EVENTS) => false,
            Some(left) => {
                *left -= 1;
                *left == 0
            }
        };
        self.writes.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), what));
        Some(last)
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let faults = shared.faults();
    if faults.away {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let (path, query) =
        (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    let watches = query.contains("watch=true");
    if watches && shared.forgets(&path) {
        let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410,"message":"too old"}"#;
        return (StatusCode::GONE, status).into_response();
    }
    let mut last = false;
    if request.method() != Method::GET && !path.contains("/leases") {
        let mut round = shared.round.subscribe();
        if shared.holds_back(&path) {
            // The proxy has recovered, or gone away.
            let _ = round.changed().await;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        match shared.take_write(format!("{} {path}", request.method())) {
            None => return std::future::pending().await,
            Some(is_last) => last = is_last,
        }
    }
    match forward(&shared.client, request).await {
        Ok(_) if last => {
            shared.faults.lock().unwrap_or_else(PoisonError::into_inner).cut = true;
            std::future::pending().await
        }
        Ok(response) if watches => watched(&shared, response),
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

async fn forward(client: &Client, request: Request) -> Result<Response> {
    let (mut parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, LONGEST).await?;
    // The client puts the API server's address there.
    parts.headers.remove(http::header::HOST);
    parts.uri = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default().parse()?;
    let request = http::Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
    Ok(client.send(request).await?.map(Body::new))
}

/// The answer to a watch, with the faults of the moment in which each part comes.
fn watched(shared: &Arc<Shared>, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let mut said = body.into_data_stream();
    let mut round = shared.round.subscribe();
    let (sender, receiver) = mpsc::unbounded_channel::<(Instant, Bytes)>();
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                part = said.next() => {
                    let Some(Ok(part)) = part else { return };
                    let faults = shared.faults();
                    if !faults.deaf && sender.send((Instant::now() + faults.delay, part)).is_err() {
                        return;
                    }
                }
                _ = round.changed() => return,
            }
        }
    });
    let parts_later = futures::stream::unfold(receiver, |mut receiver| async move {
        let (due, part) = receiver.recv().await?;
        sleep_until(due.into()).await;
        Some((Ok::<_, std::io::Error>(part), receiver))
    });
    Response::from_parts(parts, Body::from_stream(parts_later))
}
