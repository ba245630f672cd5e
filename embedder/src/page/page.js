// The page's behavior. Everything that comes from documents is set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const PAGE = 50;
let documentsAfter = null;
const watching = new Set();

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Asks this server; where it wants an API key, asks for that first and keeps it as long as the tab.
async function request(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.status !== 401) return response;
  const given = window.prompt("This server wants an API key");
  if (!given) return response;
  sessionStorage.setItem("key", given);
  return request(path, options);
}

async function ask(path, options) {
  const response = await request(path, options);
  const text = await response.text();
  if (!response.ok) {
    let message = text;
    try { message = JSON.parse(text).error ?? text; } catch { /* it is no JSON: shown as it is */ }
    throw new Error(message || `${path} answered ${response.status}`);
  }
  return text;
}

const json = async (path, options) => JSON.parse(await ask(path, options));
const post = (path, body) => json(path, { method: "POST", body: JSON.stringify(body) });
const corpus = () => $("corpus").value.trim() || "default";
const corpusPath = (rest) => `v1/corpora/${encodeURIComponent(corpus())}/${rest}`;

// Shows what went wrong, and takes it away with the next thing that goes well.
async function attempt(work) {
  try {
    await work();
    $("problem").hidden = true;
  } catch (error) {
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
}

async function about() {
  const info = await json("info");
  $("about").textContent = `${info.model_id} · ${info.dimension} dimensions · ${info.device} · ${info.version}`;
}

async function corpora() {
  const found = await json("v1/corpora");
  $("corpora").replaceChildren(...Object.keys(found.corpora).map((name) => element("option", { value: name })));
}

const base64 = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.split(",")[1] ?? "");
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

async function upload(files) {
  const documents = await Promise.all([...files].map(async (file) => ({
    id: file.webkitRelativePath || file.name,
    data: await base64(file),
  })));
  if (documents.length === 0) return;
  const job = await post("v1/jobs", { corpus: corpus(), documents });
  showJob(job);
  attempt(() => watch(job.id));
  await corpora();
}

function showJob(job) {
  const { progress } = job;
  const done = progress.documents_done + progress.documents_failed + progress.documents_unchanged;
  const counts = [
    `${progress.documents_done} processed`,
    progress.documents_unchanged > 0 ? `${progress.documents_unchanged} unchanged` : null,
    progress.documents_removed > 0 ? `${progress.documents_removed} removed` : null,
    progress.documents_failed > 0 ? `${progress.documents_failed} failed` : null,
    `${progress.chunks_embedded} chunks embedded`,
  ].filter(Boolean).join(" · ");
  const ended = job.finished_ms !== undefined;
  const bar = element("progress", { max: Math.max(progress.documents_total, 1), value: done });
  const stop = element("button", { type: "button", textContent: "Cancel" });
  stop.addEventListener("click", () => attempt(() => post(`v1/jobs/${encodeURIComponent(job.id)}/cancel`, {})));
  const item = element("li", { id: `job-${job.id}` },
    element("div", { className: "row" },
      element("span", { textContent: `${job.corpus}: ${job.state}` }), ended ? null : stop),
    ended ? null : bar,
    element("div", { className: "note", textContent: counts }),
    job.error ? element("div", { className: "note bad", textContent: job.error }) : null,
    ...(job.failures ?? []).slice(0, 5).map((failure) =>
      element("div", { className: "note bad", textContent: `${failure.document_id}: ${failure.error}` })));
  const before = $(item.id);
  if (before) before.replaceWith(item); else $("jobs").prepend(item);
}

// Follows a job's events. An EventSource could send no API key.
async function watch(id) {
  if (watching.has(id)) return;
  watching.add(id);
  const response = await request(`v1/jobs/${encodeURIComponent(id)}/events`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const events = (text + part.value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) showJob(JSON.parse(data.slice(6)));
    }
  }
  watching.delete(id);
  await documents();
}

