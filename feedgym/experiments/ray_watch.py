"""Kills what Ray left running once the process that started Ray is gone, however it went.

On Linux Ray's servers die with the process that started them. The agents that one of them started do not: they go on
for minutes, looking for the dead servers. So a process of its own notes once a second who they are, waits for the end
of its standard input, which the starting process holds, and kills those that are left. It is run as a script, with the
number of the starting process, and imports nothing of feedgym, so that it starts at once.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress

import psutil

SERVERS = ("gcs_server", "raylet")
"""What Ray starts by itself; a raylet starts agents and workers in turn."""
EVERY_S = 1.0


class Watch:
    """Looks at Ray's processes in the background.

    Args:
        driver: the process that starts Ray.
    """

    def __init__(self, driver: psutil.Process) -> None:
        self.driver, self.processes = driver, set[psutil.Process]()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            with suppress(psutil.Error):  # somebody went just now
                servers = [child for child in self.driver.children() if child.name().removesuffix(".exe") in SERVERS]
                started = [child for server in servers for child in server.children()]
                # None is forgotten while it runs: a look in the midst of the end finds servers without children.
                self.processes = {process for process in self.processes.union(servers, started) if process.is_running()}
            time.sleep(EVERY_S)

    def kill(self) -> None:
        """Kill what is left of them, unless another process has the number by now."""
        for process in self.processes:
            with suppress(psutil.Error):
                process.kill()


if __name__ == "__main__":
    watch = Watch(psutil.Process(int(sys.argv[1])))
    sys.stdin.buffer.read()
    watch.kill()
