"""What is given to those who operate an app: a unit of systemd, manifests for Kubernetes, a Dockerfile, alerts. No engine builds here.

What can be asked without one is: whether the schema of Kubernetes and systemd's own checker accept them, whether each option that they give
exists, and whether their limits fit together.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from groundstate.cli import main as command_line
from groundstate.telemetry.metrics import MEASURES
from tests.docs.blocks import ROOT
from tests.docs.test_commands import options_of
from tests.patience import HANG_S

DEPLOY = ROOT / "deploy"
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
WRITING_DOWN_S = 15  # what `groundstate run` takes at most after its drain


def check_arguments(arguments: list[str]) -> None:
    """Each names a command and options that exist."""
    command, *rest = arguments
    assert command in command_line.COMMANDS
    assert {one for one in rest if one.startswith("--")} <= options_of(command)


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


# ---- Kubernetes ----------------------------------------------------------------------------------------------------------------
def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [one for one in MANIFESTS if one["kind"] == kind]
    return found


def containers(kind: str) -> list[dict[str, Any]]:
    pod = of_kind(kind)["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_the_schema_of_kubernetes_accepts_each_manifest(version: str) -> None:
    assert [one["kind"] for one in MANIFESTS] == ["Job", "Deployment", "PodDisruptionBudget", "Service"]
    for one in MANIFESTS:
        kubernetes_validate.validate(one, version, strict=True)
        assert "namespace" not in one["metadata"]


def test_a_misspelt_field_would_be_refused() -> None:
    wrong = json.loads(json.dumps(of_kind("Deployment")))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("kind", ["Job", "Deployment"])
def test_no_container_is_root_or_writes_to_its_image(kind: str) -> None:
    pod = of_kind(kind)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    for one in containers(kind):
        assert one["securityContext"]["readOnlyRootFilesystem"] is True
        assert one["securityContext"]["allowPrivilegeEscalation"] is False
        assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_selectors_find_the_workers_and_probes_ask_what_is_served() -> None:
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        of_kind("Deployment")["spec"]["selector"]["matchLabels"],
        of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind("Service")["spec"]["selector"],
    ):
        assert selector.items() <= labels.items()
    (worker,) = containers("Deployment")
    (port,) = worker["ports"]
    assert option(worker["args"], "--http").endswith(f":{port['containerPort']}")
    asked = {name: worker[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {one["port"] for one in asked.values()} == {port["name"]}
    # A database that is down makes no pod start anew: /readyz says what is down, /livez what hangs.
    assert {name: one["path"] for name, one in asked.items()} == {
        "startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz",
    }  # fmt: skip
    assert of_kind("Service")["spec"]["ports"][0]["targetPort"] == port["name"]


def test_workers_do_not_run_as_the_role_that_owns_the_tables() -> None:
    def secrets(kind: str) -> set[str]:
        return {env["valueFrom"]["secretKeyRef"]["name"] for one in containers(kind) for env in one["env"]}

    assert (secrets("Job"), secrets("Deployment")) == ({"shop-database-owner"}, {"shop-database"})


def test_kubernetes_waits_for_the_drain_to_end() -> None:
    (worker,) = containers("Deployment")
    check_arguments(worker["args"])
    grace = of_kind("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > float(option(worker["args"], "--drain")) + WRITING_DOWN_S
    check_arguments(containers("Job")[-1]["args"])


# ---- systemd -------------------------------------------------------------------------------------------------------------------
def unit() -> dict[str, list[str]]:
    """The settings of the unit's service."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (DEPLOY / "groundstate.service").read_text().splitlines():
        if line.startswith("["):
            section = line
        elif line and not line.startswith("#") and section == "[Service]":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def seconds(value: str) -> float:
    assert re.fullmatch(r"\d+s", value)
    return float(value[:-1])


def test_the_units_limits_fit_together() -> None:
    service = unit()
    (start,) = service["ExecStart"]
    arguments = shlex.split(start)[1:]
    check_arguments(arguments)
    assert seconds(service["TimeoutStopSec"][0]) > float(option(arguments, "--drain")) + WRITING_DOWN_S
    assert seconds(service["TimeoutStartSec"][0]) > 60
    assert seconds(service["WatchdogSec"][0]) >= 10
    assert (service["Type"], service["Restart"], service["KillMode"]) == (["notify"], ["always"], ["mixed"])
    assert service["User"] not in ([], ["root"])


