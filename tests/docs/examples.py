"""Runs the examples of the documents, each document against a demo service of its own.

    python3 tests/docs/examples.py PATH_OF_CEOAGENT PATH_OF_ESBUILD [DOCUMENT...]

`blocks.py` describes the marks. Each document gets a copy of the repository to run in, and its own loopback network, so
that the port the documents name is free and documents can run at the same time.

Three things differ from a reader's machine. `cargo run` and `cargo install` use the binary that the tests have built instead
of compiling for minutes. curl is configured to fail on HTTP errors, so that a broken example breaks the test. And the
simulated Claude thinks little (EFFORT=low), because the test waits for every memo.
"""

import concurrent.futures
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

from blocks import DOCUMENTS, LANGUAGES, NOT_RUN, blocks, programs

BASE = "http://127.0.0.1:8000"
AT_ONCE = 4
START_SECONDS = 120
DOCUMENT_SECONDS = 480

CARGO = """#!/usr/bin/env bash
set -euo pipefail
case "$*" in
    "run --release -- "*) shift 3; exec ceoagent "$@" ;;
    "install --locked --path .") mkdir -p ~/.cargo/bin; cp "$(type -P ceoagent)" ~/.cargo/bin/ ;;
    *) echo "the documents use a cargo command that tests/docs/examples.py does not know: cargo $*" >&2; exit 1 ;;
esac
"""

PRELUDE = """set -eo pipefail
at() { echo "::at $1"; }
"""


def check_marks(block):
    """What is wrong with a block as such."""
    if block.language not in LANGUAGES:
        return f"{block.place}: use one of {', '.join(sorted(LANGUAGES))} as the language"
    if block.mark not in ("", "server", "no-run") or block.mark and block.language != "bash":
        return f"{block.place}: unknown mark {block.mark!r}"
    if block.language == "json":
        try:
            json.loads(block.code)
        except ValueError as error:
            return f"{block.place}: not valid JSON: {error}"
    if block.language == "bash":
        syntax = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
        if syntax.returncode:
            return f"{block.place}: {syntax.stderr}"
    if block.mark == "no-run" and not any(program in NOT_RUN for program in programs(block.code)):
        return f"{block.place}: nothing in it needs `no-run`; it is for {', '.join(NOT_RUN)}"
    return None


def network_of_its_own():
    """The start of a command that runs the rest of it with a loopback network of its own."""
    for command in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return None


def raise_loopback():
    siocgifflags, siocsifflags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, siocgifflags, request))[1]
        fcntl.ioctl(any_socket, siocsifflags, struct.pack("16sh14x", b"lo", flags | up))


def sandbox(folder, binary):
    """A copy of the repository, the programs that the examples use, and their environment."""
    skip = shutil.ignore_patterns("target", ".git", "node_modules")
    shutil.copytree(".", folder / "ceoagent", ignore=skip)
    for left in (folder / "ceoagent/data").iterdir():
        if left.name != ".gitkeep":
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    (folder / "ceoagent/.env").unlink(missing_ok=True)
    programs_folder = folder / "bin"
    programs_folder.mkdir()
    (programs_folder / "ceoagent").symlink_to(binary)
    (programs_folder / "cargo").write_text(CARGO)
    (programs_folder / "cargo").chmod(0o755)
    (folder / ".curlrc").write_text("fail-with-body\nshow-error\n")
    return {
        "PATH": f"{programs_folder}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "EFFORT": "low",
    }


def start(command, env, folder, log):
    """Starts a service and waits until it is ready; for the demo, until its own question is answered."""
    with open(log, "w", encoding="utf-8") as output:
        service = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and service.poll() is None:
        text = pathlib.Path(log).read_text(encoding="utf-8")
        try:
            is_up = urllib.request.urlopen(f"{BASE}/health", timeout=5).status == 200
        except OSError:
            is_up = False
        if is_up and ("demo" not in command or "runs until Ctrl-C" in text):
            return service
        time.sleep(0.1)
    stop(service)
    raise RuntimeError(f"the service does not start: {command}\n{pathlib.Path(log).read_text(encoding='utf-8')}")


