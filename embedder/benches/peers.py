#!/usr/bin/env python3
"""The peers that `cargo xtask bench embedder` compares with, behind lines of JSON.

    peers.py corpus <model folder> <corpus.json>   writes the texts: Python's own manual and docstrings, which every machine has
    peers.py serve <model folder> <corpus.json> <work folder>

`serve` answers each line {"engine", "task", …} with one line. Engines: onnxruntime (f32), onnxruntime-int8 (its own dynamic
quantization) and, where it is installed, sentence-transformers. The ONNX model is written here from the very weights that the
embedder loads, with the fused operators that ONNX Runtime's own optimizer for BERT ends up with.
"""

import importlib
import inspect
import json
import pathlib
import re
import sys
import time

# Modules whose docstrings make the retrieval task: first line → rest.
MODULES = """argparse ast asyncio base64 bisect calendar cmd code codecs collections configparser contextlib copy csv ctypes
datetime decimal difflib doctest email enum filecmp fileinput fractions ftplib functools gettext glob gzip heapq html http
imaplib inspect io ipaddress itertools json linecache locale logging lzma mailbox math mimetypes multiprocessing netrc numbers
operator optparse os pathlib pdb pickle pkgutil platform plistlib poplib pprint pydoc queue random re reprlib sched secrets
selectors shelve shlex shutil smtplib socket socketserver sqlite3 ssl statistics string stringprep struct subprocess symtable
tarfile tempfile textwrap threading timeit tkinter token tokenize trace traceback types typing unittest urllib uuid venv
warnings wave weakref webbrowser wsgiref xml zipfile zipimport zoneinfo asyncio.events asyncio.streams collections.abc
concurrent.futures email.message email.policy http.client http.cookiejar http.server importlib.abc importlib.metadata
logging.handlers multiprocessing.pool os.path unittest.mock urllib.parse urllib.request xml.dom.minidom xml.etree.ElementTree
xml.sax.handler""".split()
BULK = 256
LENGTHS = range(96, 255)  # tokens, 175 on average


def load_tokenizer(folder):
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return tokenizer


def corpus(folder, out):
    from pydoc_data import topics

    tokenizer = load_tokenizer(folder)
    tokenizer.no_truncation()
    manual = re.sub(r"\s+", " ", " ".join(text for _, text in sorted(topics.topics.items())))
    offsets = tokenizer.encode(manual[:400_000], add_special_tokens=False).offsets
    bulk, start = [], 0
    for index in range(BULK):
        # 67 has no factor in common with 159: every length comes up about equally often, in no order.
        length = LENGTHS[index * 67 % len(LENGTHS)] - 2
        bulk.append(manual[offsets[start][0] : offsets[start + length - 1][1]])
        start += length
    pairs = {}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        members = [module] + [member for _, member in inspect.getmembers(module, inspect.isclass)]
        for owner in members:
            for _, member in inspect.getmembers(owner, lambda it: inspect.isroutine(it) or inspect.isclass(it)):
                paragraphs = (inspect.getdoc(member) or "").strip().split("\n\n", 1)
                if len(paragraphs) == 2 and len(paragraphs[0].split()) >= 5 and len(paragraphs[1].split()) >= 25:
                    query, passage = (re.sub(r"\s+", " ", part) for part in paragraphs)
                    if query not in pairs and passage not in pairs.values():
                        pairs[query] = passage
    pairs = sorted(pairs.items())
    out.write_text(
        json.dumps(
            {
                "bulk": bulk,
                "short": "How is a hot graphics card cooled down?",
                "long": bulk[0],
                "queries": [query for query, _ in pairs],
                "passages": [passage for _, passage in pairs],
            }
        )
    )


