"""The server on loopback: answers like the predictor, refuses in one line, outlives its clients."""

import asyncio
import concurrent.futures
import http.client
import json
import socket
import struct
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
import uvicorn
from faces import write_photo
from running_server import PATIENCE, running

from jaxface.errors import UserError
from jaxface.prediction.connections import Server, protocol
from jaxface.prediction.limits import Limits
from jaxface.prediction.predictor import Predictor
from jaxface.prediction.server import listen, make_app
from jaxface.prediction.turns import Turns

LIMITS = Limits(port=0, megabytes=0.3, megapixels=0.5, waiting=8, upload_seconds=1.5)


@pytest.fixture(scope="module")
def predictor(trained_run):
    return Predictor(trained_run, batch_size=4, small_batches=True)


@pytest.fixture(scope="module")
def port(predictor):
    """The port of a running server."""
    with running(predictor, LIMITS) as port:
        yield port


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "a.jpg"
    write_photo(path, 0, size=90)
    return path


def ask(port, body, path="/predict", method="POST", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text) if response.headers["content-type"].startswith("application/json") else text


def png_of_zeros(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(min((3 * width + 1) * height, 20_000_000)), 1)  # of a larger one the start alone is sent
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    )


def test_a_photo_is_answered_as_the_predictor_answers_it(port, predictor, photo):
    status, answer = ask(port, photo.read_bytes())
    assert status == 200
    assert answer == {"width": 90, "height": 90, "faces": predictor([photo])[0]}


def test_many_callers_at_once_get_their_own_answers(port, predictor, tmp_path):
    paths = [tmp_path / f"{index}.jpg" for index in range(8)]
    for index, path in enumerate(paths):
        write_photo(path, index, size=40 + index)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda path: ask(port, path.read_bytes()), paths))
    assert [status for status, _ in answers] == [200] * 8
    for path, (_, answer) in zip(paths, answers, strict=True):
        shares = [list(faces[0]["age"]["probabilities"].values()) for faces in (answer["faces"], predictor([path])[0])]
        np.testing.assert_allclose(*shares, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 415, "no photo of a known format"),
        (b"not a photo" * 100, 415, "no photo of a known format"),
        (b"\xff\xd8\xff" + bytes(400_000), 413, "larger than 0.3 MB"),
        (png_of_zeros(4000, 4000), 413, "too large: 4000 x 4000 pixels, at most 0.5 million"),
        (png_of_zeros(20_000, 20_000)[:200], 4, ""),
        (cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()[:300], 4, ""),
    ],
    ids=["empty", "text", "large", "bomb", "large bomb", "cut off"],
)
def test_what_is_no_photo_is_refused_in_one_line(port, photo, body, status, says):
    got, answer = ask(port, body)
    assert got == status or got // 100 == status
    assert answer.keys() == {"error"}
    assert says in answer["error"]
    assert "\n" not in answer["error"]
    assert ask(port, photo.read_bytes())[0] == 200


def test_a_length_that_is_declared_too_large_is_refused_before_the_photo_is_sent(port):
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\nx")
        assert b" 413 " in client.recv(1000).splitlines()[0]


def test_a_client_that_sends_too_slowly_is_told_so(port):
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        assert b" 408 " in client.recv(1000).splitlines()[0]


def test_a_connection_that_says_nothing_is_closed(port):
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"POST /pred")
        assert client.recv(100) == b""


def test_clients_that_go_away_leave_nothing_behind(port, photo):
    data = photo.read_bytes()
    for cut in (0, 10, len(data) - 1, len(data)):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:cut])
    while "jaxface_under_way 0" not in ask(port, None, "/metrics", "GET")[1]:
        time.sleep(0.05)
    assert ask(port, data)[0] == 200


def test_more_callers_than_are_allowed_are_told_to_come_again(port, photo):
    waiting = []
    for _ in range(LIMITS.waiting):
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        waiting.append(client)
    while f"jaxface_under_way {LIMITS.waiting}" not in ask(port, None, "/metrics", "GET")[1]:
        time.sleep(0.02)
    status, answer = ask(port, photo.read_bytes())
    for client in waiting:
        client.close()
    assert (status, "try again" in answer["error"]) == (429, True)
    while "jaxface_under_way 0" not in ask(port, None, "/metrics", "GET")[1]:
        time.sleep(0.02)
    assert ask(port, photo.read_bytes())[0] == 200


