"""Stands between an agent and a real cluster, and forces what the model is to call.

Real ranks with random weights compute each answer, token by token; but each request of the agent
gets a tool_choice, and that tool a schema of one value, so that the calls make sense. The last one
gets a schema for its text. Whatever comes back goes through untouched.
"""

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TIMEOUT_S = 120.0
Call = tuple[str, dict[str, str]]  # a tool's name and its arguments


class ForcingProxy:
    """calls: what each next request has to call; after that it says `end`. seen: the bodies that
    the agent sent."""

    def __init__(self, upstream: str, calls: list[Call], end: str) -> None:
        self.calls, self.end = calls, end
        self.seen: list[dict] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, urlsplit(upstream)))
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def forced(self, path: str, body: dict) -> dict:
        """The body with the next call in it, in the words of the path's dialect."""
        self.seen.append(body)
        force = next(force for ending, force in DIALECTS.items() if path.endswith(ending))
        if not self.calls:
            return body | force(None, _only({"said": self.end}), body)
        name, arguments = self.calls.pop(0)
        schema = _only(arguments)
        tools = [_narrowed(tool, name, schema) for tool in body["tools"]]
        return body | {"tools": tools} | force(name, schema, body)


def _only(values: dict[str, str]) -> dict:
    return {
        "type": "object",
        "properties": {key: {"type": "string", "enum": [one]} for key, one in values.items()},
        "required": list(values),
        "additionalProperties": False,
    }


def _narrowed(tool: dict, name: str, schema: dict) -> dict:
    if tool.get("name") == name:
        return tool | {"input_schema" if "input_schema" in tool else "parameters": schema}
    if tool.get("function", {}).get("name") == name:
        return tool | {"function": tool["function"] | {"parameters": schema}}
    return tool


def _responses(name: str | None, schema: dict, body: dict) -> dict:
    if name:
        return {"tool_choice": {"type": "function", "name": name}}
    shape = {"type": "json_schema", "name": "end", "schema": schema, "strict": True}
    return {"tool_choice": "none", "text": {"format": shape}}


def _messages(name: str | None, schema: dict, body: dict) -> dict:
    if name:
        return {"tool_choice": {"type": "tool", "name": name}}
    shape = {"type": "json_schema", "schema": schema}
    return {
        "tool_choice": {"type": "none"},
        "output_config": body.get("output_config", {}) | {"format": shape},
    }


def _chat(name: str | None, schema: dict, body: dict) -> dict:
    if name:
        return {"tool_choice": {"type": "function", "function": {"name": name}}}
    shape = {"name": "end", "schema": schema, "strict": True}
    return {
        "tool_choice": "none",
        "response_format": {"type": "json_schema", "json_schema": shape},
    }


DIALECTS = {"/responses": _responses, "/messages": _messages, "/chat/completions": _chat}


def _handler(proxy: ForcingProxy, upstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on("GET", None)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = urlsplit(self.path).path
            self._pass_on("POST", json.dumps(proxy.forced(path, body)))

        def _pass_on(self, method: str, body: str | None) -> None:
            there = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=TIMEOUT_S)
            there.request(method, self.path, body, {"Content-Type": "application/json"})
            answer = there.getresponse()
            # Its end is the connection's, as this server speaks HTTP/1.0.
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type"))
            self.end_headers()
            while data := answer.read1():
                self.wfile.write(data)
            there.close()

        def log_message(self, format: str, *args) -> None:
            pass

    return Handler
