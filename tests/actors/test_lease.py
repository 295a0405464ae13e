import threading
import time

from pasta_ray.actors.lease import Lease


def test_a_lease_ends_once_and_only_without_renewal() -> None:
    ended = threading.Event()
    calls: list[float] = []

    def end() -> None:
        calls.append(time.monotonic())
        ended.set()

    lease = Lease(0.2, end)
    for _ in range(10):
        time.sleep(0.05)
        lease.renew()
    renewed = time.monotonic()
    assert not ended.is_set()
    assert ended.wait(5)
    time.sleep(0.3)
    assert len(calls) == 1
    assert calls[0] - renewed >= 0.19
