#!/usr/bin/env python3
"""Asks running servers with the clients that people use, and checks what they understand of the answers.

    clients.py <URL of a data-factory> <URL of a reranker> <URL of one with a classifier> <API key>

All servers want the key. Needs the packages that testing/local-cluster/src/python.rs pins.
"""

import asyncio
import json
import math
import sys
import urllib.request

import cohere
import openai
from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_openai import OpenAIEmbeddings
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from openapi_spec_validator import validate

EMBED, RERANK, CLASSIFY, KEY = sys.argv[1:5]
TEXTS = ["a hot card", "Berlin is the capital of Germany.", "Fans cool the graphics card when it gets hot."]
QUERY = "how is a hot graphics card cooled down"


def same(one, two, tolerance=1e-5):
    assert len(one) == len(two), (len(one), len(two))
    off = max(abs(a - b) for a, b in zip(one, two))
    assert off < tolerance, f"off by {off}"


def with_openai():
    client = openai.OpenAI(base_url=f"{EMBED}/v1", api_key=KEY)
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").id == "small"
    # The client asks for base64 unless told otherwise.
    answer = client.embeddings.create(model="small", input=TEXTS)
    floats = client.embeddings.create(model="small", input=TEXTS, encoding_format="float")
    for one, two in zip(answer.data, floats.data, strict=True):
        same(one.embedding, two.embedding)
        assert math.isclose(sum(x * x for x in one.embedding), 1, abs_tol=1e-5)
    assert answer.usage.total_tokens > len(TEXTS)
    short = client.embeddings.create(model="small", input=TEXTS[0], dimensions=16)
    assert len(short.data[0].embedding) == 16
    ids = [[token["id"] for token in tokens] for tokens in ask(f"{EMBED}/tokenize", TEXTS)]
    tokens = client.embeddings.create(model="small", input=ids)
    for one, two in zip(tokens.data, answer.data, strict=True):
        same(one.embedding, two.embedding)
    # A flat list is one input.
    for flat, expected in zip(ids, answer.data, strict=True):
        for given in [flat], flat:
            [row] = client.embeddings.create(model="small", input=given).data
            same(row.embedding, expected.embedding)
    try:
        client.embeddings.create(model="small", input=TEXTS[0], dimensions=100_000)
    except openai.UnprocessableEntityError as error:
        assert "dimensions is 100000" in error.message, error.message
    else:
        raise AssertionError("too many dimensions were not refused")
    try:
        openai.OpenAI(base_url=f"{EMBED}/v1", api_key="wrong").models.list()
    except openai.AuthenticationError as error:
        assert "API key" in error.message, error.message
    else:
        raise AssertionError("a wrong key was not refused")
    return [row.embedding for row in answer.data]


def with_cohere(vectors):
    client = cohere.ClientV2(api_key=KEY, base_url=EMBED)
    answer = client.embed(
        model="small", texts=TEXTS, input_type="search_document",
        embedding_types=["float", "int8", "uint8", "binary", "ubinary", "base64"],
    )
    for one, two in zip(answer.embeddings.float_, vectors, strict=True):
        same(one, two)
    assert all(-128 <= value <= 127 for row in answer.embeddings.int8 for value in row)
    assert all(0 <= value <= 255 for row in answer.embeddings.uint8 for value in row)
    assert len(answer.embeddings.ubinary[0]) == len(answer.embeddings.binary[0]) == len(vectors[0]) // 8
    ranks = cohere.ClientV2(api_key=KEY, base_url=RERANK).rerank(model="small", query=QUERY, documents=TEXTS, top_n=2)
    assert [rank.index for rank in ranks.results] == [2, 0], ranks
    assert ranks.results[0].relevance_score > 0.5
    try:
        client.embed(model="small", texts=[], input_type="search_document")
    except cohere.BadRequestError as error:
        assert "texts is []" in str(error.body), error.body
    else:
        raise AssertionError("a request without texts was not refused")


