"""A broker on a thread of the test: the real web app on a free port of loopback, for a folder or for a bucket."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.clock import Clock, SystemClock
from infra.identity import Identity, open_identity
from infra.objects import Store
from infra.s3 import S3Store
from infra.s3_receiver import S3Receiver
from infra.store import DirStore
from ingest.broker_store import BrokerStore, open_broker_store
from serve.admission import Admission
from serve.broker import Broker
from serve.fleet_web import make_app, make_server
from serve.receiver import FolderReceiver
from serve.registry import Registry

START_S = 20.0


@dataclass
class RunningBroker:
    """A running broker. `url` is where hosts ask; `registry` and `broker` are its own, for looking and for shortcuts."""

    url: str
    store: Store
    registry: Registry
    broker: Broker
    clock: Clock

    def host(self, folder: Path, host_id: str, cameras: Sequence[str], **quota: int) -> tuple[Identity, BrokerStore]:
        """Make a key, enrol it, and return it with the store that the host sees."""
        code = self.registry.invite(host_id, cameras, **quota)
        identity = open_identity(folder / host_id, host_id)
        self.registry.accept(code, identity.public_key)
        return identity, open_broker_store(self.url, identity)


@contextlib.contextmanager
def running_broker(
    store: S3Store | DirStore, *, clock: Clock | None = None, capacity: float = 1000.0, asks: float = 1000.0
) -> Iterator[RunningBroker]:
    """Run a broker for the length of the `with`; revocations are seen at once."""
    clock = clock or SystemClock()
    receiver = S3Receiver(store) if isinstance(store, S3Store) else FolderReceiver(store, clock)
    registry = Registry(store, clock, fresh_s=0.0)
    broker = Broker(registry, receiver, clock, admission=Admission(capacity), asks_a_second=asks)
    app = make_app(broker, receiver if isinstance(receiver, FolderReceiver) else None, store)
    server = make_server(app, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError("the broker did not start")
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield RunningBroker(f"http://127.0.0.1:{port}", store, registry, broker, clock)
    finally:
        server.should_exit = True
        thread.join(10)