async function jobs() {
  const found = await json("v1/jobs?limit=5");
  for (const job of found.jobs.reverse()) {
    showJob(job);
    if (job.finished_ms === undefined) attempt(() => watch(job.id));
  }
}

async function documents(more = false) {
  const after = more && documentsAfter ? `&after=${encodeURIComponent(documentsAfter)}` : "";
  const found = await json(corpusPath(`documents?limit=${PAGE}${after}`));
  documentsAfter = found.next;
  $("more").hidden = !found.next;
  const items = found.documents.map((it) => {
    const open = element("button", { type: "button", className: "link", textContent: it.title ?? it.document_id });
    open.addEventListener("click", () => attempt(() => read(it.document_id)));
    const count = `${it.chunks} ${it.chunks === 1 ? "chunk" : "chunks"}`;
    const note = it.title ? `${it.document_id} · ${count}` : count;
    return element("li", { className: "row" }, open, element("span", { className: "note", textContent: note }));
  });
  if (more) $("documents").append(...items); else $("documents").replaceChildren(...items);
}

function chunkBody(chunk) {
  return [
    chunk.heading_path.length > 0 ? element("div", { className: "note", textContent: chunk.heading_path.join(" › ") }) : null,
    chunk.context ? element("div", { className: "context", textContent: chunk.context }) : null,
    element("div", { className: "text", textContent: chunk.text }),
  ];
}

function place(chunk, count) {
  const pages = chunk.pages ? ` · pages ${chunk.pages[0]}–${chunk.pages[1]}` : "";
  return `${chunk.index + 1} of ${count} · ${chunk.tokens} tokens · bytes ${chunk.start}–${chunk.end}${pages}`;
}

// A document's chunks, with one of them in the middle of its neighbors.
async function read(id, index = null) {
  const lines = await ask(corpusPath(`chunks?vectors=false&document=${encodeURIComponent(id)}`));
  const chunks = lines.split("\n").filter(Boolean).map((line) => JSON.parse(line));
  $("reader-title").textContent = chunks[0]?.title ?? id;
  $("reader-chunks").replaceChildren(...chunks.map((chunk) => element("div",
    { className: chunk.index === index ? "chunk found" : "chunk" },
    element("div", { className: "note", textContent: place(chunk, chunks.length) }),
    ...chunkBody(chunk))));
  $("reader").showModal();
  $("reader-chunks").querySelector(".found")?.scrollIntoView({ block: "center" });
}

async function search() {
  const query = $("query").value.trim();
  if (!query) return;
  const found = await post("v1/search", { corpus: corpus(), query, mode: $("mode").value });
  $("took").textContent = `${found.results.length} of ${found.chunks} chunks in ${Math.round(found.seconds * 1000)} ms`;
  $("results").replaceChildren(...found.results.map((chunk) => {
    const open = element("button", { type: "button", className: "link", textContent: chunk.title ?? chunk.document_id });
    open.addEventListener("click", () => attempt(() => read(chunk.document_id, chunk.index)));
    const ranks = Object.entries(chunk.ranks).map(([name, rank]) => `${name} ${rank}`).join(" · ");
    return element("li", {},
      element("div", { className: "row" }, open, element("span", { className: "note", textContent: `${chunk.score.toFixed(4)} · ${ranks}` })),
      ...chunkBody(chunk));
  }));
}

$("files").addEventListener("change", (event) => attempt(async () => {
  await upload(event.target.files);
  event.target.value = "";
}));
for (const kind of ["dragenter", "dragover"]) {
  $("drop").addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) $("drop").addEventListener(kind, () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  attempt(() => upload(event.dataTransfer.files));
});
$("search").addEventListener("submit", (event) => { event.preventDefault(); attempt(search); });
$("corpus").addEventListener("change", () => attempt(documents));
$("more").addEventListener("click", () => attempt(() => documents(true)));
attempt(async () => { await about(); await corpora(); await jobs(); await documents(); });
