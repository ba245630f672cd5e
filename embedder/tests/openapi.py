#!/usr/bin/env python3
"""Asks running servers, and holds what they take and what they answer to their own descriptions.

    openapi.py <URL of a data-factory that keeps jobs> <URL of a reranker> <URL of a doc-analyzer>

None of them wants a key. Needs openapi-spec-validator, which brings a validator of JSON schemas along.
"""

import json
import sys
import urllib.error
import urllib.request

from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

FACTORY, RERANKER, ANALYZER = sys.argv[1:4]
TEXTS = ["a hot card", "Fans cool the graphics card when it gets hot."]
QUERY = "how is a hot graphics card cooled down"
MAIL = "Write to jane@example.org about the fans of the card, and about what else gets hot in there."


def hold(description, schema, value, what):
    validator = Draft202012Validator({**schema, "components": description["components"]})
    for error in validator.iter_errors(value):
        raise AssertionError(f"{what}: {error.json_path}: {error.message[:1000]}")


def values(kind, text):
    match kind:
        case "application/json":
            return [json.loads(text)]
        case "application/x-ndjson":
            return [json.loads(line) for line in text.splitlines()]
        case "text/event-stream":
            return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]
        case _:
            return [text]


class Server:
    def __init__(self, url):
        self.url = url
        with urllib.request.urlopen(f"{url}/openapi.json") as answer:
            self.description = json.load(answer)
        validate(self.description)
        for path in "/info", "/health", "/ping", "/ready", "/metrics", "/openapi.json", "/api-doc/openapi.json", "/docs":
            self.get(path)

    def get(self, path, **rest):
        return self.ask("get", path, **rest)

    def post(self, path, body=None, **rest):
        return self.ask("post", path, body, **rest)

    def ask(self, method, path, body=None, status=200, query="", **variables):
        """The last value of an answer, which is as it is described to be."""
        what, operation = f"{method} {path}", self.description["paths"][path][method]
        if body is not None:
            hold(self.description, operation["requestBody"]["content"]["application/json"]["schema"], body, what)
        request = urllib.request.Request(
            self.url + path.format(**variables) + query,
            data=None if body is None else json.dumps(body).encode(),
            method=method.upper(),
        )
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read().decode()
        assert answer.status == status, (what, answer.status, text)
        response = operation["responses"][str(status)]
        told = {name.lower() for name in answer.headers}
        known = set(response["headers"])
        assert known <= told, (what, known - told)
        unknown = {name for name in told if name.startswith(("x-compute", "retry", "location"))} - known
        assert not unknown, (what, unknown)
        if "content" not in response:
            assert not text, (what, text)
            return None
        kind = answer.headers.get_content_type()
        found = values(kind, text)
        for value in found:
            hold(self.description, response["content"][kind]["schema"], value, what)
        return found[-1]


def embedding(server):
    server.post("/embed", {"inputs": TEXTS})
    server.post("/embed", {"inputs": TEXTS[0], "truncate": True, "truncation_direction": "Left", "dimensions": 16})
    server.post("/", {"inputs": [101, 102]})
    server.post("/invocations", {"inputs": [[101, 102], "a card"]})
    server.post("/vertex", {"instances": [{"inputs": TEXTS}, {"inputs": "a card"}]})
    server.post("/embed_all", {"inputs": TEXTS[0]})
    server.post("/embed_sparse", {"inputs": TEXTS[0]}, status=424)
    server.post("/similarity", {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}})
    server.post("/v1/encode", {"inputs": TEXTS, "outputs": ["dense"], "input_type": "query"})
    for form in "float", "base64":
        server.post("/v1/embeddings", {"model": "any", "input": TEXTS, "encoding_format": form})
    server.post("/embeddings", {"input": []}, status=400)
    server.post("/v2/embed", {
        "model": "any", "texts": TEXTS, "input_type": "search_document", "truncate": "END",
        "embedding_types": ["float", "int8", "uint8", "binary", "ubinary", "base64"],
    })
    server.post("/v2/embed", {"inputs": [{"content": [{"type": "text", "text": TEXTS[0]}]}]})
    server.post("/v2/embed", {}, status=422)
    tokens = server.post("/tokenize", {"inputs": TEXTS[0]})
    server.post("/decode", {"ids": [token["id"] for token in tokens[0]]})
    model = server.get("/v1/models")["data"][0]["id"]
    server.get("/v1/models/{model}", model=model)
    server.get("/v1/models/{model}", model="none", status=404)


