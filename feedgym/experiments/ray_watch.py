"""Kills Ray's leftover processes once the process that started Ray is gone, however it ended.

On Linux Ray's servers die with the process that started them. But the agents that a server started continue for
minutes, looking for the dead servers. So a separate process records them once a second. It waits for the end of its
standard input, which the starting process holds, and then kills the leftovers. It is run as a script, with the number
of the starting process. It imports nothing of feedgym, so that it starts at once.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress

import psutil

SERVERS = ("gcs_server", "raylet")
"""Servers that Ray starts by itself; a raylet starts agents and workers in turn."""
EVERY_S = 1.0


class Watch:
    """Records Ray's processes in the background.

    Args:
        driver: the process that starts Ray.
    """

    def __init__(self, driver: psutil.Process) -> None:
        self.driver, self.processes = driver, set[psutil.Process]()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            with suppress(psutil.Error):  # a process ended just now
                servers = [child for child in self.driver.children() if child.name().removesuffix(".exe") in SERVERS]
                started = [child for server in servers for child in server.children()]
                # Keep each while it runs: a look during the shutdown finds servers without children.
                self.processes = {process for process in self.processes.union(servers, started) if process.is_running()}
            time.sleep(EVERY_S)

    def kill(self) -> None:
        """Kill the leftovers, unless another process has reused the number."""
        for process in self.processes:
            with suppress(psutil.Error):
                process.kill()


if __name__ == "__main__":
    watch = Watch(psutil.Process(int(sys.argv[1])))
    sys.stdin.buffer.read()
    watch.kill()