def test_systemds_own_checker_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "groundstate.service").read_text()
    program = tmp_path.resolve() / "python"  # the checker looks whether it is there, and this folder has no space in its name
    program.symlink_to(sys.executable)
    here = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", text)
    assert here != text
    known = set(re.findall(r"(?m)^(\w+)=", text))
    assert known <= {
        "Description", "Wants", "After", "StartLimitIntervalSec", "Type", "NotifyAccess", "User", "Group", "WorkingDirectory",
        "Environment", "EnvironmentFile", "ExecStart", "Restart", "RestartSec", "TimeoutStartSec", "TimeoutStopSec", "KillMode",
        "WatchdogSec", "NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables",
        "ProtectControlGroups", "RestrictSUIDSGID", "StateDirectory", "WantedBy",
    }  # fmt: skip
    checker = shutil.which("systemd-analyze")
    if checker is None:
        return  # a host without systemd: the settings are known by name, as above
    file = tmp_path / "groundstate.service"
    file.write_text(here)
    done = subprocess.run([checker, "verify", str(file)], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---- Docker --------------------------------------------------------------------------------------------------------------------
INSTRUCTIONS = {"ARG", "FROM", "RUN", "ENV", "COPY", "WORKDIR", "USER", "EXPOSE", "ENTRYPOINT", "CMD", "STOPSIGNAL", "HEALTHCHECK"}


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, in order, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Dockerfile").read_text()).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def test_each_instruction_of_the_dockerfile_is_known_and_it_has_two_stages() -> None:
    names = [name for name, _ in instructions()]
    assert set(names) <= INSTRUCTIONS
    assert names[0] == "ARG"
    assert names.count("FROM") == 2
    stages = [given.split()[-1] for name, given in instructions() if name == "FROM" and " AS " in given]
    copied = [given for name, given in instructions() if name == "COPY" and given.startswith("--from=")]
    assert [one.split()[0] for one in copied] == [f"--from={stage}" for stage in stages]


def test_the_image_runs_as_nobody_that_is_root() -> None:
    last = [(name, given) for name, given in instructions() if name in {"FROM", "USER"}][-1]
    assert last[0] == "USER"
    assert all(int(part) > 0 for part in last[1].split(":"))
    made = next(given for name, given in instructions() if name == "RUN" and "useradd" in given)
    assert f"--uid {last[1].split(':')[0]} " in made


def test_signals_arrive_at_groundstate_and_what_calls_leave_behind_is_buried() -> None:
    found = dict(instructions())
    entrypoint, command = json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])  # exec form is JSON; shell form is none
    assert entrypoint == ["tini", "--", "groundstate"]
    assert any("install" in given and " tini " in given for name, given in instructions() if name == "RUN")
    check_arguments(command)
    assert found["STOPSIGNAL"] == "SIGTERM"
    probe = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert probe[0] == "python"
    compile(probe[2], "HEALTHCHECK", "exec")
    assert f":{option(command, '--http').rpartition(':')[2]}/livez" in probe[2]
    assert found["EXPOSE"] == option(command, "--http").rpartition(":")[2]


# ---- Prometheus ----------------------------------------------------------------------------------------------------------------
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_each_alert_asks_metrics_and_labels_that_there_are() -> None:
    known = {f"{one.name}_total" if one.kind == "counter" else one.name: one for one in MEASURES}
    for rule in rules():
        names = re.findall(r"groundstate_\w+", rule["expr"])
        assert names, rule
        labels = {label for name in names for label in known[name].labels} | {"instance"}
        by = {label.strip() for some in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in some.split(",")}
        given = set(re.findall(r"(\w+)=\"", rule["expr"]))
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert by | given <= labels, rule
        assert shown <= by, rule
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_each_alert_is_told_of_in_the_docs() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    assert re.findall(r"(?m)^\| `(Groundstate\w+)`", text) == [rule["alert"] for rule in rules()]
