"""`carbrand serve` as a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys


class Running:
    def __init__(self, process, url):
        self.process, self.url = process, url

    def stop(self):
        """SIGTERM, and what the server wrote from its start on."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=60)[0]


@contextlib.contextmanager
def serving(model, *arguments, api_key=""):
    """The server of `model`, at a free port."""
    command = [sys.executable, "-m", "carbrand", "serve", "--model", str(model), "--port", "0", *map(str, arguments)]
    environment = {**os.environ, "CARBRAND_API_KEY": api_key}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, bufsize=1
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"Serving on (http://\S+)/", line):
                yield Running(process, found[1])
                break
        else:
            raise AssertionError(f"the server did not start: {''.join(lines)}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