def documents(server):
    given = [
        {"id": "a.md", "title": "Cards", "format": "markdown", "text": f"# Cards\n\n{TEXTS[1]}", "metadata": {"year": 1}},
        {"id": "b.txt", "data": "V3JpdGUgdG8gamFuZUBleGFtcGxlLm9yZy4="},
        {"id": "c.txt", "text": " "},
    ]
    options = {"enrich": False, "chunker": "recursive", "chunk_max_tokens": 64, "chunk_overlap": 0}
    assert server.post("/v1/process", {"documents": given, "options": options})["type"] == "summary"
    server.post("/v1/process", {"documents": []}, status=400)
    asked = {"id": "described", "corpus": "described", "documents": given}
    server.post("/v1/jobs", asked, status=202)
    server.post("/v1/jobs", asked)
    server.post("/v1/jobs", {**asked, "documents": given[:1]}, status=409)
    server.post("/v1/jobs", {}, status=400)
    assert server.get("/v1/jobs/{id}/events", id="described")["state"] == "succeeded"
    server.get("/v1/jobs/{id}", id="described")
    server.get("/v1/jobs/{id}", id="none", status=404)
    server.get("/v1/jobs", query="?limit=1")
    server.get("/v1/jobs", query="?before=none", status=404)
    server.get("/v1/jobs", query="?limit=0", status=422)
    server.get("/v1/corpora")
    corpus = {"corpus": "described"}
    server.get("/v1/corpora/{corpus}", **corpus)
    server.get("/v1/corpora/{corpus}/documents", query="?limit=1&after=a", **corpus)
    for query in "", "?vectors=false", "?document=a.md":
        server.get("/v1/corpora/{corpus}/chunks", query=query, **corpus)
    server.get("/v1/corpora/{corpus}/chunks", query="?document=none", status=404, **corpus)
    for mode in "hybrid", "vector", "bm25":
        assert server.post("/v1/search", {"query": QUERY, "mode": mode, "top_k": 1, **corpus})["results"]
    server.post("/v1/search", {"query": QUERY, "corpus": "none"}, status=404)
    server.post("/v1/jobs/{id}/cancel", status=202, id="described")
    server.ask("delete", "/v1/jobs/{id}", status=204, id="described")


def scoring(server):
    server.post("/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True})
    server.post("/", {"query": QUERY, "texts": TEXTS, "raw_scores": True})
    server.post("/predict", {"inputs": [QUERY, TEXTS[1]]})
    server.post("/predict", {"inputs": [[QUERY, TEXTS[0]], [QUERY, TEXTS[1]]]})
    server.post("/vertex", {"instances": [{"query": QUERY, "texts": TEXTS}, {"inputs": TEXTS[0]}]})
    server.post("/v1/rerank", {"model": "any", "query": QUERY, "documents": TEXTS, "top_n": 1})
    server.post("/v1/rerank", {"query": QUERY, "documents": []}, status=400)
    server.post("/v2/rerank", {"query": QUERY, "documents": [{"text": TEXTS[0]}, TEXTS[1]], "max_tokens_per_doc": 8})
    server.post("/v2/rerank", {"query": QUERY, "documents": []}, status=400)


def analyzing(server):
    server.post("/v1/analyze", {"text": MAIL, "filename": "mail.txt"})
    server.post("/v1/analyze", {"text": " "}, status=400)
    code = {"data": "Zm4gbWFpbigpIHsKICAgIGxldCBjYXJkID0gIkhvdCI7Cn0K", "format": "code"}
    server.post("/v1/analyze", code)
    found = server.post("/v1/analyze", {"documents": [{"text": MAIL}, {"id": "b", "text": MAIL}, {"text": " "}]})
    assert len(found["documents"]) == 3, found


def main():
    factory = Server(FACTORY)
    embedding(factory)
    documents(factory)
    scoring(Server(RERANKER))
    analyzing(Server(ANALYZER))


if __name__ == "__main__":
    main()
