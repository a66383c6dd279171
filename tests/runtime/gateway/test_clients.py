"""Programs of others, unmodified; `make test-clients`.

lm-evaluation-harness through the gateway gives what it gives on Transformers' PyTorch
model of the same checkpoint; langchain gets the client's text; GuideLLM, a load
generator in an environment of its own (``OPTSERVE_GUIDELLM`` names the program), counts
every request as a success.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from optserve.models.tokenizer import Tokenizer
from optserve.runtime import AsyncClient, Client, Sampling
from optserve.runtime.gateway import create_app

from tests.runtime.numpy_model import AsyncNumpy, NumpyTransport

from .conftest import serving

pytestmark = pytest.mark.clients
CHECKPOINT = Path(__file__).parents[3] / "models" / "tiny_shakespeare"
LINES = [
    ("ROMEO:\nO, she doth teach the", [" torches", " fishes", " kings"], 0),
    ("My lord, I will", [" not", " banana", " go"], 0),
    ("What say'st thou,", [" my", " zebra", " sir"], 2),
    ("KING RICHARD III:\nA horse! a", [" horse", " goat", " man"], 0),
    ("The", [" king", " duke", " night"], 1),
]


@pytest.fixture(scope="module")
def model():
    tokenizer = Tokenizer.from_directory(CHECKPOINT).to_json()
    return {"directory": CHECKPOINT, "generate": (4,), "tokenizer": tokenizer}


@pytest.fixture(scope="module")
def address(model):
    client = AsyncClient(transport=AsyncNumpy(**model))
    with serving(create_app({"opt": client})) as address:
        yield address


@pytest.fixture(scope="module")
def languages(address):
    """The harness's two ways to a model: through the gateway, and by Transformers."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    gateway = LocalCompletionsAPI(
        base_url=f"{address}/v1/completions",
        model="opt",
        tokenizer=str(CHECKPOINT),  # its remote tokenizer can't add the first token
        tokenizer_backend="huggingface",
        add_bos_token=True,
        num_concurrent=4,
        max_length=256,
        max_gen_toks=16,
    )
    options = {"device": "cpu", "dtype": "float32", "add_bos_token": True}
    return gateway, HFLM(pretrained=str(CHECKPOINT), **options)


def test_log_likelihoods_are_those_of_transformers(languages):
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (context, ending), 0)
        for context, endings, _ in LINES
        for ending in endings
    ]
    ours, theirs = (language.loglikelihood(requests) for language in languages)
    assert [x for x, _ in ours] == pytest.approx([x for x, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_a_tasks_accuracy_is_that_of_transformers(languages, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask

    file = tmp_path / "lines.jsonl"
    rows = [{"text": t, "choices": c, "answer": a} for t, c, a in LINES]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "lines",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    accuracies = []
    for language in languages:
        tasks = [ConfigurableTask(config=dict(task))]
        results = simple_evaluate(language, tasks=tasks, bootstrap_iters=0)
        actual = results["results"]["lines"]
        accuracies.append([actual["acc,none"], actual["acc_norm,none"]])
    assert accuracies[0] == accuracies[1]
    assert 0 < accuracies[0][0] < 1  # the task tells models apart


def test_greedy_generation_is_that_of_transformers(languages):
    from lm_eval.api.instance import Instance

    asked = {"until": ["\n\n"], "max_gen_toks": 12}
    requests = [
        Instance("generate_until", {}, (context, dict(asked)), 0)
        for context, *_ in LINES
    ]
    ours, theirs = (language.generate_until(requests) for language in languages)
    assert ours == theirs


def test_langchain(address, model):
    from langchain_openai import OpenAI

    chain = OpenAI(
        base_url=f"{address}/v1",
        api_key="none",
        model="opt",
        max_tokens=8,
        temperature=0.8,
        seed=5,
    )
    with Client(transport=NumpyTransport(**model)) as client:
        sampling = Sampling(temperature=0.8, seed=5)
        (expected,) = client.generate(["My lord,"], max_new_tokens=8, sampling=sampling)
    assert chain.invoke("My lord,") == expected.text
    assert "".join(chain.stream("My lord,")) == expected.text


@pytest.mark.skipif("OPTSERVE_GUIDELLM" not in os.environ, reason="no GuideLLM named")
@pytest.mark.parametrize("path", ["/v1/completions"])
def test_guidellm(address, tmp_path, path):
    file = tmp_path / "report.json"
    tokens = "prompt_tokens=16,output_tokens=8"
    words = [os.environ["OPTSERVE_GUIDELLM"], "run", "--disable-console"]
    words += ["--backend", f"kind=openai_http,target={address},request_format={path}"]
    words += ["--profile", "kind=concurrent,streams=4"]
    words += ["--constraint", "kind=max_requests,count=12"]
    words += ["--tokenizer", f"kind=hf_auto,model={CHECKPOINT}"]
    words += ["--data", f"kind=synthetic_text,{tokens}"]
    words += ["--output", f"kind=json,path={file}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(words, check=True, timeout=300, env=environment)
    (run,) = json.loads(file.read_text())["benchmarks"]
    assert run["metrics"]["request_totals"]["successful"] == 12
    assert run["metrics"]["request_totals"]["errored"] == 0
