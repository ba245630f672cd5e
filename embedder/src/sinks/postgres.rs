//! PostgreSQL with pgvector: one row a chunk, whose key is the chunk's id.

use super::{Chunk, SinkError, SinkServers};
use serde_json::{Value, json};
use std::error::Error as _;
use std::fmt::Write as _;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, config::SslMode};

/// A table.
pub struct Postgres {
    config: Config,
    /// Host and database, for messages; never the password.
    place: String,
    /// As it is written in SQL.
    table: String,
    connection: Option<Client>,
    /// Whether the table is known to be there with vectors of this width.
    dimension: Option<usize>,
}

impl Postgres {
    pub(super) fn new(table: &str, servers: &SinkServers) -> Result<Self, SinkError> {
        let Some(url) = &servers.postgres_url else {
            return Err(SinkError::Lasting(
                "there is no PostgreSQL database: set PRINCIPIUM_POSTGRES_URL for the process, from a Secret"
                    .to_owned(),
            ));
        };
        // Without the error's own words: they may repeat the password.
        let mut config: Config = url.parse().map_err(|_| {
            SinkError::Lasting(
                "PRINCIPIUM_POSTGRES_URL is no URL such as postgres://user:password@host:5432/database"
                    .to_owned(),
            )
        })?;
        config.application_name("principium-embedder").connect_timeout(std::time::Duration::from_secs(10));
        let hosts: Vec<String> = config.get_hosts().iter().map(|host| format!("{host:?}")).collect();
        let place = format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default());
        // The name was checked: letters, digits, '_' and '-'.
        let table = table.split('.').map(|part| format!("\"{part}\"")).collect::<Vec<_>>().join(".");
        Ok(Self { config, place, table, connection: None, dimension: None })
    }

    pub(super) async fn upsert(&mut self, chunks: &[Chunk]) -> Result<(), SinkError> {
        let Some(first) = chunks.first() else { return Ok(()) };
        self.ensure_table(first.vector.len()).await?;
        let rows: Vec<Value> = chunks.iter().map(row).collect();
        let statement = format!(
            "INSERT INTO {} ({COLUMNS}) SELECT {SELECTED} FROM jsonb_to_recordset($1::text::jsonb) AS x({TYPES}) \
             ON CONFLICT (chunk_id) DO UPDATE SET {}",
            self.table,
            updates()
        );
        self.execute(&statement, Value::from(rows).to_string()).await
    }

    pub(super) async fn delete(&mut self, corpus: &str, ids: &[String]) -> Result<(), SinkError> {
        let exists = self.query_one("SELECT to_regclass($1)::text", self.table.clone()).await?;
        if exists.is_none() {
            return Ok(());
        }
        let statement = format!(
            "DELETE FROM {} WHERE chunk_id IN (SELECT jsonb_array_elements_text($1::text::jsonb -> 'ids')) \
             AND corpus = $1::text::jsonb ->> 'corpus'",
            self.table
        );
        self.execute(&statement, json!({ "ids": ids, "corpus": corpus }).to_string()).await
    }

    /// Makes the extension and the table where they are missing, and holds the width of the vectors against the table's.
    async fn ensure_table(&mut self, dimension: usize) -> Result<(), SinkError> {
        if self.dimension == Some(dimension) {
            return Ok(());
        }
        let has_type = self.query_one("SELECT to_regtype($1)::text", "vector".to_owned()).await?;
        if has_type.is_none() {
            self.batch("CREATE EXTENSION IF NOT EXISTS vector").await?;
        }
        let table = format!(
            "CREATE TABLE IF NOT EXISTS {} (chunk_id text PRIMARY KEY, corpus text NOT NULL, document_id text NOT NULL, \
             title text, chunk_index bigint NOT NULL, start_byte bigint NOT NULL, end_byte bigint NOT NULL, \
             heading_path jsonb NOT NULL, first_page bigint, last_page bigint, text text NOT NULL, context text, tokens bigint NOT NULL, \
             model text NOT NULL, model_digest text NOT NULL, chunker text NOT NULL, metadata jsonb, \
             embedding vector({dimension}) NOT NULL)",
            self.table
        );
        self.batch(&table).await?;
        let question = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute \
                        WHERE attrelid = to_regclass($1) AND attname = 'embedding'";
        let found = self.query_one(question, self.table.clone()).await?.unwrap_or_default();
        if found.ends_with(&format!("vector({dimension})")) {
            self.dimension = Some(dimension);
            return Ok(());
        }
        Err(SinkError::Lasting(format!(
            "the table {} has {} for its column embedding, and the model makes vector({dimension}): name another table",
            self.table,
            if found.is_empty() { "nothing" } else { &found }
        )))
    }

    async fn execute(&mut self, statement: &str, parameter: String) -> Result<(), SinkError> {
        let result = self.client().await?.execute(statement, &[&parameter]).await;
        result.map(drop).map_err(|error| self.explain(&error))
    }

    async fn query_one(&mut self, question: &str, parameter: String) -> Result<Option<String>, SinkError> {
        let result = self.client().await?.query_opt(question, &[&parameter]).await;
        let row = result.map_err(|error| self.explain(&error))?;
        Ok(row.and_then(|row| row.get(0)))
    }

    async fn batch(&mut self, statement: &str) -> Result<(), SinkError> {
        let result = self.client().await?.batch_execute(statement).await;
        result.map_err(|error| self.explain(&error))
    }

    /// The connection, made anew where there is none or it is gone.
    async fn client(&mut self) -> Result<&Client, SinkError> {
        if self.connection.as_ref().is_none_or(Client::is_closed) {
            let client = if self.config.get_ssl_mode() == SslMode::Disable {
                let connected = self.config.connect(tokio_postgres::NoTls).await;
                let (client, connection) = connected.map_err(|error| self.explain(&error))?;
                tokio::spawn(connection);
                client
            } else {
                let tls = tokio_postgres_rustls::MakeRustlsConnect::new(crate::tls::config());
                let connected = self.config.connect(tls).await;
                let (client, connection) = connected.map_err(|error| self.explain(&error))?;
                tokio::spawn(connection);
                client
            };
            self.connection = Some(client);
        }
        self.connection.as_ref().ok_or_else(|| SinkError::Passing("the connection is gone".to_owned()))
    }

    /// What the server said about itself passes, such as a shutdown or a deadlock; what it said about the statement lasts.
    fn explain(&self, error: &tokio_postgres::Error) -> SinkError {
        let Some(said) = error.as_db_error() else {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            return SinkError::Passing(format!("PostgreSQL at {}: {error}{cause}", self.place));
        };
        let message = format!("PostgreSQL at {}: {} ({})", self.place, said.message(), said.code().code());
        let class = &said.code().code()[..2];
        // Connections, rollbacks, lack of resources, an operator's intervention, the system.
        let passes =
            matches!(class, "08" | "40" | "53" | "57" | "58") || *said.code() == SqlState::LOCK_NOT_AVAILABLE;
        if passes { SinkError::Passing(message) } else { SinkError::Lasting(message) }
    }
}