def stop(service):
    if service.poll() is None:
        os.killpg(service.pid, signal.SIGINT)
    service.wait(timeout=60)


class Document:
    """Runs the blocks of one document."""

    def __init__(self, path, binary, esbuild, folder):
        self.blocks = [block for block in blocks(path) if block.is_run]
        self.esbuild = esbuild
        self.folder = folder
        self.env = sandbox(folder, binary)
        self.work = folder / "ceoagent"
        self.service = None

    def run(self):
        try:
            if self.blocks[0].mark != "server":
                self.serve("ceoagent demo")
            while self.blocks:
                if self.blocks[0].mark == "server":
                    self.serve(self.blocks.pop(0).code)
                else:
                    self.run_up_to_the_next_server()
        finally:
            if self.service:
                stop(self.service)

    def serve(self, command):
        if self.service:
            stop(self.service)
        # What the reader is asked to write into .env. Nothing answers at the real address here.
        key = {"ANTHROPIC_API_KEY": "sk-ant-of-the-tests"} if "serve" in command else {}
        self.service = start(command, {**self.env, **key}, self.work, self.folder / "service.log")

    def run_up_to_the_next_server(self):
        script = [PRELUDE]
        while self.blocks and self.blocks[0].mark != "server":
            block = self.blocks.pop(0)
            script.append(f"at {block.place}")
            script.append(self.command(block))
        shell = subprocess.Popen(
            ["bash", "-c", "\n".join(script)], cwd=self.work, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = shell.communicate(timeout=DOCUMENT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            output = shell.communicate()[0] + f"\nstill running after {DOCUMENT_SECONDS} s"
        if shell.returncode:
            place, _, output = output.rpartition("::at ")[2].partition("\n")
            raise RuntimeError(f"{place}: the example fails (exit code {shell.returncode}):\n{output[-4000:]}")

    def command(self, block):
        if block.language == "bash":
            return block.code
        file = self.folder / f"example-{block.line}.{'py' if block.language == 'python' else 'ts'}"
        file.write_text(block.code, encoding="utf-8")
        if block.language == "python":
            return f"python3 {file}"
        # Node.js runs TypeScript from 22.18 on; older ones need the types taken out.
        return f"{self.esbuild} --log-level=warning --format=esm {file} --outfile={file}.mjs && node {file}.mjs"


def run_inside(path, binary, esbuild):
    with tempfile.TemporaryDirectory() as folder:
        document = Document(pathlib.Path(path), binary, esbuild, pathlib.Path(folder))
        try:
            document.run()
        except RuntimeError as error:
            sys.exit(str(error))


def main(binary, esbuild, *chosen):
    documents = [pathlib.Path(name) for name in chosen] or DOCUMENTS
    wrong = [fault for path in documents for block in blocks(path) if (fault := check_marks(block))]
    if wrong:
        sys.exit("\n".join(wrong))
    network = network_of_its_own()
    if network is None:
        print("no network namespaces here: the documents run one after another and need port 8000")

    def run(path):
        began = time.monotonic()
        arguments = [sys.executable, __file__, "--inside", str(path), binary, esbuild]
        done = subprocess.run([*(network or []), *arguments, "alone" if network else "shared"], capture_output=True, text=True)
        state = "ok" if done.returncode == 0 else "FAILED"
        print(f"{path}: {state} ({time.monotonic() - began:.0f} s)", flush=True)
        return done.stdout + done.stderr if done.returncode else ""

    with_examples = [path for path in documents if any(block.is_run for block in blocks(path))]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE if network else 1) as pool:
        faults = [fault for fault in pool.map(run, with_examples) if fault]
    if faults:
        sys.exit("\n" + "\n".join(faults))


if sys.argv[1] == "--inside":
    if sys.argv[5] == "alone":
        raise_loopback()
    run_inside(*sys.argv[2:5])
else:
    main(str(pathlib.Path(sys.argv[1]).absolute()), str(pathlib.Path(sys.argv[2]).absolute()), *sys.argv[3:])
