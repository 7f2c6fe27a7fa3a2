"""Checks the documents: every link within the repository leads somewhere, every alarm has its entry in the runbook, and
every command and file that they name exists.

    python tests/deploy/documents.py PATH_OF_CEOAGENT
"""

import pathlib
import re
import subprocess
import sys

import yaml

DOCUMENTS = [pathlib.Path("README.md"), *sorted(pathlib.Path("docs").glob("*.md"))]


def anchors(path):
    """Of the headings, as they are made on the web: lower case, blanks to hyphens, no other marks."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file) if file else path
        if not found.exists():
            yield f"{path}: {target} leads nowhere"
        elif anchor and anchor not in anchors(found):
            yield f"{path}: {target} has no such heading"


def alarms():
    runbook = anchors(pathlib.Path("docs/runbook.md"))
    for rule in yaml.safe_load(pathlib.Path("deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]:
        url = rule["annotations"]["runbook_url"]
        if url != f"docs/runbook.md#{rule['alert'].lower()}" or rule["alert"].lower() not in runbook:
            yield f"alarm {rule['alert']}: {url} has no entry"


def commands(binary):
    """Every `ceoagent <command>` of the code in the documents, and the flags that it is given."""
    helps = {}

    def help_of(*words):
        if words not in helps:
            shown = subprocess.run([binary, *words, "--help"], capture_output=True, text=True)
            helps[words] = shown.stdout if shown.returncode == 0 else None
        return helps[words]

    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        code = "\n".join(re.findall(r"```(?:bash|ini)\n(.*?)```", text, re.S) + re.findall(r"`([^`\n]+)`", text))
        for command, rest in re.findall(r"(?:^|[;|&(]\s*)(?:[A-Z_]+=\S+ )*(?:\S*/)?ceoagent ([a-z][\w-]*)([^|>#\n]*)", code, re.M):
            known = help_of(command)
            if known is None:
                yield f"{path}: there is no command ceoagent {command}"
                continue
            if below := re.match(r" ([a-z][\w-]*)", rest):
                known += help_of(command, below[1]) or ""
            for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", rest):
                if flag not in known:
                    yield f"{path}: ceoagent {command} has no {flag}"
        for script in re.findall(r"(?:^|\s)(?:bash )?((?:deploy|tests)/[\w./-]+\.sh)", code):
            if not pathlib.Path(script).exists():
                yield f"{path}: there is no {script}"


def main(binary):
    wrong = [fault for path in DOCUMENTS for fault in links(path)]
    wrong += [*alarms(), *commands(binary)]
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(DOCUMENTS)} documents: all is well")


main(sys.argv[1])
