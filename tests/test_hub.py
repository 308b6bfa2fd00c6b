"""Models by a name on the hub: without a network, with an unknown name, and with files that were fetched before."""

import os
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
from chats import BUNDLED, prompt_text
from refusals import assert_refused

from avis import loading
from avis.loading import load_model
from avis.provenance import weights_sha256

NAME = "Acme/VL-Rethinker-7B"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache and a hub of our own: a function from an address to nothing."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "HUB_SECONDS", 0.5)

    def at(port: int) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")

    return at


def test_a_hub_that_cannot_be_asked_is_reported_at_once(run, hub):
    """Guards against: minutes of tries, one for each small file, before a machine without a network says so. One hub
    refuses, one is silent: it is asked once, and waited for once."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub(silent.getsockname()[1])
        start = time.monotonic()
        assert_refused(run("--model-path", NAME, "--device", "cpu"), NAME, "not on this disk")
        assert time.monotonic() - start < 20  # a second or two, were the machine idle
        silent.settimeout(0.1)
        assert silent.accept() and pytest.raises(TimeoutError, silent.accept)
    assert_refused(run("--model-path", NAME, "--device", "cpu"), NAME, "not on this disk")


def test_a_name_that_the_hub_does_not_know_is_reported(run, hub):
    """Guards against: a slip in a name that is told as a network that is down, or asked about again and again."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hub(server.server_port)
        assert_refused(run("--model-path", NAME, "--device", "cpu"), NAME, "no model")
        server.shutdown()
        thread.join()
    assert asked == [f"/api/models/{NAME}"]


def test_fetched_models_need_no_hub(hub, tmp_path):
    """Guards against: a model that is on the disk and cannot be used without a network; its name lost, by which the
    form of its answers is known; another hash than the folder's; and what was fetched by half taken for the whole."""
    hub(1)  # no one listens there
    snapshot = tmp_path / "cache" / "models--Acme--VL-Rethinker-7B" / "snapshots" / "abc"
    shutil.copytree(BUNDLED, snapshot, copy_function=os.symlink)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    model, processor = load_model(NAME, device="cpu")
    assert "boxed" in prompt_text(processor, [{"role": "user", "content": "?"}])
    assert weights_sha256(model.config._name_or_path) == weights_sha256(NAME) == weights_sha256(str(BUNDLED))
    for lost in ("tokenizer.json", "model.safetensors"):
        (snapshot / lost).unlink()
        with pytest.raises(OSError, match="not on this disk"):
            load_model(NAME, device="cpu")
