"""The served search over HTTP: what it finds, what it refuses and how, fifty clients at once, and a good end."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from PIL import Image

import rosetta
import run
from tasks.serve import Serve
from tests.toy_served import HOSTILE, ROOT, served, write_gallery, write_run

for package in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(package, reason="pip install -r requirements-serve.txt")

LIMITS = ["max_upload_bytes=20000", "max_upload_pixels=5000", "max_text_length=60", "max_results=8", "num_candidates=4"]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    write_run(folder)
    return folder, write_gallery(folder)


@pytest.fixture(scope="module")
def address(gallery):
    folder, words = gallery
    with served(folder, *words, *LIMITS) as (url, _, _):
        yield url


def call(url: str, body: bytes | dict | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers of an answer; a dict is sent as JSON."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    kind = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
    request = urllib.request.Request(url, data, {**kind, **{k.replace("_", "-"): v for k, v in headers.items()}})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def find(address: str, text: str, **more: int) -> list[dict]:
    status, content, _ = call(f"{address}/api/search/text", {"text": text, **more})
    assert status == 200, content
    return json.loads(content)["results"]


def picture(size: tuple[int, int] = (40, 40)) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(packed, "PNG")
    return packed.getvalue()


def test_words_find_pictures_with_the_models_scores(address, gallery):
    folder, _ = gallery
    found = find(address, "red colour left side", k=5, rerank=4)
    names = [each["name"] for each in found]
    scores = rosetta.load(folder / "out").score(
        [folder / "data/images" / name for name in names], ["red colour left side"]
    )
    assert [each["similarity"] for each in found] == pytest.approx(scores["similarity"][:, 0].tolist(), abs=2e-5)
    assert [each["match"] for each in found[:4]] == pytest.approx(scores["match"][:4, 0].tolist(), abs=2e-5)
    assert found[4]["match"] is None
    assert found[0]["captions"]["zh"].startswith("图片")


def test_an_address_asks_the_same(address):
    query = urllib.parse.urlencode({"text": "blaue Farbe 蓝色", "k": 3})
    _, content, _ = call(f"{address}/api/search/text?{query}")
    assert json.loads(content)["results"] == find(address, "blaue Farbe 蓝色", k=3)


@pytest.mark.parametrize("is_form", [False, True])
def test_a_picture_finds_itself(address, gallery, is_form):
    body, kind = (gallery[0] / "data/images/5.png").read_bytes(), "image/png"
    if is_form:
        head = (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        )
        body, kind = head + body + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
    status, content, _ = call(f"{address}/api/search/image?k=2", body, Content_Type=kind)
    found = json.loads(content)["results"]
    assert status == 200 and found[0]["name"] == "5.png" and found[0]["match"] is None and len(found) == 2


@pytest.mark.parametrize(
    "path, body, status, told",
    [
        ("search/text", {"text": "a" * 61}, 422, "61 characters; allowed at most 60"),
        ("search/text", {"text": " ?! "}, 422, "nothing to look for"),
        ("search/text", {"text": "a", "k": 9}, 422, "k: 9; allowed at most 8"),
        ("search/text", {"text": "a", "k": 0}, 422, "greater than or equal to 1"),
        ("search/text", {"text": "a", "rerank": 5}, 422, "rerank: 5; allowed at most 4"),
        ("search/text", {"texts": "a"}, 422, "text: Field required"),
        ("search/text", b"{", 422, "JSON"),
        ("search/text", b"[" * 100_000, 413, "more than 65536 bytes"),
        ("search/image", b"x" * 30_000, 413, "more than 20000 bytes"),
        ("search/image", b"x" * 2_000_000, 413, "more than 20000 bytes"),
        ("search/image", picture((100, 60)), 413, "100 x 60 pixels; allowed at most 5000"),
        ("search/image", b"no picture", 422, "picture: cannot be read"),
        ("search/image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "picture: cannot be read"),
        ("search/image", b"", 422, "none was sent"),
        ("images/0123456789abcdef0123", None, 404, "no such picture"),
        ("images/..%2f..%2f..%2fetc%2fpasswd", None, 404, "Not Found"),
        ("images?count=1000", None, 422, "count: Input should be less than"),
    ],
)
def test_what_is_wrong_is_told(address, path, body, status, told):
    found, content, _ = call(
        f"{address}/api/{path}", body, Content_Type="application/json" if "text" in path else "image/png"
    )
    assert found == status and told in json.loads(content)["detail"]


@pytest.mark.parametrize(
    "path",
    ["/static/../serve.py", "/static/..%2fserve.py", "/static/index.html", "/../run.py", "/data", "//etc/passwd"],
)
def test_no_file_of_the_server_is_readable(address, path):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert b" 404 " in connection.makefile("rb").readline()


def test_pictures_are_written_anew_and_never_as_they_are(address, gallery):
    listed = json.loads(call(f"{address}/api/images?count=200")[1])
    assert listed["total"] == 9 and HOSTILE in [each["name"] for each in listed["images"]]
    assert str(gallery[0]) not in json.dumps(listed)
    mixed = json.loads(call(f"{address}/api/images?count=200&mixed=true")[1])["images"]
    assert mixed != listed["images"] and sorted(map(str, mixed)) == sorted(map(str, listed["images"]))
    for size in ("small", "large"):
        status, content, headers = call(f"{address}/api/images/{listed['images'][0]['id']}?size={size}")
        assert status == 200 and headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(content)).format == "JPEG"


def test_another_sites_name_is_refused(address):
    assert call(f"{address}/api/health", Host="evil.example")[0] == 400
    assert call(f"{address}/api/health", Host="localhost")[0] == 200


def test_the_page_asks_no_other_machine_for_anything(address):
    status, page, headers = call(address)
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    parts = [page, *(call(f"{address}/static/{name}")[1] for name in ("search.css", "search.js", "icon.svg"))]
    for part in [*parts, call(f"{address}/docs")[1]]:
        assert not re.search(rb"(https?:)?//(?!www\.w3\.org/2000/svg)[\w.]+\.\w+/?", part.replace(b"// ", b""))


def test_the_endpoints_are_described(address):
    paths = json.loads(call(f"{address}/openapi.json")[1])["paths"]
    assert set(paths) == {
        "/api/health",
        "/api/search/text",
        "/api/search/image",
        "/api/images",
        "/api/images/{picture_id}",
    }
    described = call(f"{address}/docs")[1].decode()
    assert "/api/search/image" in described and "number of results" in described and "at least 1<" in described
    health = json.loads(call(f"{address}/api/health")[1])
    assert health["status"] == "ok" and health["num_images"] == 9 and health["has_fusion"]


def test_fifty_clients_at_once_all_get_the_right_answer(address):
    texts = [f"red colour left side number {number % 5}" for number in range(50)]
    alone = {text: find(address, text, k=3) for text in set(texts)}
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda text: find(address, text, k=3), texts))
    for text, results in zip(texts, found, strict=True):
        assert [each["id"] for each in results] == [each["id"] for each in alone[text]]
        for one, other in zip(results, alone[text], strict=True):
            assert one["similarity"] == pytest.approx(other["similarity"], abs=2e-5)


def test_a_second_start_takes_the_index_asks_for_the_token_and_ends_well(gallery, address):
    folder, words = gallery
    (folder / "token").write_text("sesam öffne\n", encoding="utf-8")
    with served(folder, *words, f"token_file={folder}/token") as (url, process, said):
        assert "to be encoded" not in said.read_text()
        assert call(f"{url}/api/images")[0] == call(f"{url}/api/health")[0] == call(f"{url}/docs")[0] == 401
        assert call(f"{url}/api/images", Authorization="Bearer sesam %C3%B6")[0] == 401
        token = urllib.parse.quote("sesam öffne")
        assert b"asks for a token" in call(f"{url}/?token=wrong")[1]
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(f"{url}/?token={token}") as answer:
            assert answer.url == f"{url}/" and b"Find a picture" in answer.read()
        with opener.open(f"{url}/api/images") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, said.read_text()


def test_an_address_is_told_once_it_answers(monkeypatch):
    import uvicorn

    class Pictures(list):
        pictures = ()

    startup, connected = uvicorn.Server.startup, []

    async def start_late(server, sockets=None):
        await asyncio.sleep(0.3)
        await startup(server, sockets)

    def connect(words, *about):
        address = urllib.parse.urlsplit(about[-1])
        with socket.create_connection((address.hostname, address.port), timeout=10):
            connected.append(words % about)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(uvicorn.Server, "startup", start_late)
    monkeypatch.setattr("tasks.serve.log.info", connect)
    serve = Serve(Serve.Config(checkpoint="none", port=0), None)
    engine = SimpleNamespace(collection=Pictures(), kept=[], can_rerank=False)
    serve._serve(engine, serve._listen(), "")
    assert len(connected) == 1


def test_a_token_is_read_from_the_header():
    from tasks.search_app import Gate

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def status(*headers: tuple[bytes, bytes]) -> int:
        sent = []
        scope = {"type": "http", "method": "GET", "path": "/api/images", "query_string": b"", "headers": list(headers)}

        async def send(message):
            sent.append(message)

        asyncio.run(Gate(app, "secret", None)(scope, None, send))
        return sent[0]["status"]

    assert status() == status((b"authorization", b"Bearer secre")) == status((b"cookie", b"rosetta_token=x")) == 401
    assert status((b"authorization", b"Bearer secret")) == status((b"cookie", b"rosetta_token=secret")) == 200


@pytest.mark.parametrize(
    "words, told",
    [
        (["images=nowhere"], "nowhere: no such folder of pictures"),
        (["captions=nowhere.json"], "nowhere.json: no such data file"),
        (["max_results=0"], "max_results must be above 0"),
        (["port=70000"], "port must be in 0 ... 65535"),
        (["token=a", "token_file=b"], "token or token_file, not both"),
        (["--checkpoint", "nowhere"], "nowhere: no weights"),
        (["imagse=x"], "did you mean 'images'"),
        (["checkpoint="], "name the model to serve"),
    ],
)
def test_what_cannot_be_served_is_told(gallery, words, told, capsys):
    folder, given = gallery
    command = ["--task", "serve", "--checkpoint", str(folder / "out"), "port=0", *given, *words]
    assert run.main(command) in (1, 2)
    assert told in capsys.readouterr().err


def test_a_model_without_embeddings_is_told(tmp_path, capsys):
    write_run(tmp_path, objective="mlm", projections="none")
    assert run.main(["--task", "serve", "--checkpoint", str(tmp_path / "out"), "port=0", *write_gallery(tmp_path)]) == 1
    assert "has no embeddings to search with" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_before_the_work(gallery, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = ["--task", "serve", "--checkpoint", "nowhere", f"port={port}", *gallery[1]]
        assert run.main(command) == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


def test_the_quickstart_names_the_command_that_opens_the_page():
    command = ["make", "--no-print-directory", "--dry-run", "quickstart"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert "python3 run.py --task serve --checkpoint output/quickstart" in last
    words = last.partition("run.py")[2].strip(' "').split()
    assert run.main([*words, "--dry_run"]) == 0