def write_onnx(folder, path):
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import load_file

    weights = {name: value.astype(np.float32) for name, value in load_file(folder / "model.safetensors").items() if value.dtype.kind == "f"}
    config = json.loads((folder / "config.json").read_text())
    epsilon, heads = config["layer_norm_eps"], config["num_attention_heads"]
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(name):
        return constant(name, weights[name])

    def transposed(name):
        return constant(name, weights[name].T)

    def node(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], domain="com.microsoft" if kind != "MatMul" else "", **attributes))
        return output

    norm = "embeddings.LayerNorm."
    tables = [weight(f"embeddings.{name}_embeddings.weight") for name in ("word", "position", "token_type")]
    nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            ["input_ids", "token_type_ids", *tables, weight(norm + "weight"), weight(norm + "bias")],
            ["states", ""],
            domain="com.microsoft",
            epsilon=epsilon,
        )
    )
    states = "states"
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}."
        own = [prefix + f"attention.self.{name}." for name in ("query", "key", "value")]
        qkv = constant(prefix + "qkv.weight", np.concatenate([weights[name + "weight"].T for name in own], axis=1))
        bias = constant(prefix + "qkv.bias", np.concatenate([weights[name + "bias"] for name in own]))
        attended = node("Attention", [states, qkv, bias, "attention_mask"], prefix + "attended", num_heads=heads)
        dense, norm = prefix + "attention.output.dense.", prefix + "attention.output.LayerNorm."
        product = node("MatMul", [attended, transposed(dense + "weight")], prefix + "projected")
        middle = node(
            "SkipLayerNormalization",
            [product, states, weight(norm + "weight"), weight(norm + "bias"), weight(dense + "bias")],
            prefix + "middle",
            epsilon=epsilon,
        )
        up, down, norm = prefix + "intermediate.dense.", prefix + "output.dense.", prefix + "output.LayerNorm."
        product = node("MatMul", [middle, transposed(up + "weight")], prefix + "up")
        inner = node("BiasGelu", [product, weight(up + "bias")], prefix + "inner")
        product = node("MatMul", [inner, transposed(down + "weight")], prefix + "down")
        states = node(
            "SkipLayerNormalization",
            [product, middle, weight(norm + "weight"), weight(norm + "bias"), weight(down + "bias")],
            prefix + "states",
            epsilon=epsilon,
        )
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"])
        for name in ("input_ids", "token_type_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info(states, TensorProto.FLOAT, ["batch", "tokens", config["hidden_size"]])
    graph = helper.make_graph(nodes, "bert", inputs, [output], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


class OnnxRuntime:
    """Batches of like lengths, padded to their longest, as sentence-transformers makes them."""

    def __init__(self, folder, path):
        import onnxruntime

        self.tokenizer = load_tokenizer(folder)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.batch = 32

    def embed(self, texts):
        import numpy as np

        encodings = self.tokenizer.encode_batch_fast(texts)
        order = sorted(range(len(texts)), key=lambda index: -len(encodings[index].ids))
        vectors = [None] * len(texts)
        for start in range(0, len(texts), self.batch):
            indices = order[start : start + self.batch]
            longest = len(encodings[indices[0]].ids)
            ids = np.zeros((len(indices), longest), np.int32)
            mask = np.zeros_like(ids)
            for row, index in enumerate(indices):
                tokens = encodings[index].ids
                ids[row, : len(tokens)] = tokens
                mask[row, : len(tokens)] = 1
            feed = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask}
            states = self.session.run(None, feed)[0]
            sums = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            for row, index in enumerate(indices):
                vectors[index] = sums[row] / np.linalg.norm(sums[row])
        return vectors

    def tune(self, texts):
        """Takes the batch size that is the fastest here."""
        times = {}
        for self.batch in (1, 8, 32):
            self.embed(texts[:32])
            started = time.perf_counter()
            self.embed(texts[:64])
            times[self.batch] = time.perf_counter() - started
        self.batch = min(times, key=times.get)


class SentenceTransformers:
    def __init__(self, folder):
        import sentence_transformers

        self.model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        self.batch = 32

    def embed(self, texts):
        return self.model.encode(texts, batch_size=self.batch, normalize_embeddings=True, show_progress_bar=False)

    def tune(self, texts):
        self.embed(texts[:32])


def make(engine, folder, work):
    if engine == "sentence-transformers":
        return SentenceTransformers(folder)
    path = work / "model.onnx"
    if not path.exists():
        write_onnx(folder, path)
    if engine == "onnxruntime-int8":
        quantized = work / "model-int8.onnx"
        if not quantized.exists():
            from onnx import TensorProto
            from onnxruntime.quantization import QuantType, quantize_dynamic

            options = {"DefaultTensorType": TensorProto.FLOAT}
            # Its quantized embedding layer does not load again, and is no product anyway.
            kinds = ["MatMul", "Attention"]
            quantize_dynamic(path, quantized, kinds, weight_type=QuantType.QInt8, per_channel=True, extra_options=options)
        path = quantized
    return OnnxRuntime(folder, path)


def serve(folder, texts, work):
    engines = {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request["engine"]
        try:
            if name not in engines:
                engines[name] = make(name, folder, work)
                engines[name].tune(texts["bulk"])
            engine = engines[name]
            if request["task"] == "bulk":
                started = time.perf_counter()
                engine.embed(texts["bulk"])
                answer = {"seconds": time.perf_counter() - started, "batch": engine.batch}
            elif request["task"] == "latency":
                times = []
                for _ in range(request["count"]):
                    started = time.perf_counter()
                    engine.embed([texts[request["text"]]])
                    times.append((time.perf_counter() - started) * 1000)
                answer = {"milliseconds": times}
            else:
                vectors = engine.embed(texts[request["text"]])
                answer = {"vectors": [[float(value) for value in vector] for vector in vectors]}
        except Exception as error:  # told to the bench, which goes on without this engine
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    task, folder, file = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    if task == "corpus":
        corpus(folder, file)
    else:
        serve(folder, json.loads(file.read_text()), pathlib.Path(sys.argv[4]))
