"""The self-test of a store ends, whatever happens to the process that runs it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from infra import selftest
from infra.store import MemoryStore


def test_a_process_that_ends_leaves_no_writer_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the interpreter takes no more work after three writers, these three do not wait for the others for ever."""
    submit, asked = ThreadPoolExecutor.submit, list[int]()

    def ending(self: ThreadPoolExecutor, *arguments: Any) -> Future[Any]:
        asked.append(1)
        if len(asked) > 3:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        return submit(self, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", ending)
    said = list[type[BaseException]]()

    def run() -> None:
        try:
            selftest.put_if_absent(MemoryStore())
        except RuntimeError as error:
            said.append(type(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert not thread.is_alive() and said == [RuntimeError]
