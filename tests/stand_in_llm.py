"""A program in the place of vLLM: it demands its key and offers one model; its options are the ways to misbehave."""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--key-file", type=Path, help="where its key is, else in the environment")
parser.add_argument("--open", action="store_true", help="demand no key")
parser.add_argument("--slow", type=float, default=0, help="seconds until it answers")
parser.add_argument("--no-model", action="store_true")
parser.add_argument("--dies", action="store_true", help="end by itself, 3 s after the first answer")
parser.add_argument("--dies-loading", action="store_true", help="end by itself before that")
parser.add_argument("--deaf", action="store_true", help="do not react to SIGTERM")
parser.add_argument("--child", type=Path, help="start a process in a session of its own, and write its id there")
options = parser.parse_args()
key = options.key_file.read_text() if options.key_file else os.environ["VLLM_API_KEY"]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        allowed = options.open or self.headers.get("Authorization") == f"Bearer {key}"
        models = [] if options.no_model else [{"id": "stand-in"}, {"id": "another"}]
        body = json.dumps({"object": "list", "data": models}).encode()
        self.send_response(200 if allowed and self.path == "/v1/models" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if allowed and options.dies:
            threading.Timer(3, die).start()

    def log_message(self, *_: object) -> None:
        pass


def die() -> None:
    print("Traceback:\n\x1b[31mRuntimeError: no room\x1b[0m on the GPU\n", file=sys.stderr, flush=True)
    os._exit(7)


print(f"loading, with the key {key}", flush=True)
if options.deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if options.dies_loading:
    die()
if options.child:
    options.child.write_text(str(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid))
time.sleep(options.slow)
ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
