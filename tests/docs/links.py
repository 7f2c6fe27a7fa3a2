"""Checks what the documents name: links, files, commands and flags, settings, routes, alarms.

    python3 tests/docs/links.py PATH_OF_CEOAGENT
"""

import functools
import json
import pathlib
import re
import subprocess
import sys

from blocks import DOCUMENTS, blocks

# Names in capitals that are not settings of the service, and what they are.
NOT_SETTINGS = {
    "ANTHROPIC_AUTH_TOKEN": "access to a gateway",
    "ANTHROPIC_CUSTOM_HEADERS": "access to a gateway",
    "CEOAGENT_URL": "the commands",
    "CEOAGENT_TOKEN": "the commands",
    "NO_COLOR": "the commands",
    "HTTPS_PROXY": "the HTTP client",
    "HTTP_PROXY": "the HTTP client",
    "NO_PROXY": "the HTTP client",
    "ALL_PROXY": "the HTTP client",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "OpenTelemetry",
    "OTEL_": "OpenTelemetry",
    "SSL_CERT_FILE": "the TLS library",
    "TMPDIR": "the system",
    "ALERT_WEBHOOK": "deploy/monitor.sh",
    "RUNBOOK_URL": "docker-compose.yml",
    "SINGLE_NODES": "docker-compose.yml",
    "POSTGRES_PASSWORD": "docker-compose.yml",
    "PROMETHEUS_TARGETS": "docker-compose.yml",
    "CLUSTER_SUBNET": "docker-compose.yml",
    "UPDATE_DOCS": "the tests",
}


def read(path):
    return pathlib.Path(path).read_text(encoding="utf-8")


def anchors(path):
    """Those of the headings, as GitHub makes them: lower case, spaces to hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", read(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(path)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file) if file else path
        if not found.exists():
            yield f"{path}: {target} does not exist"
        elif anchor and anchor not in anchors(found):
            yield f"{path}: {target} has no such heading"


def files(path):
    for file in re.findall(r"(?<![\w/.])((?:src|tests|deploy|k8s|prompts|docs|\.github)/[\w./-]*\w/?)", read(path)):
        if not pathlib.Path(file).exists():
            yield f"{path}: {file} does not exist"


def alarms():
    runbook = anchors("docs/runbook.md")
    rules = re.findall(r"- alert: (\w+)\n.*?runbook_url: \"(.+?)\"", read("deploy/prometheus/alerts.yml"), re.S)
    assert rules
    for alarm, url in rules:
        if url != f"{{{{ $externalLabels.runbook }}}}#{alarm.lower()}" or alarm.lower() not in runbook:
            yield f"alarm {alarm}: {url} has no entry"


class Program:
    """What the binary says about itself."""

    def __init__(self, binary):
        self.binary = binary
        self.document = json.loads(subprocess.check_output([binary, "openapi"]))

    @functools.lru_cache
    def help(self, *words):
        shown = subprocess.run([self.binary, *words, "--help"], capture_output=True, text=True)
        return shown.stdout if shown.returncode == 0 else None

    def settings(self):
        # That of the key has no flag.
        return set(re.findall(r"(?:\[env: |the setting )([A-Z_]+)", self.help("serve")))

    def routes(self):
        return {f"{method.upper()} {path}" for path, methods in self.document["paths"].items() for method in methods}


def commands(path, program):
    """Every `ceoagent <command>` of the code, and the flags that it is given."""
    code = [block.code for block in blocks(path) if block.language in ("bash", "ini")]
    code = "\n".join(code + re.findall(r"`([^`\n]+)`", read(path)))
    found = re.findall(
        r"(?:^|[;|&(]\s*)(?:[A-Z_]+=\S+ )*(?:docker run --rm )?(?:\S*/)?ceoagent ([a-z][\w-]*)([^|>#\n]*)", code, re.M)
    for command, rest in found:
        known = program.help(command)
        if known is None:
            yield f"{path}: there is no command ceoagent {command}"
            continue
        if below := re.match(r" ([a-z][\w-]*)", rest):
            known += program.help(command, below[1]) or ""
        for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", rest):
            if flag not in known:
                yield f"{path}: ceoagent {command} has no {flag}"


def settings(path, program):
    known = program.settings() | NOT_SETTINGS.keys()
    for name in re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)[`=]", read(path)):
        if name not in known and name.removesuffix("_FILE") not in known:
            yield f"{path}: there is no setting {name}"


def routes(program):
    named = set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", read("docs/api.md"), re.M))
    yield from (f"docs/api.md: there is no route {route}" for route in sorted(named - program.routes()))
    yield from (f"docs/api.md: the route {route} is missing" for route in sorted(program.routes() - named))


def memo(program):
    """Every field of a memo and every flag is explained."""
    text = read("docs/memo.md")
    schemas = program.document["components"]["schemas"]
    parts = schemas["Memo"].get("allOf", [schemas["Memo"]])
    parts = [schemas[part["$ref"].rpartition("/")[2]] if "$ref" in part else part for part in parts]
    names = {name for part in parts for name in part["properties"]} | set(schemas["FlagCode"]["enum"])
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    yield from (f"docs/memo.md: {name} is missing" for name in sorted(names - rows))
    yield from (f"docs/memo.md: there is no {name}" for name in sorted(rows - names))


def main(binary):
    program = Program(binary)
    wrong = [*alarms(), *routes(program), *memo(program)]
    for path in DOCUMENTS:
        wrong += [*links(path), *files(path), *commands(path, program), *settings(path, program)]
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(DOCUMENTS)} documents: links, files, commands, settings and routes are right")


main(sys.argv[1])