const COLUMNS: &str = "chunk_id, corpus, document_id, title, chunk_index, start_byte, end_byte, heading_path, first_page, \
                       last_page, text, context, tokens, model, model_digest, chunker, metadata, embedding";
const SELECTED: &str = "chunk_id, corpus, document_id, title, chunk_index, start_byte, end_byte, heading_path, first_page, \
                        last_page, text, context, tokens, model, model_digest, chunker, metadata, embedding::vector";
const TYPES: &str = "chunk_id text, corpus text, document_id text, title text, chunk_index bigint, start_byte bigint, \
                     end_byte bigint, heading_path jsonb, first_page bigint, last_page bigint, text text, context text, tokens bigint, model text, \
                     model_digest text, chunker text, metadata jsonb, embedding text";

fn updates() -> String {
    let mut updates = String::new();
    for column in COLUMNS.split(", ").filter(|column| *column != "chunk_id") {
        let comma = if updates.is_empty() { "" } else { ", " };
        // Writing to a String can't fail.
        let _ = write!(updates, "{comma}{column} = EXCLUDED.{column}");
    }
    updates
}

fn row(chunk: &Chunk) -> Value {
    let vector: Vec<String> = chunk.vector.iter().map(ToString::to_string).collect();
    without_nul(json!({
        "chunk_id": chunk.chunk_id,
        "corpus": chunk.corpus,
        "document_id": chunk.document_id,
        "title": chunk.title,
        "chunk_index": chunk.index,
        "start_byte": chunk.start,
        "end_byte": chunk.end,
        "heading_path": chunk.heading_path,
        "first_page": chunk.pages.map(|pages| pages.0),
        "last_page": chunk.pages.map(|pages| pages.1),
        "text": chunk.text,
        "context": chunk.context,
        "tokens": chunk.tokens,
        "model": chunk.model,
        "model_digest": chunk.model_digest,
        "chunker": chunk.chunker,
        "metadata": chunk.metadata,
        "embedding": format!("[{}]", vector.join(",")),
    }))
}

/// PostgreSQL's texts can't hold U+0000; the replacement character stands for it.
fn without_nul(value: Value) -> Value {
    match value {
        Value::String(text) if text.contains('\0') => Value::String(text.replace('\0', "\u{FFFD}")),
        Value::Array(values) => values.into_iter().map(without_nul).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| (key.replace('\0', "\u{FFFD}"), without_nul(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other,
    }
}
