"""A hub in memory that speaks the few routes that huggingface_hub uses to upload and download a model."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "a" * 40


class Hub:
    """Repositories by name, each a dict of file name -> bytes.

    Attributes:
        repositories: what was uploaded.
        private: names of private repositories.
        url: where it listens.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format, *args) -> None:  # the name of the base class
                """Print nothing."""

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def reply(self, code, content=b"", **headers) -> None:
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def do_POST(self) -> None:
                body, path = self.body(), self.path.split("?")[0]
                name = "/".join(path.split("/")[3:5])
                if path == "/api/repos/create":
                    asked = json.loads(body)
                    made = f"{asked.get('organization') or 'me'}/{asked['name']}"
                    hub.repositories.setdefault(made, {})
                    hub.private |= {made} if asked.get("private") or asked.get("visibility") == "private" else set()
                    self.reply(200, {"url": f"{hub.url}/{made}", "id": made})
                elif path == "/api/validate-yaml":
                    self.reply(200, {"errors": [], "warnings": []})
                elif "/preupload/" in path:
                    files = json.loads(body)["files"]
                    modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
                    self.reply(200, {"files": modes})
                elif "/commit/" in path:
                    for line in body.splitlines():
                        entry = json.loads(line)
                        if entry["key"] == "file":
                            value = entry["value"]
                            hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
                    self.reply(200, {"commitUrl": f"{hub.url}/{name}/commit/{SHA}", "commitOid": SHA, "success": True})
                else:
                    self.reply(404)

            def do_GET(self) -> None:
                parts = self.path.split("?")[0].strip("/").split("/")
                api = parts[:2] == ["api", "models"]
                name = "/".join(parts[2:4] if api else parts[:2])
                files = hub.repositories.get(name)
                if files is None:
                    self.reply(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                elif api and "tree" in parts:
                    self.reply(200, [tree_entry(path, content) for path, content in files.items()])
                elif api:
                    self.reply(200, {"id": name, "sha": SHA, "siblings": [{"rfilename": path} for path in files]})
                elif parts[2] == "resolve" and "/".join(parts[4:]) in files:
                    content = files["/".join(parts[4:])]
                    self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=SHA)
                else:
                    self.reply(404, X_Error_Code="EntryNotFound")

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()


def tree_entry(path, content):
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
