"""`--task serve`: a page that finds pictures by words of any language or by a picture, with any trained model."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.collection import Collection
from tasks.search_engine import SearchEngine
from tasks.search_index import IndexStore, PixelReader, build_index, index_folder
from tasks.tool import Tool, ToolConfig
from utils import distributed
from utils.optional import require

REQUIREMENTS = "requirements-serve.txt"
BUNDLED = str(Path(__file__).resolve().parent.parent / "assets" / "emoji" / "emoji_96px.zip")
LOCAL_NAMES = ["localhost", "127.0.0.1", "[::1]"]
START_SECONDS, POLL_SECONDS = 0.01, 0.2  # between two looks at the server
MAX_CONNECTIONS = 1024  # further ones are told to come back

log = logging.getLogger(__name__)


class Serve(Tool):
    """Indexes a folder of pictures once and answers searches until a signal ends it."""

    @dataclass
    class Config(ToolConfig):
        model_config: str = ""  # YAML that describes the model; none: the one beside the checkpoint
        images: str | list[str] = field(default_factory=list)  # folders, zips or zip::folder; none: the bundled emoji
        captions: str | list[str] = field(default_factory=list)  # JSON files with image and caption to show
        host: str = "127.0.0.1"
        port: int = 8000  # 0: any free one
        hosts: list[str] = field(default_factory=list)  # further names by which browsers may call; "*": any
        token: str = ""  # asked for where it is set
        token_file: str = ""  # a file that holds it: command lines can be seen by others
        device: str = "auto"
        batch_size: int = 32
        num_workers: int = 0  # threads that decode; 0: one for each core
        index_dir: str = "~/.cache/rosetta-vl/search"
        max_results: int = 200
        num_candidates: int = 32  # re-ranked where the model has a fusion stack
        max_upload_bytes: int = 16 << 20
        max_upload_pixels: int = 40_000_000
        max_text_length: int = 1000
        max_waiting: int = 256  # searches; further ones are told to try again
        max_seconds: float = 60.0
        token_cache_bytes: int = 512 << 20  # image tokens kept for re-ranking

        def __post_init__(self) -> None:
            if not self.checkpoint:
                raise ValueError("checkpoint is empty; name the model to serve, as --checkpoint output/quickstart")
            positive = ("batch_size", "max_results", "max_upload_bytes", "max_upload_pixels", "max_text_length")
            for name in (*positive, "max_waiting", "max_seconds"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")
            if not 0 <= self.port <= 65535:
                raise ValueError(f"port must be in 0 ... 65535, found {self.port}")
            if self.num_candidates < 0:
                raise ValueError(f"num_candidates must be at least 0, found {self.num_candidates}")
            if self.token and self.token_file:
                raise ValueError("give token or token_file, not both")
            self.images, self.captions = (
                [value] if isinstance(value, str) else value for value in (self.images, self.captions)
            )
            if not self.images:
                self.images = [f"{BUNDLED}::images"]
                self.captions = self.captions or [f"{BUNDLED}::metadata.json"]

    def run(self) -> dict[str, Any]:
        """Serve until SIGTERM or SIGINT; {} then, and nothing is written."""
        if distributed.world_size() > 1:
            raise ValueError("serve runs in one process; leave out --nproc and --dist")
        for package in ("fastapi", "uvicorn", "python_multipart"):
            require(package, REQUIREMENTS)
        token = self._token()
        listener = self._listen()
        collection = Collection(self.config.images, self.config.captions)
        device = str(distributed.device_for_rank(self.config.device))
        loaded = self.load(self.config.checkpoint, self.config.model_config or None, device=device)
        if not loaded.model.has_common_space:
            raise ValueError(
                f"{self.config.checkpoint}: was trained for the task {loaded.config.task} and has no embeddings to "
                "search with (model.projections)"
            )
        engine = self._engine(loaded, collection)
        engine.start()
        try:
            self._serve(engine, listener, token)
        finally:
            engine.close()
        return {}

    def _token(self) -> str:
        if not self.config.token_file:
            return self.config.token
        token = Path(self.config.token_file).read_text(encoding="utf-8").strip()
        if not token:
            raise ValueError(f"{self.config.token_file}: holds no token")
        return token

    def _listen(self) -> socket.socket:
        """A bound socket, before the long work: a port that is taken shows at once."""
        family = socket.AF_INET6 if ":" in self.config.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.config.host, self.config.port))
        except OSError as error:
            listener.close()
            raise ValueError(
                f"port {self.config.port} of {self.config.host} cannot be used ({error.strerror}); choose another one, "
                "as port=8001"
            ) from error
        return listener

    def _engine(self, loaded: Any, collection: Collection) -> SearchEngine:
        reader = PixelReader(collection, loaded, self.config.num_workers or os.cpu_count() or 1)
        store = IndexStore(index_folder(self.config.index_dir, loaded, self.config.images))
        kept, embed = build_index(collection, loaded, reader, store, batch_size=self.config.batch_size)
        return SearchEngine(
            loaded,
            collection,
            reader,
            kept,
            embed,
            max_waiting=self.config.max_waiting,
            cache_bytes=self.config.token_cache_bytes,
        )

    def _serve(self, engine: SearchEngine, listener: socket.socket, token: str) -> None:
        import uvicorn

        from tasks.search_app import Face, Limits, create_app

        limits = Limits(
            upload_bytes=self.config.max_upload_bytes,
            pixels=self.config.max_upload_pixels,
            text_length=self.config.max_text_length,
            num_results=self.config.max_results,
            num_candidates=self.config.num_candidates,
            seconds=self.config.max_seconds,
        )
        about = self._about(engine) | {"max_text_length": limits.text_length, "max_upload_bytes": limits.upload_bytes}
        app = create_app(Face(engine, limits, about), hosts=self._hosts(), token=token)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=5,
                limit_concurrency=MAX_CONNECTIONS,
            )
        )
        # In a thread, where uvicorn leaves signals alone: here they mean a good end.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
        before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}
        for kind in before:
            signal.signal(kind, lambda *_: setattr(server, "should_exit", True))
        try:
            thread.start()
            while thread.is_alive() and not server.started:  # an address is told once it answers
                thread.join(START_SECONDS)
            if server.started:
                log.info("%d pictures: open %s and stop with Ctrl-C", len(engine.kept), self._address(listener))
                if not token and not is_loopback(self.config.host):
                    log.warning("anyone who reaches %s can search; token_file=FILE asks for a token", self.config.host)
            while thread.is_alive():
                thread.join(POLL_SECONDS)
            if not server.started:
                raise RuntimeError("the server could not start; what it logged says why")
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _about(self, engine: SearchEngine) -> dict[str, Any]:
        languages = dict.fromkeys(code for picture in engine.collection.pictures for code in picture.captions if code)
        return {
            "model": Path(self.config.checkpoint).name,
            "num_images": len(engine.kept),
            "num_left_out": len(engine.collection) - len(engine.kept),
            "has_fusion": engine.can_rerank,
            "num_candidates": self.config.num_candidates if engine.can_rerank else 0,
            "max_results": self.config.max_results,
            "languages": list(languages),
        }

    def _hosts(self) -> list[str]:
        """The names that a request may carry: another site's name that leads here is refused."""
        own = LOCAL_NAMES if is_loopback(self.config.host) else [*LOCAL_NAMES, self.config.host]
        is_everywhere = self.config.host in ("0.0.0.0", "::") and not self.config.hosts
        return ["*"] if is_everywhere else [*own, *self.config.hosts]

    def _address(self, listener: socket.socket) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{listener.getsockname()[1]}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
