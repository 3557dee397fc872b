"""Many adapters behind one encoder: each face is answered by the adapter that it asked for, whatever else is in the batch."""

import http.client
import itertools
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import jax
import numpy as np
import pytest
from faces import write_photo
from running_server import PATIENCE, running
from trained_run import write_trained_run

from jaxface import digests
from jaxface.adapters.options import AdapterOptions
from jaxface.errors import UserError
from jaxface.exports import export_run
from jaxface.prediction.adapter_server import AdapterServer
from jaxface.prediction.batching import Batcher
from jaxface.prediction.fair_queue import Empty, FairQueue
from jaxface.prediction.limits import Limits
from jaxface.runs.inference import normalize_images
from jaxface.runs.model import load_trained

KINDS = {
    "dora": ("dora", {"rank": 2, "pool_inputs": True, "split_qkv": True}),
    "lora": ("lora", {"rank": 12, "blocks": "1"}),
    "pool": ("ap", {}),
}
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of several methods and ranks on one base."""
    made = tmp_path_factory.mktemp("adapters")
    for seed, (name, (method, options)) in enumerate(KINDS.items()):
        write_trained_run(made, method, AdapterOptions(**options), seed=seed).rename(made / name)
    return made


@pytest.fixture(scope="module")
def server(folder):
    return AdapterServer(folder, batch_size=2, memory=4)


@pytest.fixture(scope="module")
def crops(server):
    return np.random.default_rng(0).integers(0, 256, (2, server.image_size, server.image_size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def alone(folder, crops):
    """Each adapter's logits from its own model."""
    answer = jax.jit(lambda model: model(normalize_images(crops)))
    return {name: answer(load_trained(folder / name).model) for name in KINDS}


def test_a_batch_of_any_two_adapters_is_answered_as_each_answers_alone(server, crops, alone):
    adapters = {name: server.shelf.get(name) for name in KINDS}
    for pair in itertools.product(KINDS, repeat=2):
        results = server.classify([(crop, adapters[name]) for crop, name in zip(crops, pair, strict=True)])
        for adapter, rows, logits in results.parts:
            for task in adapter.tasks:
                found = np.concatenate([part[task.name] for part in logits])
                expected = np.asarray(alone[adapter.name][task.name])
                assert np.abs(found - expected[rows]).max() <= 2e-6 * np.abs(expected).max(), (pair, task.name)


def test_python_answers_each_photo_by_every_adapter_named(server, crops, alone):
    (face,), _ = server(list(crops), ["dora", "pool"])
    for name, tasks in face["adapters"].items():
        assert {task: answer["class"] for task, answer in tasks.items()} == {
            task.name: task.classes[int(np.argmax(alone[name][task.name][0]))] for task in server.shelf.get(name).tasks
        }
    with pytest.raises(UserError, match="no adapter 'nobody'"):
        server(list(crops), ["nobody"])


def test_an_export_to_peft_answers_beside_the_run_that_it_was_made_of(folder, crops, alone, tmp_path, monkeypatch):
    os.link(folder / "base.safetensors", tmp_path / "base.safetensors")
    export_run(folder / "lora", "peft", tmp_path / "exported")
    with pytest.raises(UserError, match="--base FILE says which weights"):
        AdapterServer(tmp_path, batch_size=1)
    assert AdapterServer(tmp_path, base=tmp_path / "base.safetensors", batch_size=1).names == ["exported"]
    shutil.copytree(folder / "dora", tmp_path / "run")
    shutil.copytree(tmp_path / "exported", tmp_path / "bare")
    (tmp_path / "bare/manifest.json").unlink()
    server = AdapterServer(tmp_path, batch_size=2)
    assert server.names == ["exported", "run"]
    ((_, _, logits), _) = server.classify([(crop, server.shelf.get(name)) for crop, name in zip(crops, server.names, strict=True)]).parts
    for task, found in logits[0].items():
        expected = np.asarray(alone["lora"][task])[:1]
        assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()
    with pytest.raises(UserError, match=r"without a manifest\.json"):
        server.shelf.put("bare")
    shutil.copytree(tmp_path / "exported", tmp_path / "fresh")
    hashed = []
    monkeypatch.setattr(digests, "file_digest", lambda path, whole=digests.file_digest: hashed.append(path.name) or whole(path))
    for _ in range(2):
        server.shelf.put("fresh")
    assert sorted(hashed) == ["adapter_config.json", "adapter_model.safetensors", "heads.safetensors", "manifest.json"]  # each once
    data = bytearray((tmp_path / "exported/heads.safetensors").read_bytes())
    data[-5] ^= 8
    (tmp_path / "exported/heads.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="damaged or changed"):
        server.shelf.put("exported")


def ranks(run, method, seed):
    """Another run in the place of one."""
    temporary = run.parent / "made"
    temporary.mkdir()
    made = write_trained_run(temporary, method, AdapterOptions(rank=2), seed=seed)
    shutil.rmtree(run, ignore_errors=True)
    made.rename(run)
    shutil.rmtree(temporary)


def test_replacing_an_adapter_under_load_loses_no_request_and_compiles_nothing(folder, crops, tmp_path):
    os.link(folder / "base.safetensors", tmp_path / "base.safetensors")
    for name in ("first", "second"):
        shutil.copytree(folder / "dora", tmp_path / name)
    ranks(tmp_path / "second", "dora", 9)
    server = AdapterServer(tmp_path, batch_size=2)
    expected = {}
    for name in server.names:
        adapter = server.shelf.get(name)
        expected[adapter.digest] = server.answers(server.classify([(crops[0], adapter)]), 1)
    batcher, done, programs = Batcher(server), threading.Event(), server.programs

    def client():
        count = 0
        while not done.is_set():
            adapter = server.shelf.get("live")
            found = batcher.submit([(crops[0], adapter)], adapter.name).result(60)
            assert found[0]["age"]["probabilities"] == pytest.approx(expected[adapter.digest][0]["age"]["probabilities"], abs=1e-5)
            count += 1
        return count

    server.shelf.put("live", "first")
    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(client) for _ in range(3)]
        for number in range(20):
            server.shelf.put("live", ("second", "first")[number % 2])
        done.set()
        assert sum(one.result() for one in clients) > 0
    batcher.close()
    assert server.programs == programs
    again = AdapterServer(tmp_path, batch_size=2)
    assert (again.names, again.shelf.source("live")) == (["first", "live", "second"], "first")


