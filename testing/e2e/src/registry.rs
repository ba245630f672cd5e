//! A registry of models as pods on the node see it: the real one as a local process, filled by a local Ollama, behind a TLS server
//! with an authority that nobody trusts, which can hold its answers back.

use crate::world::PATIENCE;
use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::header::{ACCEPT, HOST, LOCATION, RANGE};
use http::{Method, StatusCode};
use principium_local_cluster::cluster::paths::ADDRESS;
use principium_local_cluster::command::run;
use principium_local_cluster::tools::{Tools, existing_extra};
use principium_local_cluster::{Cache, models, repository};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

/// Name of the model in the registry.
const MODEL: &str = "library/smollm2:135m";
/// The pause after each piece of an answer while answers trickle: nothing at all would be taken for a failure.
const PAUSE: Duration = Duration::from_millis(250);

/// A running registry with one model. It ends when it is dropped.
pub struct Registry {
    /// The model's name, host and port included.
    pub model: String,
    /// The certificate of the authority, in PEM.
    pub certificate: String,
    /// How many bytes of answers pass before the rest only trickles.
    open: watch::Sender<u64>,
    processes: Vec<Child>,
    folder: PathBuf,
}

impl Registry {
    /// Starts one whose answers only trickle after so many bytes, until it is let go.
    ///
    /// # Errors
    /// When a program or the model is missing, or one of them does not start.
    pub async fn start(open: u64) -> Result<Self> {
        let cache = Cache::from_environment()?;
        let program = existing_extra(&cache, "registry")?
            .context("the registry is not built: `cargo xtask test` builds it")?
            .join("registry");
        let folder = std::env::temp_dir().join(format!("principium-e2e-registry-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let names = vec![ADDRESS.to_owned()];
        let made = rcgen::generate_simple_self_signed(names).context("making a certificate")?;
        let mut registry = Self {
            model: String::new(),
            certificate: made.cert.pem(),
            open: watch::Sender::new(open),
            processes: Vec::new(),
            folder,
        };
        let plain = registry.serve(&program).await?;
        registry.fill(&cache, plain).await?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        let listener = TcpListener::bind((ADDRESS, 0)).await.context("listening on the node's address")?;
        let port = listener.local_addr()?.port();
        registry.model = format!("{ADDRESS}:{port}/{MODEL}");
        let client = reqwest::Client::builder().no_proxy().build()?;
        let open = registry.open.subscribe();
        let front = Front { client, upstream: plain, port, passed: Arc::default(), open };
        let router = Router::new().fallback(pass).with_state(front);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move { axum::serve(Tls { listener, acceptor }, router).await });
        Ok(registry)
    }

    /// Lets all answers flow.
    pub fn let_go(&self) {
        self.open.send_replace(u64::MAX);
    }

    /// The real registry, without TLS, on a port that was free.
    async fn serve(&mut self, program: &Path) -> Result<SocketAddr> {
        let address = free_address().await?;
        let config = self.folder.join("registry.yaml");
        let store = self.folder.join("store");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}}}\n",
            store.display()
        );
        std::fs::write(&config, text)?;
        self.spawn("registry", Command::new(program).arg("serve").arg(&config))?;
        answers(address).await?;
        Ok(address)
    }

    /// Has an Ollama create the model and push it.
    async fn fill(&mut self, cache: &Cache, registry: SocketAddr) -> Result<()> {
        let ollama = Tools::existing(cache)?.path("ollama")?;
        let folder = models::fetch(cache.root(), &repository(), |_| {})?.smollm2;
        let address = free_address().await?;
        let home = self.folder.join("ollama");
        let command = || {
            let mut command = Command::new(&ollama);
            command.env("OLLAMA_HOST", address.to_string()).env("HOME", &home);
            command.env("OLLAMA_MODELS", home.join("models"));
            command
        };
        self.spawn("ollama", command().arg("serve"))?;
        answers(address).await?;
        let name = format!("{registry}/{MODEL}");
        run(command().args(["create", &name, "-f"]).arg(folder.join("Modelfile")))?;
        run(command().args(["push", "--insecure", &name])).map(drop)
    }

    fn spawn(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let log = std::fs::File::create(self.folder.join(format!("{name}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.processes.push(child.with_context(|| format!("starting {name}"))?);
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// An address on loopback that is free now.
async fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}

/// Waits until something listens there.
async fn answers(address: SocketAddr) -> Result<()> {
    let start = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        if start.elapsed() > PATIENCE {
            bail!("nothing listens on {address} after {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Accepts TLS connections for a server.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
            // Whoever does not trust the certificate ends the connection: that is what some tests want to see.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// What stands before the registry.
#[derive(Clone)]
struct Front {
    client: reqwest::Client,
    upstream: SocketAddr,
    port: u16,
    /// Bytes of answers so far, and how many pass freely.
    passed: Arc<AtomicU64>,
    open: watch::Receiver<u64>,
}

/// Passes a request on. Ollama wants a registry to name another host where the blobs lie, as those before object storage do: it
/// is this server, too, under its address as IPv6 writes it.
async fn pass(State(front): State<Front>, request: Request) -> Result<Response, StatusCode> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if path.contains("/blobs/") && request.method() == Method::GET && host.starts_with(ADDRESS) {
        let elsewhere = format!("https://[::ffff:{ADDRESS}]:{}{path}", front.port);
        return Ok((StatusCode::TEMPORARY_REDIRECT, [(LOCATION, elsewhere)]).into_response());
    }
    let mut asked =
        front.client.request(request.method().clone(), format!("http://{}{path}", front.upstream));
    for name in [ACCEPT, RANGE] {
        if let Some(value) = request.headers().get(&name) {
            asked = asked.header(name, value);
        }
    }
    let answer = asked.send().await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    let mut response = Response::new(Body::empty());
    (*response.status_mut(), *response.headers_mut()) = (answer.status(), answer.headers().clone());
    *response.body_mut() = Body::from_stream(answer.bytes_stream().then(move |piece| {
        let front = front.clone();
        async move {
            let bytes = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            if front.passed.fetch_add(bytes, Ordering::Relaxed) > *front.open.borrow() {
                tokio::time::sleep(PAUSE).await;
            }
            piece
        }
    }));
    Ok(response)
}