def with_jina(_):
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    client = JinaRerank(base_url=f"{RERANK}/v1", api_key=KEY, model="small", top_n=len(TEXTS))
    ranked = client.postprocess_nodes(nodes, query_str=QUERY)
    # The same model in another dialect.
    ranks = cohere.ClientV2(api_key=KEY, base_url=RERANK).rerank(model="small", query=QUERY, documents=TEXTS)
    assert [node.text for node in ranked] == [TEXTS[rank.index] for rank in ranks.results], (ranked, ranks)
    for node, rank in zip(ranked, ranks.results, strict=True):
        assert math.isclose(node.score, rank.relevance_score, abs_tol=1e-5), (ranked, ranks)
    client = JinaRerank(base_url=f"{RERANK}/v1", api_key=KEY, model="small", top_n=2)
    assert [node.text for node in client.postprocess_nodes(nodes, query_str=QUERY)] == [TEXTS[2], TEXTS[0]]
    try:
        JinaRerank(base_url=f"{RERANK}/v1", api_key="wrong").postprocess_nodes(nodes, query_str=QUERY)
    except RuntimeError as error:
        assert "API key" in str(error), error
    else:
        raise AssertionError("a wrong key was not refused")


def with_hub(vectors):
    client = InferenceClient(model=EMBED, token=KEY)
    for text, vector in zip(TEXTS, vectors, strict=True):
        same(client.feature_extraction(text, normalize=True)[0].tolist(), vector)
    for one, two in zip(client.feature_extraction(TEXTS).tolist(), vectors, strict=True):
        same(one, two)
    scores = InferenceClient(model=f"{EMBED}/similarity", token=KEY).sentence_similarity(TEXTS[0], TEXTS[:2])
    assert math.isclose(scores[0], 1, abs_tol=1e-4) and scores[1] < 0.5, scores

    async def one():
        return await AsyncInferenceClient(model=EMBED, token=KEY).feature_extraction(TEXTS[0])

    same(asyncio.run(one())[0].tolist(), vectors[0])
    # A classifier answers at the root, too; a reranker, whose only label is a label as well, reranks there.
    for url in f"{CLASSIFY}/predict", CLASSIFY, f"{RERANK}/predict":
        ranked = ask(url, TEXTS[0])
        # Of several labels the client keeps the likeliest, as it does with text-embeddings-inference.
        best = InferenceClient(model=url, token=KEY).text_classification(TEXTS[0])
        assert best.label == ranked[0]["label"] and math.isclose(best.score, ranked[0]["score"], abs_tol=1e-5), best
        assert all(best.score >= other["score"] for other in ranked), ranked


def ask(url, inputs):
    """The answer for some inputs in the dialect of text-embeddings-inference, without any client."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps({"inputs": inputs}).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def with_langchain(vectors):
    # With the length check the client would send ids of OpenAI's own tokenizer.
    client = OpenAIEmbeddings(model="small", base_url=f"{EMBED}/v1", api_key=KEY, check_embedding_ctx_length=False)
    for one, two in zip(client.embed_documents(TEXTS), vectors, strict=True):
        same(one, two)
    same(client.embed_query(TEXTS[1]), vectors[1])


def with_llama_index(vectors):
    # It puts an instruction before every text, where it is not told to leave that.
    client = TextEmbeddingsInference(
        model_name="small", base_url=EMBED, auth_token=KEY, query_instruction="", text_instruction="",
    )
    for one, two in zip(client.get_text_embedding_batch(TEXTS), vectors, strict=True):
        same(one, two)
    same(client.get_query_embedding(TEXTS[0]), vectors[0])
    # This one sends the header as it is given it.
    reranker = TextEmbeddingInference(base_url=RERANK, auth_token=f"Bearer {KEY}", top_n=2)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [node.text for node in ranked] == [TEXTS[2], TEXTS[0]], ranked
    assert ranked[0].score > 0.5 and ranked[0].score >= ranked[1].score, ranked


def with_openapi(_):
    for url in EMBED, RERANK, CLASSIFY:
        with urllib.request.urlopen(f"{url}/openapi.json") as answer:
            validate(json.load(answer))


def main():
    vectors = with_openai()
    print("openai")
    for name, check in [
        ("cohere", with_cohere), ("jina", with_jina), ("huggingface_hub", with_hub),
        ("langchain", with_langchain), ("llama-index", with_llama_index), ("openapi", with_openapi),
    ]:
        check(vectors)
        print(name)


if __name__ == "__main__":
    main()