def test_an_adapter_that_does_not_fit_is_one_line_and_the_others_go_on(folder, tmp_path, capsys):
    os.link(folder / "base.safetensors", tmp_path / "base.safetensors")
    shutil.copytree(folder / "dora", tmp_path / "a-good")
    write_trained_run(tmp_path, "ft4", AdapterOptions()).rename(tmp_path / "blocks")
    other = json.loads((tmp_path / "a-good/best/info.json").read_text())
    shutil.copytree(tmp_path / "a-good", tmp_path / "base")
    (tmp_path / "base/best/info.json").write_text(json.dumps(other | {"base_sha256": "0" * 64}))
    (tmp_path / "a-damaged").mkdir()  # the first of all
    (tmp_path / "a-damaged/config.json").write_text("{")
    shutil.copytree(tmp_path / "a-good", tmp_path / "damaged")
    data = bytearray((tmp_path / "damaged/best/trained.safetensors").read_bytes())
    data[-5] ^= 8
    (tmp_path / "damaged/best/trained.safetensors").write_bytes(data)
    shelf = AdapterServer(tmp_path, batch_size=1).shelf
    assert "other base weights" in capsys.readouterr().err
    assert "base" not in shelf
    for name, source, said in (
        ("blocks", None, "method ft4 trains"),
        ("damaged", None, "damaged"),
        ("x", "../a-good", "expected a run folder below"),
        ("x", "/etc", "expected a run folder below"),
        ("x", "nowhere", "expected a run folder below"),
        ("../x", None, "expected a name"),
        ("base", None, "info.json beside it says something else"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            shelf.put(name, source)
        assert "\n" not in str(refused.value)
    assert shelf.get("a-good").rank == 3 * 2
    (tmp_path / "a-good/config.json").write_text((tmp_path / "a-good/config.json").read_text() + "\n")
    shelf._held.clear()
    with pytest.raises(UserError, match="has changed: PUT"):
        shelf.get("a-good")


def test_lines_of_a_queue_take_turns():
    queue = FairQueue()
    for item, line in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b")):
        queue.put(item, line)
    assert [queue.get() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    with pytest.raises(Empty):
        queue.get(block=False)
    queue.close()
    assert queue.get() is None


@pytest.fixture(scope="module")
def port(server):
    """The port of a running server, whose token is TOKEN."""
    with running(server, Limits(port=0), TOKEN) as port:
        yield port


def ask(port, method, path, body=b"", token=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, body, {"authorization": f"Bearer {token}"} if token else {})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_requests_name_their_adapters_and_the_token_changes_them(server, port, tmp_path):
    write_photo(tmp_path / "a.jpg", 0, size=60)
    photo = (tmp_path / "a.jpg").read_bytes()
    status, listed = ask(port, "GET", "/adapters")
    assert (status, [row["name"] for row in listed["adapters"]]) == (200, sorted(KINDS))
    assert ask(port, "GET", "/adapters/lora") == (200, next(row for row in listed["adapters"] if row["name"] == "lora"))
    status, answer = ask(port, "POST", "/predict?adapter=dora,pool&adapter=lora", photo)
    assert (status, list(answer["faces"][0]["adapters"])) == (200, ["dora", "pool", "lora"])
    ours = server([tmp_path / "a.jpg"], ["dora", "pool", "lora"])[0][0]["adapters"]
    for name, tasks in answer["faces"][0]["adapters"].items():
        assert tasks["emotion"]["probabilities"] == pytest.approx(ours[name]["emotion"]["probabilities"], abs=1e-5)
    for method, path, token, expected, said in (
        ("POST", "/predict", None, 400, "name an adapter"),
        ("POST", "/predict?adapter=nobody", None, 404, "no adapter 'nobody'"),
        ("PUT", "/adapters/dora", None, 401, "authorization"),
        ("DELETE", "/adapters/dora", TOKEN + "0", 401, "authorization"),
        ("PUT", "/adapters/" + quote("x/../../y", safe=""), TOKEN, 404, ""),
        ("PUT", "/adapters/absent", TOKEN, 422, "expected a run folder"),
        ("DELETE", "/adapters/absent", TOKEN, 404, "no adapter"),
        ("GET", "/adapters/absent", None, 404, "no adapter"),
    ):
        status, answer = ask(port, method, path, photo if method == "POST" else b"", token)
        assert (status, said in answer["error"]) == (expected, True), answer
    assert ask(port, "PUT", "/adapters/copy", b'{"from": "dora"}', TOKEN)[0] == 200
    status, answer = ask(port, "POST", "/predict?adapter=dora,copy", photo)
    assert answer["faces"][0]["adapters"]["copy"] == answer["faces"][0]["adapters"]["dora"]
    assert ask(port, "DELETE", "/adapters/copy", token=TOKEN) == (200, {"removed": "copy"})
    assert ask(port, "POST", "/predict?adapter=copy", photo)[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    assert 'jaxface_adapter_hits_total{adapter="dora"}' in connection.getresponse().read().decode()
