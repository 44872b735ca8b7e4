"""Send a running gateway and a running console what their OpenAPI allows, and what it does not.

``make fuzz``: a gateway with a worker of a tiny model, a console of a seeded service, and
schemathesis against both. It ends with 1 on a server error, an answer that is not declared or does
not have the declared form, a broken rule taken, a method that should be refused. Schemathesis has
an environment of its own, ``.venv-fuzz``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.fixtures_serving import tiny_service, until
from tests.reviewed import a_review
from tests.unit.console.conftest import SERVICE, fill

from intonaco.ledger import Ledger
from intonaco.review import session
from intonaco.workspace import Workspace

SCHEMATHESIS = "schemathesis==4.32.5"
ENVIRONMENT = Path(__file__).parents[1] / ".venv-fuzz"
GATEWAY = """
service: tiny
model: {name: tiny, generation: {steps: 2, guidance_scale: 1.5, width: 32, height: 32}}
serving: {gateway: {port: 0, limits: {images: 3}}}
"""
# Of the console, who has a word there, and which addresses each is sent to besides.
ROLES = {
    **{"trigger": "trigger", "curate": "curat|proposed", "reviewer": "review", "lead": "review"},
    "operator": "rollouts|rollback|freeze|commands|session|/api/updates/",
}
# What a schema cannot say (a size in multiples of eight, a token that was really given out) is
# refused although the schema allows it.
LEFT_OUT = "positive_data_acceptance"
# By default a body that is too large does not count as refused.
SETTINGS = """
[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 429]
"""
# Of three values, two are real ones: addresses that only ever answer 404 try nothing.
REAL = "{{ dictionary = {name}, probability = 0.67 }}"


def outside() -> dict[str, str]:
    """This process's variables without those that would lead it to our own packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def schemathesis() -> Path:
    """The program, installed on first use and when its version changed here."""
    stamp = ENVIRONMENT / "stamp"
    if not stamp.exists() or stamp.read_text() != SCHEMATHESIS:
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        python = ENVIRONMENT / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "--quiet", SCHEMATHESIS]
        subprocess.run(install, check=True, env=outside())
        stamp.write_text(SCHEMATHESIS)
    return ENVIRONMENT / "bin" / "schemathesis"


@contextmanager
def gateway(root: Path) -> Iterator[str]:
    """URL of a gateway whose champion is a real worker with a tiny model."""
    with tiny_service(Workspace(root / "gateway"), GATEWAY) as (url, _):
        yield url


@contextmanager
def console(root: Path) -> Iterator[str]:
    """URL of a console of a service in the middle of an update."""
    workspace = Workspace(root / "console")
    workspace.root.mkdir()
    people = [
        {"name": role, "role": role, "sha256": hashlib.sha256(role.encode()).hexdigest()}
        for role in ROLES
    ]
    workspace.config_file.write_text(
        f"service: {SERVICE}\nconsole: {json.dumps({'port': 0, 'people': people})}\n"
    )
    ledger = Ledger.open(workspace.ledger, SERVICE)
    fill(ledger, workspace)
    review = a_review(workspace, ledger, now=time.time(), side=24, prompts=200)
    real = {
        "review_id": [review.review_id],
        "task": [t.task for t in session.pairs(review, "reviewer")],
        "update_id": ["u2"],
        "finding_id": ["f1"],
        "rollout_id": ["u2-1"],
        "number": ["1"],
    }
    (root / "schemathesis.toml").write_text(SETTINGS + dictionaries(real))
    ledger.close()
    process = subprocess.Popen(
        [sys.executable, "-m", "intonaco.console.main", "--workspace", str(workspace.root)]
    )
    try:
        info = until(
            lambda: (process.poll(), workspace.process("console")),
            lambda s: s[0] is not None or s[1] is not None,
        )[1]
        assert info is not None
        assert info.url
        yield info.url
    finally:
        process.terminate()
        process.wait(20)


def dictionaries(real: Mapping[str, list[str]]) -> str:
    """Settings by which parameters and fields of these names get values that are there."""
    values = [f"[dictionaries.{n}]\nvalues = {json.dumps(v)}\n" for n, v in real.items()]
    uses = [f'"path.{n}" = {REAL.format(name=json.dumps(n))}\n' for n in real]
    uses.append(f'"body.task" = {REAL.format(name=json.dumps("task"))}\n')
    return "\n".join(("", *values, "[parameters]", *uses))


def send(command: Sequence[str], folder: str) -> bool:
    """Whether something was found."""
    ended = subprocess.run(command, cwd=folder, env={**outside(), "NO_PROXY": "127.0.0.1"})
    return ended.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=50, help="of each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("gateway", "console"))
    args = parser.parse_args()
    program = schemathesis()
    found = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        (Path(folder) / "schemathesis.toml").write_text(SETTINGS)  # found where it is run
        for name, serve in (("gateway", gateway), ("console", console)):
            if args.only not in (None, name):
                continue
            url = stack.enter_context(serve(Path(folder)))
            print(f"{name}: {url}", flush=True)
            command = [
                *(str(program), "run", f"{url}/openapi.json"),
                *("--exclude-checks", LEFT_OUT),
                *("--max-examples", str(args.examples)),
                *("--seed", str(args.seed)),
                *("--generation-database", "none"),
                "--continue-on-failure",
            ]
            found += send(command, folder)
            for role, where in ROLES.items() if name == "console" else ():
                print(f"{name} as {role}", flush=True)
                who = ("--header", f"Authorization: Bearer {role}")
                found += send([*command, *who, "--include-path-regex", where], folder)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
