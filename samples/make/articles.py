"""Writes samples/articles-questions: python samples/make/articles.py

What extras/questions.py makes of samples/articles when the server is a strong model: a thread of
this process serves that model's recorded replies, tests/fixtures/replies.jsonl.
"""

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "extras"))

import questions  # noqa: E402

LINES = (ROOT / "tests" / "fixtures" / "replies.jsonl").read_text(encoding="utf-8").splitlines()
REPLIES = {line["title"]: line["reply"] for line in map(json.loads, LINES)}


class Recorded(BaseHTTPRequestHandler):
    """Answers a prompt about one article, or about two, by the articles' titles."""

    def do_POST(self):
        [turn] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        title = " | ".join(re.findall(r"\[Article \d\]\n(.+)", turn["content"]))
        message = {"role": "assistant", "content": json.dumps(REPLIES[title])}
        body = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main(folder=ROOT / "samples" / "articles-questions"):
    with HTTPServer(("127.0.0.1", 0), Recorded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        articles = str(ROOT / "samples" / "articles")
        questions.main(
            [articles, "--output", str(folder), "--url", url, "--model", "recorded"]
            + ["--questions-per-article", "4"]
        )
        server.shutdown()
    (folder / "replies.jsonl").unlink()  # the journal, with the port of this time


if __name__ == "__main__":
    main()
