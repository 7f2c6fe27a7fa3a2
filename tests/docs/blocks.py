"""The code blocks of the documents and how each is tested.

The words after the language of a block say how:

    ```bash          runs as it stands
    ```bash server   starts a service; the blocks after it use that service
    ```bash no-run   is not run, because it needs what a test does not have (see NOT_RUN); only its syntax and names
                     are checked
    ```python        runs as it stands, without packages
    ```typescript    runs as it stands with Node.js, without packages
    ```json          must be valid JSON

Blocks of one document run in order in one shell, so variables stay set.
"""

import dataclasses
import pathlib
import re

DOCUMENTS = [pathlib.Path("README.md"), *sorted(pathlib.Path("docs").glob("*.md"))]

# Programs that excuse a block from being run, and why.
NOT_RUN = {
    "docker": "needs a container engine; tests/docker/run.sh covers it",
    "kubectl": "needs a cluster; tests/deploy/run.sh validates the manifests",
    "git": "needs the network",
    "pip": "needs the network; tests/api/run.sh covers it",
    "npm": "needs the network; tests/api/run.sh covers it",
    "cargo": "compiles for minutes; tests/run.sh covers it",
    "bash": "runs tests within the tests",
    "sudo": "changes the machine",
}

LANGUAGES = {"bash", "python", "typescript", "json", "ini", "text"}


@dataclasses.dataclass
class Block:
    document: pathlib.Path
    line: int
    language: str
    mark: str
    code: str

    @property
    def place(self):
        return f"{self.document}:{self.line}"

    @property
    def is_run(self):
        return self.language in ("bash", "python", "typescript") and self.mark != "no-run"


def blocks(document):
    text = document.read_text(encoding="utf-8")
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S):
        language, _, mark = match[1].partition(" ")
        yield Block(document, text.count("\n", 0, match.start()) + 2, language, mark, match[2])


def programs(code):
    """The first word of every command, without assignments before it."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(^|\s)#.*", "", code)).splitlines()
    for line in lines:
        for command in re.split(r"\|\||&&|[;|]", line):
            words = re.sub(r"^(\s*\w+=\S*)+\s", "", command).split()
            if words:
                yield words[0]