def test_health_metrics_and_the_page(port, predictor, photo):
    assert ask(port, None, "/health", "GET") == (200, {"status": "ok", **json.loads(json.dumps(predictor.about()))})
    before, text = (ask(port, photo.read_bytes())[0], ask(port, None, "/metrics", "GET")[1])
    assert before == 200
    assert 'jaxface_requests_total{status="200"}' in text
    status, page = ask(port, None, "/", "GET")
    assert status == 200
    assert "//" not in page.replace("</", "").replace("/>", "")
    assert ask(port, None, "/nowhere", "GET") == (404, {"error": "GET /nowhere: Not Found"})
    assert ask(port, None, "/predict", "GET")[0] == 405


def test_an_address_that_is_taken_is_one_line(port):
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        listen(Limits(port=port))


def test_every_connection_that_the_system_has_accepted_is_answered_when_the_server_stops(predictor, photo):
    listener = listen(LIMITS)
    server = Server(uvicorn.Config(make_app(predictor, LIMITS), http=protocol(1.5), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    data, clients = photo.read_bytes(), []
    server.should_exit = True
    for _ in range(6):  # the server is told to stop while these come in
        client = socket.create_connection(listener.getsockname(), PATIENCE)
        client.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        clients.append(client)
    answers = [client.recv(100).splitlines()[0] for client in clients]
    thread.join(PATIENCE)
    assert answers == [b"HTTP/1.1 200 OK"] * 6
    assert not thread.is_alive()


@pytest.mark.parametrize("second", [b"", b"POST /pred"])
def test_a_kept_connection_that_asks_for_nothing_more_is_closed(port, photo, second):
    data = photo.read_bytes()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        assert client.recv(100_000).startswith(b"HTTP/1.1 200")
        client.sendall(second)
        while client.recv(100_000):
            pass


def test_a_kept_connection_survives_a_photo_that_is_refused(port, photo):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    statuses = []
    for body in (b"no photo", photo.read_bytes()[:-20], photo.read_bytes()):
        connection.request("POST", "/predict", body)
        response = connection.getresponse()
        statuses.append((response.status, response.headers.get("connection"), json.loads(response.read()).keys()))
    connection.close()
    assert statuses == [(415, None, {"error"}), (422, None, {"error"}), (200, None, {"width", "height", "faces"})]


def test_a_page_of_another_site_reaches_no_server_of_this_machine(port, photo):
    data = photo.read_bytes()
    assert ask(port, data, Host="evil.example:80")[0] == 403
    assert "none of this server's names" in ask(port, None, "/health", "GET", Host="evil.example")[1]["error"]
    status, answer = ask(port, data, Origin="https://evil.example")
    assert (status, "may not send photos" in answer["error"]) == (403, True)
    assert ask(port, data, Origin="http://[")[0] == ask(port, data, Host="[")[0] == 403
    assert ask(port, data, Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert ask(port, None, "/health", "GET", Host=f"localhost:{port}")[0] == 200


def test_head_is_answered_where_get_is(port):
    for path in ("/health", "/metrics", "/"):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_an_empty_address_is_refused():
    with pytest.raises(UserError, match="host '': expected an address"):
        listen(Limits(host=""))


def test_photos_whose_decoders_know_no_bounds_have_threads_of_their_own(port, photo, monkeypatch):
    from jaxface.prediction import server

    release, waiting, real = threading.Event(), [], server.decode_photo

    def decode_photo(data, *about):
        if data.startswith(b"II*"):
            waiting.append(data)
            release.wait(PATIENCE)
        return real(data, *about)

    monkeypatch.setattr(server, "decode_photo", decode_photo)
    tiff = cv2.imencode(".tiff", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    with concurrent.futures.ThreadPoolExecutor(7) as pool:
        hostile = [pool.submit(ask, port, tiff) for _ in range(7)]  # more than there are threads for other photos on two cores
        while len(waiting) < server.DOUBTFUL:
            time.sleep(0.01)
        assert ask(port, photo.read_bytes())[0] == 200
        assert not any(answer.done() for answer in hostile)
        release.set()
        assert {answer.result()[0] for answer in hostile} == {200}


def test_of_photos_that_wait_the_one_with_the_least_work_is_next():
    async def main():
        turns, order = Turns(1), []

        async def one(work):
            async with turns.turn(work):
                order.append(work)
                await asyncio.sleep(0)

        async with turns.turn(0):
            tasks = [asyncio.create_task(one(work)) for work in (9, 5, 7, 1)]
            await asyncio.sleep(0)
            tasks[3].cancel()  # who gives up takes no place
        await asyncio.gather(*tasks, return_exceptions=True)
        async with turns.turn(0):
            return order

    assert asyncio.run(main()) == [5, 7, 9]
